"""What the tracer knows of a tensor: the axes, and which stored axes they are views of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nfn_opt.weight_space.atoms import Atom, Factors, concatenate, count, resolve, unify


@dataclass
class TracedAxis:
    """One axis of a traced tensor.

    Attributes:
        atoms: Its factors, major first; none for an axis of size 1.
        origins: The stored parameter axes that it is a view of, as ``(parameter, axis)``.
    """

    atoms: Factors = ()
    origins: frozenset[tuple[str, int]] = frozenset()

    @property
    def roots(self) -> Factors:
        """Its factors as they are now."""
        return resolve(self.atoms)


class TracedTensor:
    """The axes of a traced tensor.

    A tensor may be a *stack* along one ordered axis of alternatives that have different axes, such as the queries,
    keys and values that one product gives. Operators that look at :attr:`axes` get the axes that all alternatives
    have in common, which they then have for good.

    Args:
        axes: The axes; of the first alternative without the ordered axis, where there are alternatives.
        active: Whether the tensor depends on the model's inputs.
        buffer: Name of the buffer that it is, if any.
        along: Position of the ordered axis of a stack.
        alternatives: The axes of each entry along it, without that axis.
    """

    def __init__(
        self,
        axes: list[TracedAxis],
        active: bool = False,
        buffer: str = "",
        *,
        along: int | None = None,
        alternatives: Sequence[list[TracedAxis]] = (),
    ) -> None:
        self._axes, self.active, self.buffer = axes, active, buffer
        self.along, self._alternatives = along, list(alternatives)

    @classmethod
    def stack(
        cls, along: int, alternatives: Sequence[list[TracedAxis]], active: bool = False
    ) -> TracedTensor:
        """A stack of alternatives along a new axis; a plain tensor where they do not differ."""
        first = alternatives[0]
        if all(_same(first, other) for other in alternatives[1:]):
            return cls(_insert(first, along, len(alternatives)), active)
        return cls(first, active, along=along, alternatives=alternatives)

    @property
    def axes(self) -> list[TracedAxis]:
        """The axes; those of alternatives are unified."""
        if self.along is not None:
            for other in self._alternatives[1:]:
                for a, b in zip(self._alternatives[0], other, strict=True):
                    unify(a.atoms, b.atoms, "stacked tensors are split differently")
            self._axes = _insert(self._alternatives[0], self.along, len(self._alternatives))
            self.along, self._alternatives = None, []
        return self._axes

    @property
    def alternatives(self) -> list[list[TracedAxis]]:
        """The axes of each alternative, or of the tensor itself."""
        return self._alternatives if self.along is not None else [self._axes]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all axes."""
        if self.along is None:
            return sizes(self._axes)
        shape = list(sizes(self._alternatives[0]))
        shape.insert(self.along, len(self._alternatives))
        return tuple(shape)

    def concatenated(self) -> list[TracedAxis] | None:
        """The axes with the ordered axis of a stack joined to the one behind it, ``None`` if nothing is behind."""
        assert self.along is not None
        if self.along == len(self._alternatives[0]):
            return None
        axes = list(self._alternatives[0])
        for i, axis in enumerate(axes):
            for other in self._alternatives[1:] if i != self.along else ():
                unify(axis.atoms, other[i].atoms, "stacked tensors are split differently")
        pieces = [alternative[self.along].roots for alternative in self._alternatives]
        axes[self.along] = TracedAxis(concatenate(pieces))
        return axes


def _same(left: list[TracedAxis], right: list[TracedAxis]) -> bool:
    return all(a.roots == b.roots for a, b in zip(left, right, strict=True))


def _insert(axes: list[TracedAxis], position: int, size: int) -> list[TracedAxis]:
    return [*axes[:position], *fresh((size,), "entries of a stack"), *axes[position:]]


def fresh(shape: Iterable[int], note: str | None = None) -> list[TracedAxis]:
    """New axes for a tensor of this shape, unknown so far, or fixed for the reason ``note``."""
    return [
        TracedAxis((Atom(size, fixed=note is not None, note=note or ""),) if size != 1 else ())
        for size in shape
    ]


def sizes(axes: Iterable[TracedAxis]) -> tuple[int, ...]:
    """The sizes of the axes, that is the shape of their tensor."""
    return tuple(count(axis.roots) for axis in axes)
