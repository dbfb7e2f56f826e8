"""What a named edit of images is: a function with typed, checked parameters that writes itself as text."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Edit", "Inverse", "Parameter", "Value", "closest", "write_value"]

Value: TypeAlias = "int | float | str"
"""Value of a parameter."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of an edit; the type of its default is its type.

    Attributes:
        name: Name, as in ``blur(sigma=2)``.
        doc: What it is, with its unit.
        default: Value if not given.
        low: Least value of a number.
        high: Greatest value of a number.
        odd: Whether a whole number must be odd.
        choices: The values of a word.
    """

    name: str
    doc: str
    default: Value
    low: float = -math.inf
    high: float = math.inf
    odd: bool = False
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What its values are, in words.

        Example:
            >>> Parameter("size", "side of the window in pixels", 3, 1, 31, odd=True).expected
            'an odd whole number from 1 to 31'
        """
        if isinstance(self.default, str):
            return " or ".join(self.choices)
        number = "a number" if isinstance(self.default, float) else "a whole number"
        return f"{'an odd whole number' if self.odd else number} from {self.low:g} to {self.high:g}"

    def check(self, value: object, edit: str) -> Value:
        """The value in the parameter's type.

        Raises:
            ValueError: If it is of another type or out of range; it names the edit.
        """
        checked = _convert(value, type(self.default))
        if isinstance(checked, str):
            accepted = checked in self.choices
        else:
            accepted = (
                checked is not None
                and self.low <= checked <= self.high
                and (not self.odd or checked % 2 == 1)
            )
        if checked is None or not accepted:
            raise ValueError(f"{self.name} of the edit {edit!r} is {value!r}, expected {self.expected}")
        return checked

    def read(self, text: str) -> Value:
        """The number that a text stands for; a text that stands for none is left to `check` to refuse."""
        try:
            return type(self.default)(text)
        except ValueError:
            return text


@dataclasses.dataclass(frozen=True)
class Inverse:
    """What undoes an edit: the same edit with other parameters.

    Attributes:
        doc: The undoing edit and how far it undoes.
        values: Those parameters of the undoing edit that differ, given all parameters of the edit.
    """

    doc: str
    values: Callable[..., dict[str, Value]]


@dataclasses.dataclass(frozen=True, repr=False)
class Edit:
    """An edit of images with its parameters set; calling it applies it, with its input and output checked.

    ``str(edit)`` is its text, with the parameters that differ from their defaults; `editors.get_edit` reads it.

    Attributes:
        name: Name, as `editors.get_edit` finds it.
        doc: What it does, in one line.
        apply: The edit itself: images (B, H, W, C) in [0, 1] and, by keyword, the parameters to images of the same
            shape and range.
        local: Whether a pixel depends only on pixels near it, not on its place, so that a picture can be edited tile
            by tile. Near is what the parameters say.
        parameters: Its parameters.
        settings: Their values, in the same order; the defaults if not given.
        undone_by: What undoes it, if there is such an edit.
        color_only: Whether it needs colour images, C = 3.

    Raises:
        ValueError: If the settings are not one valid value for each parameter.

    Example:
        >>> from editors import EDITS
        >>> edit = EDITS["blur"].with_parameters(sigma=2)
        >>> str(edit), edit.values
        ('blur(sigma=2)', {'sigma': 2.0})
        >>> str(EDITS["gamma"].inverse)
        'gamma(exponent=0.5)'
    """

    name: str
    doc: str
    apply: Callable[..., Tensor]
    local: bool = True
    parameters: tuple[Parameter, ...] = ()
    settings: tuple[Value, ...] = ()
    undone_by: Inverse | None = None
    color_only: bool = False

    def __post_init__(self) -> None:
        given = self.settings or tuple(parameter.default for parameter in self.parameters)
        if len(given) != len(self.parameters):
            raise ValueError(
                f"the edit {self.name!r} has {len(given)} settings, expected {len(self.parameters)}, one for each "
                "parameter; name them in with_parameters"
            )
        checked = tuple(
            parameter.check(value, self.name) for parameter, value in zip(self.parameters, given, strict=True)
        )
        object.__setattr__(self, "settings", checked)

    def __str__(self) -> str:
        changed = [
            f"{parameter.name}={write_value(value)}"
            for parameter, value in zip(self.parameters, self.settings, strict=True)
            if value != parameter.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def __repr__(self) -> str:
        return f"Edit({str(self)!r})"

    @property
    def values(self) -> dict[str, Value]:
        """Value of each parameter."""
        return dict(zip((parameter.name for parameter in self.parameters), self.settings, strict=True))

    @property
    def inverse(self) -> Edit | None:
        """The edit that undoes this one, as far as `undone_by` says; None if there is none."""
        if self.undone_by is None:
            return None
        return self.with_parameters(**self.undone_by.values(**self.values))

    def with_parameters(self, **values: Value) -> Edit:
        """The same edit with some parameters changed.

        Raises:
            ValueError: If there is no such parameter, or a value is of another type or out of range.
        """
        for name in values:
            self.parameter(name)
        return dataclasses.replace(self, settings=tuple({**self.values, **values}.values()))

    def parameter(self, name: str) -> Parameter:
        """The parameter of a name.

        Raises:
            ValueError: If there is none.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        if name not in known:
            has = f"It has {', '.join(known)}" if known else "It has none"
            raise ValueError(f"the edit {self.name!r} has no parameter {name!r}{closest(name, known)} {has}")
        return known[name]

    def __call__(self, images: Tensor) -> Tensor:
        """Edit images.

        Args:
            images: Pixel values in [0, 1], shape (B, H, W, C).

        Returns:
            The edited images, of the same shape.

        Raises:
            ValueError: If `images` is not of that shape and range, or what the edit makes of them is not.
        """
        _check_images(images, f"images given to the edit {str(self)!r}")
        if self.color_only and images.shape[-1] != 3:
            raise ValueError(
                f"images given to the edit {str(self)!r} have {images.shape[-1]} channel, expected 3 (colour); repeat "
                "the channel three times, or choose another edit"
            )
        edited = self.apply(images, **self.values)
        _check_images(edited, f"images made by the edit {str(self)!r}", expected=images.shape)
        return edited


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the name that was meant, if one is close."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _convert(value: object, to: type) -> Value | None:
    """A value as `int`, `float` or `str`, NumPy's numbers included; None if it is of another kind."""
    if to is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool):
        return None
    if to is int:
        return int(value) if isinstance(value, numbers.Integral) else None
    return float(value) + 0.0 if isinstance(value, numbers.Real) else None  # + 0.0 turns -0.0 into 0.0


def write_value(value: Value) -> str:
    """The shortest text that is read as the same value."""
    return str(value).removesuffix(".0")


def _check_images(images: Tensor, what: str, expected: torch.Size | None = None) -> None:
    """Refuse what is not a batch of images in [0, 1], or not of the expected shape."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"{what} must have shape (B, H, W, C) with C = 1 or 3, got {tuple(images.shape)}")
    if expected is not None and images.shape != expected:
        raise ValueError(f"{what} must keep the shape {tuple(expected)}, got {tuple(images.shape)}")
    low, high = (bound.item() for bound in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{what} must lie in [0, 1], got values from {low:g} to {high:g}; clamp or rescale them"
        )
