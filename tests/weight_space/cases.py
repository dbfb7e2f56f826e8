"""Tables of models with the symmetry that each must have."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from nfn_opt.weight_space import Symmetry, WeightSpace
from nfn_opt.weight_space.spec import Axis
from tests.weight_space.models import check, randomised, views


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and its symmetry.

    Attributes:
        model: Makes the model.
        inputs: What it is called with.
        groups: Sizes of the hidden groups, in the order in which the parameters show them.
        ends: The groups of inputs and outputs that there are besides where these may be permuted too.
        axes: Key parameters as they are viewed when only hidden neurons may be permuted, separated by ``"; "``.
    """

    model: Callable[[], nn.Module]
    inputs: Any
    groups: list[int]
    ends: dict[str, int]
    axes: str


def check_case(case: Case, symmetry: Symmetry) -> WeightSpace:
    """The space of a case's model, verified, with the groups and axes that it must have."""
    space = check(case.model(), case.inputs, symmetry)
    hidden = {f"h{i}": size for i, size in enumerate(case.groups, 1)}
    if symmetry == "all":
        assert {name: size for name, size in space.groups.items() if name not in hidden} == case.ends
    assert {name: size for name, size in space.groups.items() if name not in case.ends} == hidden
    if symmetry == "hidden":
        assert [view for view in case.axes.split("; ") if view not in views(space)] == []
    return space


def check_torn(case: Case) -> None:
    """Matrices of a case's model are needed in their groups: without one of them in one, the space does not hold."""
    model = randomised(case.model())
    wrong = list(torn(WeightSpace.from_module(model, case.inputs, symmetry="all")))
    chosen = random.Random(0).sample(wrong, min(6, len(wrong)))
    assert chosen
    assert [what for what, other in chosen if holds(other, model, case.inputs)] == []


def holds(space: WeightSpace, model: nn.Module, inputs: Any) -> bool:
    """Whether a space is one of a model."""
    try:
        space.verify(model, inputs, trials=1)
    except ValueError as error:
        assert "does not belong" in str(error)  # noqa: PT017
        return False
    return True


def torn(space: WeightSpace) -> Iterator[tuple[str, WeightSpace]]:
    """For each matrix and each group that it shares with other parameters, a space in which it does not.

    Vectors are left alone: a bias may have no effect at all, in front of a norm or on the keys of an attention.
    """
    sharing = Counter(name for spec in space.parameters for name in {axis.name for axis in spec.leaves()})
    for index, spec in enumerate(space.parameters):
        shared = {axis.name for axis in spec.leaves() if axis.permutable and sharing[axis.name] > 1}
        for name in sorted(shared) if len(spec.shape) > 1 else ():
            axes = tuple(_renamed(axis, name) for axis in spec.axes)
            parameters = list(space.parameters)
            parameters[index] = replace(spec, axes=axes)
            yield f"{name} of {spec.name}", replace(space, parameters=tuple(parameters))


def _renamed(axis: Axis, name: str) -> Axis:
    if axis.parts:
        return replace(axis, parts=tuple(tuple(_renamed(a, name) for a in part) for part in axis.parts))
    return replace(axis, name="torn") if axis.name == name else axis
