"""Whether two weight spaces are equal, have the same relations in other widths, or differ, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nfn_opt.weight_space.space import WeightSpace
    from nfn_opt.weight_space.spec import Axis, TensorSpec

Verdict = Literal["equal", "compatible", "different"]
SHOWN = 5
"""How many reasons are printed."""


@dataclass(frozen=True)
class Comparison:
    """What :meth:`WeightSpace.compare` finds.

    Attributes:
        verdict: ``"equal"``: the same parameters, sizes and groups, whatever the groups' names. ``"compatible"``: the
            same parameters and groups, in other sizes. ``"different"``: anything else.
        reasons: What is not equal, in the order of the parameters; if the verdict is ``"different"``, only what makes
            it so.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = [f"  {reason}" for reason in self.reasons[:SHOWN]]
        more = len(self.reasons) - SHOWN
        return "\n".join([self.verdict, *shown, *([f"  and {more} more"] if more > 0 else [])])


def compare(here: WeightSpace, there: WeightSpace) -> Comparison:
    """See :meth:`WeightSpace.compare`."""
    matcher = _Matcher(here, there)
    differences, widths = list(_of_spaces(here, there)), list[str]()
    for kind in ("parameters", "buffers"):
        others = {spec.name: spec for spec in getattr(there, kind)}
        for spec in getattr(here, kind):
            if spec.name in others and (kind == "parameters" or _moves(spec) or _moves(others[spec.name])):
                for fundamental, reason in matcher.tensors(spec, others[spec.name]):
                    (differences if fundamental else widths).append(reason)
    if differences:
        return Comparison("different", tuple(differences))
    return Comparison("compatible", tuple(widths)) if widths else Comparison("equal")


def _moves(spec: TensorSpec) -> bool:
    return any(axis.permutable for axis in spec.leaves())


def _of_spaces(here: WeightSpace, there: WeightSpace) -> Iterator[str]:
    """What differs in names, order and symmetry."""
    if here.symmetry != there.symmetry:
        yield f"symmetry={here.symmetry!r} here, {there.symmetry!r} there"
    moving = [[spec.name for spec in space.buffers if _moves(spec)] for space in (here, there)]
    for what, a, b in (("parameter", here.names, there.names), ("moving buffer", *moving)):
        known = {s.name for s in here.buffers}, {s.name for s in there.buffers}
        yield from (f"{name}: a {what} here only" for name in a if name not in b and name not in known[1])
        yield from (f"{name}: a {what} there only" for name in b if name not in a and name not in known[0])
    if sorted(here.names) == sorted(there.names) and here.names != there.names:
        first = next(
            (a, b) for a, b in zip_longest(here.names, there.names) if a != b
        )  # so that layers built for either count the parameters alike
        yield f"the parameters come in another order: {first[0]} here where {first[1]} is there"


class _Matcher:
    """Matches the groups of two spaces one to one, in the order in which their axes meet."""

    def __init__(self, here: WeightSpace, there: WeightSpace) -> None:
        self._ends = (_ends(here), _ends(there))
        self._met: tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]] = ({}, {})

    def tensors(self, a: TensorSpec, b: TensorSpec) -> Iterator[tuple[bool, str]]:
        """Reasons, and whether each is more than a size."""
        if len(a.axes) != len(b.axes) or len(a.shape) != len(b.shape) or _stored_otherwise(a, b):
            yield True, f"{a.name}: {_form(a)} here, {_form(b)} there"
            return
        for position, (x, y) in enumerate(zip(a.axes, b.axes, strict=True)):
            yield from self._axes(x, y, f"{a.name}, axis {position}")

    def _axes(self, a: Axis, b: Axis, where: str) -> Iterator[tuple[bool, str]]:
        if a.role != b.role:
            yield True, f"{where}: role {a.role!r} here, {b.role!r} there"
        elif [len(part) for part in a.parts] != [len(part) for part in b.parts]:
            yield True, f"{where}: {_kind(a)} here, {_kind(b)} there"
        elif a.parts:
            for parts in zip(a.parts, b.parts, strict=True):
                for x, y in zip(*parts, strict=True):
                    yield from self._axes(x, y, where)
        elif a.permutable and b.permutable:
            yield from self._groups(a, b, where)
        elif a.permutable != b.permutable:
            # A group of one entry counts as fixed.
            yield 1 not in (a.size, b.size), f"{where}: {_kind(a)} here, {_kind(b)} there"
        elif a.size != b.size:
            yield False, f"{where}: {_kind(a)} here, {_kind(b)} there"

    def _groups(self, a: Axis, b: Axis, where: str) -> Iterator[tuple[bool, str]]:
        for side, (x, y) in enumerate(((a.name, b.name), (b.name, a.name))):
            known, place = self._met[side].setdefault(x, (y, where))
            if known != y:
                here, there = ("here", "there") if side == 0 else ("there", "here")
                yield (
                    True,
                    f"{where}: the group {x!r} {here} is {y!r} {there}, but it is {known!r} in {place}",
                )
                return
        first = self._met[0][a.name][1] == where
        if a.size != b.size and first:
            yield False, f"{where}: {_kind(a)} here, {b.name!r} of size {b.size} there"
        ends = a.name in self._ends[0], b.name in self._ends[1]
        if ends[0] != ends[1] and first:
            words = ["is one of inputs or outputs" if end else "is hidden" for end in ends]
            yield True, f"{where}: the group {a.name!r} {words[0]} here, {b.name!r} {words[1]} there"


def _ends(space: WeightSpace) -> set[str]:
    """Groups of inputs and outputs."""
    specs = (*space.inputs, *space.outputs)
    return {axis.name for spec in specs for axis in spec.leaves() if axis.permutable}


def _stored_otherwise(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether the same view is stored in different shapes."""
    return a.view_shape == b.view_shape and a.shape != b.shape


def _form(spec: TensorSpec) -> str:
    return f"{spec.shape} viewed as ({', '.join(str(axis) for axis in spec.axes)})"


def _kind(axis: Axis) -> str:
    if axis.parts:
        return f"the concatenation {axis}"
    return f"group {axis.name!r} of size {axis.size}" if axis.permutable else f"fixed of size {axis.size}"
