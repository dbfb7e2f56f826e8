"""Two weight spaces are equal, compatible or different, and the reasons name parameter and axis."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.weight_space import Axis, Symmetry, TensorSpec, WeightSpace
from nfn_opt.weight_space.compare import SHOWN, Comparison

AXES: dict[str, Any] = {"a": ("h1", None), "b": ("h1",), "c": ("h2", "h1"), "d": (["h1", "h2"], None)}
SHAPES = {"a": (4, 3), "b": (4,), "c": (5, 4), "d": (9, 2)}


def described(axes: dict[str, Any] = AXES, shapes: dict[str, Any] = SHAPES, **options: Any) -> WeightSpace:
    return WeightSpace.from_axes(axes, shapes, **options)


def mlp(*widths: int, symmetry: Symmetry = "hidden", norm: bool = False) -> WeightSpace:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out) if norm else nn.Tanh()]
    return WeightSpace.from_module(nn.Sequential(*layers[:-1]), torch.zeros(2, widths[0]), symmetry=symmetry)


def renamed(space: WeightSpace) -> WeightSpace:
    """The space with other names of all axes."""

    def axis(a: Axis) -> Axis:
        return replace(a, name=f"{a.name}'", parts=tuple(tuple(map(axis, part)) for part in a.parts))

    specs: dict[str, Any] = {
        kind: tuple(replace(s, axes=tuple(map(axis, s.axes))) for s in getattr(space, kind))
        for kind in ("parameters", "buffers", "inputs", "outputs")
    }
    return replace(space, **specs)


EQUAL = {
    "MLP": mlp(3, 5, 4, 2),
    "MLP, all": mlp(3, 5, 4, 2, symmetry="all"),
    "norm": mlp(3, 5, 2, norm=True),
    "described": described(),
    "independent": WeightSpace.independent({"w": torch.zeros(2, 3)}),
}


@pytest.mark.parametrize("name", EQUAL)
def test_names_of_groups_are_irrelevant(name: str) -> None:
    space = EQUAL[name]
    assert space != renamed(space)
    assert space.compare(renamed(space)) == Comparison("equal")
    assert str(space.compare(space)) == "equal"


COMPATIBLE = {
    "hidden": (mlp(3, 5, 2), mlp(3, 8, 2), ["0.weight, axis 0: group 'h1' of size 5 here, 'h1' of size 8 there"]),
    "one neuron": (mlp(3, 5, 2), mlp(3, 1, 2), [
        f"{where}: group 'h1' of size 5 here, fixed of size 1 there"
        for where in ("0.weight, axis 0", "0.bias, axis 0", "2.weight, axis 1")
    ]),
    "input": (mlp(3, 5, 2), mlp(4, 5, 2), ["0.weight, axis 1: fixed of size 3 here, fixed of size 4 there"]),
    "in a concatenation": (
        described(), described(shapes={**SHAPES, "c": (6, 4), "d": (10, 2)}),
        ["c, axis 0: group 'h2' of size 5 here, 'h2' of size 6 there"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPATIBLE)
def test_other_widths_are_compatible(name: str) -> None:
    here, there, reasons = COMPATIBLE[name]
    assert here.compare(there) == Comparison("compatible", tuple(reasons))
    assert there.compare(here).verdict == "compatible"


DIFFERENT = {
    "depth": (mlp(3, 5, 2), mlp(3, 5, 5, 2), "4.weight: a parameter there only"),
    "names": (described(), described({**AXES, "e": (None,)}, {**SHAPES, "e": (1,)}), "e: a parameter there only"),
    "symmetry": (mlp(3, 5, 2), mlp(3, 5, 2, symmetry="all"), "symmetry='hidden' here, 'all' there"),
    "fixed": (
        described(), described({**AXES, "a": ("h1", "x")}),
        "a, axis 1: fixed of size 3 here, group 'x' of size 3 there",
    ),
    "split group": (
        described(), described({**AXES, "b": ("other",)}),
        "b, axis 0: the group 'h1' here is 'other' there, but it is 'h1' in a, axis 0",
    ),
    "joined groups": (
        described({**AXES, "c": ("h2", "h3")}), described(),
        "c, axis 1: the group 'h1' there is 'h3' here, but it is 'h1' in a, axis 0",
    ),
    "order of parts": (
        described(), described({**AXES, "d": (["h2", "h1"], None)}),
        "d, axis 0: the group 'h1' here is 'h2' there, but it is 'h1' in a, axis 0",
    ),
    "parts": (
        described(), described({**AXES, "d": (["h1", 5], None)}),
        "d, axis 0: group 'h2' of size 5 here, fixed of size 5 there",
    ),
    "concatenation": (
        described(), described({**AXES, "d": (None, None)}),
        "d, axis 0: the concatenation (h1+h2):9 here, fixed of size 9 there",
    ),
    "role": (
        described(), described(roles={"c": ("in", "out")}), "c, axis 0: role 'out' here, 'in' there",
    ),
    "view": (
        described({"a": (("h1", "h2"),)}, {"a": (6,)}, sizes={"h1": 2}), described({"a": ("h1",)}, {"a": (6,)}),
        "a: (6,) viewed as (h1:2, h2:3) here, (6,) viewed as (h1:6) there",
    ),
    "storage": (
        described({"a": (("h1", "h2"),)}, {"a": (6,)}, sizes={"h1": 2}), described({"a": ("h1", "h2")}, {"a": (2, 3)}),
        "a: (6,) viewed as (h1:2, h2:3) here, (2, 3) viewed as (h1:2, h2:3) there",
    ),
    "order": (
        described(), described(shapes={name: SHAPES[name] for name in "bacd"}),
        "the parameters come in another order: a here where b is there",
    ),
    "ends": (
        described({"a": ("h1", "x")}, {"a": (4, 3)}, symmetry="all"),
        described({"a": ("h1", "x")}, {"a": (4, 3)}, symmetry="all", inputs=[(None, "x")]),
        "a, axis 1: the group 'x' is hidden here, 'x' is one of inputs or outputs there",
    ),
    "buffers": (
        mlp(3, 5, 2, norm=True), replace(mlp(3, 5, 2, norm=True), buffers=()),
        "1.running_mean: a moving buffer here only",
    ),
    "fixed buffer": (
        mlp(3, 5, 2, norm=True),
        replace(mlp(3, 5, 2, norm=True), buffers=(TensorSpec("1.running_mean", (5,), (Axis("f", 5, False),)),)),
        "1.running_mean, axis 0: group 'h1' of size 5 here, fixed of size 5 there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_relations_are_different(name: str) -> None:
    here, there, reason = DIFFERENT[name]
    comparison = here.compare(there)
    assert comparison.verdict == "different"
    assert reason in comparison.reasons
    assert there.compare(here).verdict == "different"


def test_the_first_reasons_are_printed() -> None:
    printed = str(mlp(3, 5, 2).compare(mlp(3, 5, 5, 5, 5, 2))).splitlines()
    assert printed[0] == "different"
    assert len(printed) == SHOWN + 2
    assert printed[-1] == "  and 3 more"
