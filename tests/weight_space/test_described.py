"""Weight spaces written by hand: groups, products, concatenations, sizes, roles, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nfn_opt.testing import NetworkKind, random_network
from nfn_opt.weight_space import Axis, TensorSpec, WeightSpace
from nfn_opt.weight_space.axis_notation import AxisDescription
from tests.weight_space.models import draw, randomised, views

MLP_SHAPES = {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (2, 5), "2.bias": (2,)}
MLP_AXES: dict[str, Any] = {
    "0.weight": ("h", "x"),
    "0.bias": ("h",),
    "2.weight": ("y", "h"),
    "2.bias": ("y",),
}
ENDS: dict[str, Any] = {"inputs": [(None, "x")], "outputs": [(None, "y")]}


def mlp() -> nn.Sequential:
    return randomised(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))


class Normalized(nn.Module):
    """Rescales its hidden neurons by a Python number, and computes their sine in numpy: neither can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.from_numpy(np.sin(x.detach().numpy() / x.abs().max().item()))
        out: Tensor = self.last(x)
        return out


class Attention(nn.Module):
    """Packed queries, keys and values of 2 heads of 3 channels over a stream of 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.packed, self.out = nn.Linear(2, 4), nn.Linear(4, 18), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in self.packed(x).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.head(x + self.out(attended.transpose(1, 2).flatten(2)))
        return out


ATTENTION: dict[str, Any] = {
    "embed.weight": ("stream", None),
    "embed.bias": ("stream",),
    "packed.weight": ([("heads", "qk"), ("heads", "qk"), ("heads", "v")], "stream"),
    "packed.bias": ([("heads", "qk"), ("heads", "qk"), ("heads", "v")],),
    "out.weight": ("stream", ("heads", "v")),
    "out.bias": ("stream",),
    "head.weight": (None, "stream"),
    "head.bias": (None,),
}


class Skip(nn.Module):
    """A concatenating skip over convolutions, a transposed convolution, and a flatten of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
        self.up, self.last = nn.ConvTranspose2d(5, 4, 1), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm(self.a(x)).relu()
        x = self.up(torch.cat([a, self.b(a)], 1)).relu()
        out: Tensor = self.last(x.flatten(1))
        return out


SKIP: dict[str, Any] = {
    "a.weight": ("a", None, None, None),
    "a.bias": ("a",),
    "norm.weight": ("a",),
    "norm.bias": ("a",),
    "norm.running_mean": ("a",),
    "norm.running_var": ("a",),
    "b.weight": ("b", "a", None, None),
    "b.bias": ("b",),
    "up.weight": (["a", "b"], "c", None, None),
    "up.bias": ("c",),
    "last.weight": (None, ("c", 16)),
    "last.bias": (None,),
}


def test_the_description_of_an_mlp_is_the_traced_space() -> None:
    for symmetry in ("hidden", "all"):
        described = WeightSpace.from_axes(MLP_AXES, mlp(), symmetry=symmetry, **ENDS)
        traced = WeightSpace.from_module(mlp(), torch.zeros(4, 3), symmetry=symmetry)
        assert described.compare(traced).verdict == "equal"
        assert described.verify(mlp(), draw(4, 3)) < 1e-10
        assert set(described.groups) == ({"h"} if symmetry == "hidden" else {"h", "x", "y"})


def test_shapes_and_tensors_are_as_good_as_a_module() -> None:
    space = WeightSpace.from_axes(MLP_AXES, MLP_SHAPES, **ENDS)
    assert space == WeightSpace.from_axes(MLP_AXES, dict(mlp().named_parameters()), **ENDS)
    assert space.parameters == WeightSpace.from_axes(MLP_AXES, mlp(), **ENDS).parameters


def test_what_tracing_refuses_can_be_described() -> None:
    model = randomised(Normalized())
    with pytest.raises(ValueError, match="trac"):
        WeightSpace.from_module(model, draw(4, 3))
    axes = {
        "first.weight": ("h", None),
        "first.bias": ("h",),
        "last.weight": (None, "h"),
        "last.bias": (None,),
    }
    space = WeightSpace.from_axes(axes, model)
    assert views(space) == [
        "first.weight (h:5, 3)",
        "first.bias (h:5)",
        "last.weight (2, h:5)",
        "last.bias (2)",
    ]
    assert space.verify(model, draw(4, 3)) < 1e-10


def stored_axes(spec: TensorSpec) -> Iterator[list[Axis]]:
    """The axes as viewed, gathered to those that are stored."""
    axes = iter(spec.axes)
    for size in spec.shape:
        taken = [next(axes)]
        while prod(axis.size for axis in taken) < size:
            taken.append(next(axes))
        yield taken


def written(axes: list[Axis]) -> AxisDescription:
    """The description of one stored axis."""
    parts = axes[0].parts or (tuple(axes),)
    return [tuple(a.name if a.permutable else a.size for a in part) for part in parts]


@pytest.mark.parametrize("kind", get_args(NetworkKind))
@pytest.mark.parametrize("seed", range(4))
def test_descriptions_of_traced_spaces(kind: NetworkKind, seed: int) -> None:
    """Every space that tracing finds can be written down."""
    traced = WeightSpace.from_module(*random_network(torch.Generator().manual_seed(seed), kind))
    axes = {spec.name: [written(axes) for axes in stored_axes(spec)] for spec in traced.parameters}
    roles = {spec.name: [axes[0].role for axes in stored_axes(spec)] for spec in traced.parameters}
    shapes = {spec.name: spec.shape for spec in traced.parameters}
    space = WeightSpace.from_axes(axes, shapes, sizes=traced.groups, roles=roles)
    assert str(replace(traced, buffers=()).compare(space)) == "equal"
    assert space.groups == traced.groups


def test_a_wrong_description_does_not_verify() -> None:
    wrong = {**MLP_AXES, "0.bias": ("other",)}
    with pytest.raises(ValueError, match="permuting the neurons changes an output"):
        WeightSpace.from_axes(wrong, mlp(), **ENDS).verify(mlp(), draw(4, 3))


def test_products_and_packed_heads() -> None:
    model = randomised(Attention())
    space = WeightSpace.from_axes(ATTENTION, model, sizes={"heads": 2})
    assert space.groups == {"stream": 4, "heads": 2, "qk": 3, "v": 3}
    assert space["out.weight"].view_shape == (4, 2, 3)
    assert space.verify(model, draw(2, 5, 2)) < 1e-10
    assert space.cells.space["packed.bias[2]"].view_shape == (2, 3)


def test_concatenations_pictures_and_buffers() -> None:
    model = randomised(Skip())
    space = WeightSpace.from_axes(SKIP, model, roles={"up.weight": ("in", "out", "space", "space")})
    assert space.groups == {"a": 3, "b": 2, "c": 4}
    assert str(space["up.weight"]) == "up.weight ((a+b):5, c:4, 1, 1)"
    assert [axis.role for axis in space["up.weight"].axes] == ["in", "out", "space", "space"]
    assert space["last.weight"].view_shape == (2, 4, 16)
    assert [s.name for s in space.buffers] == [
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert space.verify(model, draw(2, 1, 4, 4)) < 1e-10


def test_tied_parameters_are_described_once() -> None:
    first, last = nn.Linear(3, 5), nn.Linear(3, 5)
    last.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(5, 3, bias=False), last)
    axes: dict[str, Any] = {
        "0.weight": ("h", None),
        "0.bias": ("h",),
        "2.weight": (None, "h"),
        "3.bias": (None,),
    }
    assert WeightSpace.from_axes(axes, model).aliases == (("3.weight", "0.weight"),)
    with pytest.raises(ValueError, match=r"unknown 3\.weight \(the same tensor as 0\.weight\)"):
        WeightSpace.from_axes({**axes, "3.weight": (None, None)}, model)


def test_sizes_follow_from_one_another() -> None:
    axes: dict[str, Any] = {
        "w": (("a", "b", "c"),),
        "v": ("a",),
        "u": (["b", "b", None],),
        "t": (("d", "d"),),
    }
    shapes = {"w": (24,), "v": (3,), "u": (10,), "t": (16,)}
    space = WeightSpace.from_axes(axes, shapes, sizes={"c": 2, "d": 4})
    assert space.groups == {"a": 3, "b": 4, "c": 2, "d": 4}
    assert str(space["u"]) == "u ((b+b+2):10)"
    with pytest.raises(
        ValueError, match=r"t, axis 0 has 16 entries, and d \* d does not tell the sizes of 'd'"
    ):
        WeightSpace.from_axes(axes, shapes, sizes={"c": 2})


def test_fixed_axes() -> None:
    space = WeightSpace.from_axes({"w": ("_rows", "_rows", None, 4, "one")}, {"w": (3, 3, 2, 4, 1)})
    assert str(space.parameters[0]) == "w (3, 3, 2, 4, 1)"
    assert [axis.name for axis in space.parameters[0].axes] == ["_rows", "_rows", "w.2", "w.3", "one"]
    assert not space.groups


@pytest.mark.parametrize(("change", "message"), [
    ({"2.bias": None}, "missing 2.bias. Expected the names 0.weight, 0.bias, 2.weight, 2.bias"),
    ({"3.bias": ("y",)}, "unknown 3.bias"),
    ({"2.weight": ("y", "h", None)}, "2.weight: 3 axes are described, expected 2 as in its shape (2, 5)"),
    ({"2.weight": ("y", "y")}, "2.weight, axis 1 has 5 entries, expected 2 = y, with y = 2 (from 2.weight, axis 0)"),
    ({"2.bias": ("h",)}, "2.bias, axis 0 has 2 entries, expected 5 = h, with h = 5 (from 0.weight, axis 0)"),
    ({"2.weight": ("y", ("a", "b"))}, "2.weight, axis 1 has 5 entries, and a * b does not tell the sizes of 'a', 'b'"),
    ({"2.weight": ("y", ("h", "a", 2))}, "leaves no whole size for 'a' beside h = 5 (from 0.weight, axis 0)"),
    ({"2.weight": ("y", ["h", "a"])}, "2.weight, axis 1 has 5 entries, and h + a leaves no whole size for 'a'"),
])  # fmt: skip
def test_descriptions_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    axes = {name: d for name, d in {**MLP_AXES, **change}.items() if d is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        WeightSpace.from_axes(axes, MLP_SHAPES)


@pytest.mark.parametrize(("description", "message"), [
    ("h", "0.bias: the axes are 'h', expected a sequence with one entry for each axis"),
    ((0,), "0.bias, axis 0 is described by 0, expected a name, None or a positive number"),
    ((1.5,), "0.bias, axis 0 is described by 1.5"),
    (("",), "0.bias, axis 0 is described by ''"),
    ((True,), "0.bias, axis 0 is described by True"),
    (([],), "0.bias, axis 0 is described by []"),
    (((),), "0.bias, axis 0 is described by ()"),
])  # fmt: skip
def test_descriptions_of_another_type(description: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        WeightSpace.from_axes({**MLP_AXES, "0.bias": description}, MLP_SHAPES)


@pytest.mark.parametrize(("options", "message"), [
    ({"sizes": {"k": 3}}, "sizes has 'k', expected names of the description: h, x, y"),
    ({"sizes": {"h": 4}}, "0.weight, axis 0 has 5 entries, expected 4 = h, with h = 4 (from sizes)"),
    ({"roles": {"1.weight": ("in", "out")}}, "roles has '1.weight', expected names of parameters"),
    ({"roles": {"0.weight": ("in",)}}, "0.weight: the roles are ('in',), expected 'out', 'in' or 'space' for each"),
    ({"roles": {"0.weight": ("in", "up")}}, "0.weight: the roles are ('in', 'up')"),
    ({"symmetry": "both"}, "symmetry is 'both', expected 'hidden' (HNP) or 'all' (NP)"),
    ({"symmetry": "all", "inputs": [(None, "t", "x")]}, "input 0, axis 1 is described by t of unknown size"),
])  # fmt: skip
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        WeightSpace.from_axes(MLP_AXES, MLP_SHAPES, **options)
