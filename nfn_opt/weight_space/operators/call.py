"""One operator call as its rule sees it, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nfn_opt.weight_space.atoms import Atom, count, cut, fix_all, resolve, unify
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor, fresh

aten = torch.ops.aten


class Call:
    """One operator call as its rule sees it.

    Attributes:
        name: The operator's name, such as ``aten.mm``.
        named: Arguments by name, fully expanded with the schema's defaults for those not given.
        args: The same by position.
        results: The tensors given back.
        former_stride: For an operator that changes the view in place, the strides that its first argument had.
    """

    def __init__(
        self,
        func: Any,
        args: dict[str, Any],
        results: Sequence[Tensor],
        lookup: Callable[[Tensor], TracedTensor],
        roles: dict[tuple[str, int], str],
        former_stride: tuple[int, ...] | None = None,
    ) -> None:
        self.func, self.named, self.results, self._lookup, self._roles = func, args, results, lookup, roles
        self.name = str(func).rsplit(".", 1)[0]
        self.args = list(args.values())
        self.former_stride = former_stride

    @property
    def out(self) -> Tensor:
        """The first result."""
        return self.results[0]

    def tensors(self) -> list[TracedTensor]:
        """All tensor arguments, those inside lists included."""
        flat = [x for arg in self.args for x in (arg if isinstance(arg, list | tuple) else [arg])]
        return [self._lookup(x) for x in flat if isinstance(x, Tensor)]

    def traced(self, position: int) -> TracedTensor:
        """The tensor argument at a position, which may be a stack."""
        return self._lookup(self.args[position])

    def axes(self, position: int) -> list[TracedAxis]:
        """The axes of the tensor argument at a position."""
        return self.traced(position).axes

    def listed(self, position: int) -> list[TracedTensor]:
        """The tensors of the list argument at a position."""
        return [self._lookup(x) for x in self.args[position]]

    def listed_given(self, position: int) -> list[TracedTensor]:
        """The tensors of the list argument at a position whose entries may be left out."""
        return [self._lookup(x) for x in self.args[position] if isinstance(x, Tensor)]

    def given(self, position: int) -> bool:
        """Whether an optional tensor argument is there."""
        return len(self.args) > position and isinstance(self.args[position], Tensor)

    def unify(self, left: TracedAxis, right: TracedAxis) -> None:
        """Record that the operator matches two axes entry by entry."""
        if left.atoms and right.atoms:
            unify(left.atoms, right.atoms, f"{self.name} combines axes that are split differently")

    def unify_all(self, axes: Iterable[TracedAxis]) -> TracedAxis:
        """Record that the operator matches several axes, those of size 1 left aside; gives one of them."""
        there = [axis for axis in axes if axis.atoms]
        for axis in there[1:]:
            self.unify(there[0], axis)
        return there[0] if there else TracedAxis()

    def cut(self, axis: TracedAxis, sizes: Sequence[int]) -> list[TracedAxis] | None:
        """The pieces of an axis, or ``None`` where it cannot be cut, and then is fixed; a piece may be empty."""
        pieces: list[TracedAxis] = []
        rest = axis.roots
        for size in sizes:
            if size == 0 or size == count(rest):
                pieces.append(TracedAxis(rest) if size else TracedAxis((Atom(0),)))
                rest = rest if size == 0 else (Atom(0),)
                continue
            halves = cut(rest, size)
            if halves is None:
                self.fix(axis, f"{self.name} cuts through it")
                return None
            pieces.append(TracedAxis(halves[0]))
            rest = resolve(halves[1])
        return pieces

    def fix(self, axis: TracedAxis, why: str = "") -> None:
        """Record that the operator depends on the order along an axis."""
        fix_all(axis.atoms, why or f"ordered in {self.name}")

    def fix_everything(self, why: str) -> None:
        """Record that nothing is known about how the operator treats its arguments."""
        for tensor in self.tensors():
            for axis in tensor.axes:
                self.fix(axis, why)

    def role(self, axis: TracedAxis, role: str) -> None:
        """Record what a parameter's axis does."""
        for origin in axis.origins:
            self._roles.setdefault(origin, role)

    def ordered(self, shape: Sequence[int]) -> list[TracedAxis]:
        """New fixed axes of the given sizes."""
        return fresh(shape, f"ordered in {self.name}")


@dataclass
class Results:
    """What an operator gives back, where its results do not all have the axes of the first."""

    tensors: list[TracedTensor]


Rule = Callable[[Call], "list[TracedAxis] | Results"]
RULES: dict[Any, Rule] = {}
"""Operator packet to rule. Operators that PyTorch tags as pointwise need no entry."""

Treatment = Literal["whole", "axes", "inside"]
"""What an operator keeps together. ``"whole"``: it moves blocks of entries or matches axes by position, so that two
factors that stay neighbours in all arguments and results are treated alike, even where they are two axes. ``"axes"``:
it tells axes apart but never looks inside one. ``"inside"``: it may treat the factors of one axis differently."""
TREATMENTS: dict[Rule, Treatment] = {}


def rule(*packets: str, treats: Treatment = "inside") -> Callable[[Rule], Rule]:
    """Register a rule for operators of ``torch.ops.aten``, by name; names this PyTorch lacks are passed over."""

    def register(function: Rule) -> Rule:
        TREATMENTS.setdefault(function, treats)
        for name in packets:
            if hasattr(aten, name):
                RULES[getattr(aten, name)] = function
        return function

    return register


def plain(axis: TracedAxis) -> TracedAxis:
    """The axis without its link to a parameter."""
    return TracedAxis(axis.atoms)
