"""Families of edits: what one editor has learned that is told which edit is meant.

A family is written as the edits it holds, with a range where a parameter may vary.

Example:
    >>> family = EditFamily.read("blur(sigma=0.5..2), invert")
    >>> family.condition("blur(sigma=2)")
    [1.0, 0.0, 1.0]
    >>> family.condition("blur(sigma=3)")
    Traceback (most recent call last):
    ...
    ValueError: sigma of the edit 'blur(sigma=3)' is 3.0, expected 0.5 to 2; the editor learned blur(sigma=0.5..2), ...
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from editors.edit_table import EDITS
from editors.edits import get_edit, read_parts
from editors.named_edit import Edit, Parameter, Value, closest, write_value

__all__ = ["EditFamily", "ParameterRange", "VariedEdit", "find_family"]

RANGE = ".."
"""What stands between the ends of a range."""

GRID = 5
"""Edits that stand for one with ranges where errors are measured, ends included."""


@dataclasses.dataclass(frozen=True)
class ParameterRange:
    """The values that a parameter takes.

    Attributes:
        parameter: The parameter, a number.
        low: Least value.
        high: Greatest value.
    """

    parameter: Parameter
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.parameter.name}={write_value(self.low)}{RANGE}{write_value(self.high)}"

    def covers(self, value: Value) -> bool:
        """Whether a value is one of them."""
        return not isinstance(value, str) and self.low <= value <= self.high

    def at(self, fraction: float) -> Value:
        """The value at a fraction of the way from the least to the greatest; whole numbers have equal shares."""
        if isinstance(self.parameter.default, float):
            return min(max(round(self.low + fraction * (self.high - self.low), 6), self.low), self.high)
        step = 2 if self.parameter.odd else 1
        count = int(self.high - self.low) // step + 1
        return int(self.low) + step * min(int(fraction * count), count - 1)

    def scaled(self, value: Value) -> float:
        """A value as a number from -1, the least, to 1, the greatest."""
        return 2 * (float(value) - self.low) / (self.high - self.low) - 1


@dataclasses.dataclass(frozen=True)
class VariedEdit:
    """An edit some of whose parameters vary.

    Attributes:
        edit: The edit, with the values of all other parameters.
        ranges: The parameters that vary.
    """

    edit: Edit
    ranges: tuple[ParameterRange, ...] = ()

    @classmethod
    def read(cls, text: str) -> VariedEdit:
        """The edit that a text stands for, such as ``blur(sigma=0.5..2)``.

        Raises:
            ValueError: If there is no such edit or parameter, or a range is empty or goes too far.
        """
        edit, given = read_parts(text)
        ranges = []
        for name, value in given.items():
            parameter = edit.parameter(name)
            if RANGE in value:
                ranges.append(_range(parameter, value, text))
            else:
                edit = edit.with_parameters(**{name: parameter.read(value)})
        return cls(edit, tuple(ranges))

    def __str__(self) -> str:
        text = str(self.edit)
        fixed = [text.partition("(")[2].removesuffix(")")] if "(" in text else []
        varied = ", ".join([*fixed, *map(str, self.ranges)])
        return f"{self.edit.name}({varied})" if varied else self.edit.name

    def at(self, fractions: Sequence[float]) -> Edit:
        """The edit with each range at a fraction of its way."""
        values = {
            each.parameter.name: each.at(fraction)
            for each, fraction in zip(self.ranges, fractions, strict=True)
        }
        return self.edit.with_parameters(**values)

    def grid(self) -> list[Edit]:
        """Edits spread evenly over all ranges; several parameters vary in orders of their own, which are fixed."""
        if not self.ranges:
            return [self.edit]
        generator = torch.Generator().manual_seed(0)
        steps = torch.arange(GRID) / (GRID - 1)
        columns = [steps, *(steps[torch.randperm(GRID, generator=generator)] for _ in self.ranges[1:])]
        return list(dict.fromkeys(self.at(row) for row in torch.stack(columns, 1).tolist()))

    def why_not(self, edit: Edit) -> str:
        """Why an edit of this name is not one of these, in words; empty if it is."""
        varied = {each.parameter.name: each for each in self.ranges}
        for name, value in edit.values.items():
            fixed = self.edit.values[name]
            if name in varied and not varied[name].covers(value):
                ends = f"{write_value(varied[name].low)} to {write_value(varied[name].high)}"
                return f"{name} of the edit {str(edit)!r} is {value}, expected {ends}"
            if name not in varied and value != fixed:
                return f"{name} of the edit {str(edit)!r} is {value}, expected {write_value(fixed)}"
        return ""

    def meets(self, other: VariedEdit) -> bool:
        """Whether some edit is of both."""
        if self.edit.name != other.edit.name:
            return False
        return all(
            _ends(self, name)[0] <= _ends(other, name)[1] and _ends(other, name)[0] <= _ends(self, name)[1]
            for name in self.edit.values
        )


@dataclasses.dataclass(frozen=True)
class EditFamily:
    """The edits that one editor learns, and how it is told which of them is meant.

    Attributes:
        members: The edits, with the ranges of their parameters; no edit is in two of them.

    Raises:
        ValueError: If there is none, or two have edits in common.
    """

    members: tuple[VariedEdit, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError(
                "the family has no edits, expected at least one, as in 'blur(sigma=0.5..2), invert'"
            )
        for number, one in enumerate(self.members):
            for other in self.members[number + 1 :]:
                if one.meets(other):
                    raise ValueError(
                        f"the edits {str(one)!r} and {str(other)!r} of a family have edits in common, expected each "
                        "edit once; leave one of them out, or choose other ranges"
                    )

    @classmethod
    def read(cls, text: str) -> EditFamily:
        """The family that a text stands for: edits with commas between them, as ``str(family)`` writes them.

        Raises:
            ValueError: If an edit is missing, unknown or out of range.
        """
        parts = [part.strip() for part in _parts(text)]
        if "" in parts:
            raise ValueError(
                f"the family {text!r} has an empty edit, expected edits with one comma between two, as in "
                "'blur(sigma=0.5..2), invert'"
            )
        return cls(tuple(map(VariedEdit.read, parts)))

    def __str__(self) -> str:
        return ", ".join(map(str, self.members))

    @property
    def width(self) -> int:
        """Numbers that say which edit is meant: one for each edit, then one for each range."""
        return len(self.members) + sum(len(member.ranges) for member in self.members)

    def find(self, edit: str | Edit) -> tuple[int, Edit]:
        """The number of the member that an edit belongs to, and the edit.

        Raises:
            ValueError: If it belongs to none.
        """
        name = edit.name if isinstance(edit, Edit) else edit.partition("(")[0]
        alike = [number for number, member in enumerate(self.members) if member.edit.name == name]
        if not alike:
            what = "is no edit that" if name in EDITS else "is unknown, and no edit that"
            hint = closest(name, [member.edit.name for member in self.members])
            raise ValueError(f"{name!r} {what} the editor learned{hint} It learned {self}")
        found = get_edit(edit)
        why = {number: self.members[number].why_not(found) for number in alike}
        for number in alike:
            if not why[number]:
                return number, found
        raise ValueError(f"{'; or '.join(why.values())}; the editor learned {self}")

    def condition(self, edit: str | Edit) -> list[float]:
        """What tells the editor which edit is meant: 1 at its number, and its parameters from -1 to 1 at their ranges.

        Raises:
            ValueError: If the edit is not of the family.
        """
        number, found = self.find(edit)
        told = [float(other == number) for other in range(len(self.members))]
        for other, member in enumerate(self.members):
            told += [
                each.scaled(found.values[each.parameter.name]) if other == number else 0.0
                for each in member.ranges
            ]
        return told

    def conditions(self, edit: str | Edit | Sequence[str | Edit] | None, count: int) -> Tensor:
        """The conditions of some INRs, shape (count, width), float64.

        Args:
            edit: The edit of all, or one for each.
            count: Number of INRs.

        Raises:
            ValueError: If an edit is missing or not of the family.
        """
        if edit is None:
            raise ValueError(
                f"edit is missing: the editor learned {self}; say which is meant, as in edit={str(self.examples[0])!r}"
            )
        if isinstance(edit, (str, Edit)):
            return torch.tensor([self.condition(edit)], dtype=torch.float64).expand(count, -1)
        if len(edit) != count:
            raise ValueError(
                f"edit has {len(edit)} edits for {count} INRs, expected one for all or one for each"
            )
        told = {each: self.condition(each) for each in dict.fromkeys(edit)}
        return torch.tensor([told[each] for each in edit], dtype=torch.float64).view(count, self.width)

    def spread(self, count: int) -> Tensor:
        """Conditions for so many INRs that take turns in the edits of the grid."""
        edits = list(itertools.chain(*self.grid()))
        return self.conditions([edits[number % len(edits)] for number in range(count)], count)

    def draw(self, count: int, generator: torch.Generator) -> list[Edit]:
        """Random edits: the members in turn, from a random one on, each with parameters uniform in their ranges."""
        members = len(self.members)
        first = int(torch.randint(members, (), generator=generator))
        most = max(len(member.ranges) for member in self.members)
        drawn = torch.rand(count, most, generator=generator).tolist()
        chosen = [self.members[(first + number) % members] for number in range(count)]
        return [member.at(row[: len(member.ranges)]) for member, row in zip(chosen, drawn, strict=True)]

    @property
    def examples(self) -> list[Edit]:
        """One edit of each member, with its parameters above the middle, which may stand for no change."""
        return [grid[3 * len(grid) // 4] for grid in self.grid()]

    def grid(self) -> list[list[Edit]]:
        """For each member the edits that errors are measured with."""
        return [member.grid() for member in self.members]


def find_family(text: str) -> EditFamily | None:
    """The family that a text stands for; None if it is one edit without ranges.

    Raises:
        ValueError: If it is a family but cannot be read.

    Example:
        >>> find_family("translate(right=3, down=1)") is None
        True
    """
    return EditFamily.read(text) if RANGE in text or len(_parts(text)) > 1 else None


def _parts(text: str) -> list[str]:
    """A text cut at the commas that stand outside parentheses."""
    return re.split(r",(?![^()]*\))", text)


def _range(parameter: Parameter, value: str, text: str) -> ParameterRange:
    """The range that a text stands for."""
    edit = text.partition("(")[0]
    if isinstance(parameter.default, str):
        raise ValueError(
            f"{parameter.name} of the edit {edit!r} is {value!r}, expected {parameter.expected}: words have no range; "
            "write an edit for each"
        )
    low, high = (parameter.check(parameter.read(end), edit) for end in value.partition(RANGE)[::2])
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low >= high:
        raise ValueError(
            f"{parameter.name} of the edit {text!r} goes from {write_value(low)} to {write_value(high)}, expected the "
            "smaller number first; write a single value without '..'"
        )
    return ParameterRange(parameter, low, high)


def _ends(varied: VariedEdit, name: str) -> tuple[float, float]:
    """Least and greatest value of a parameter; of a word its number among the choices."""
    for each in varied.ranges:
        if each.parameter.name == name:
            return each.low, each.high
    value = varied.edit.values[name]
    if isinstance(value, str):
        value = varied.edit.parameter(name).choices.index(value)
    return value, value
