"""The linear layer has exactly as many free parameters as there are independent equivariant linear maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nfn_opt.layers import PerParameterLinear
from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.layers.dimension import (
    average_of_fixed_points,
    generators,
    images,
    matrices,
    null_space_dimension,
)
from tests.layers.spaces import SYMMETRIES, Residual, cnn, hand_made, mlp, space_of

MLP = [nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)]
SMALL: dict[str, Callable[[Symmetry], WeightSpace]] = {
    "one layer": lambda s: space_of(mlp(3, 2), 3, symmetry=s),
    "2-3-2": lambda s: space_of(mlp(2, 3, 2), 2, symmetry=s),
    "2-3-2, no bias": lambda s: space_of(mlp(2, 3, 2, bias=False), 2, symmetry=s),
    "2-3-2-2": lambda s: space_of(mlp(2, 3, 2, 2), 2, symmetry=s),
    "3-2-2-3-2, no bias": lambda s: space_of(mlp(3, 2, 2, 3, 2, bias=False), 3, symmetry=s),
    "widths of 1": lambda s: space_of(mlp(2, 1, 3, 1), 2, symmetry=s),
    "batch norm": lambda s: space_of(nn.Sequential(*MLP), 2, symmetry=s),
    "layer norm": lambda s: space_of(nn.Sequential(MLP[0], nn.LayerNorm(3), *MLP[2:]), 2, symmetry=s),
    "convolutions, pooled": lambda s: space_of(cnn(1, 2, 2, 2, kernel=2), 1, 4, 4, symmetry=s),
    "convolution, flattened": lambda s: space_of(cnn(1, 2, 2, kernel=2, pooled=False), 1, 4, 4, symmetry=s),
    "convolution 1d": lambda s: space_of(nn.Conv1d(2, 3, 2), 2, 4, symmetry=s),
    "convolution 3d": lambda s: space_of(nn.Conv3d(2, 2, (1, 2, 1)), 2, 1, 4, 1, symmetry=s),
    "residual": lambda s: space_of(Residual(1, 4, 1), 1, symmetry=s),
    "residual, no bias": lambda s: space_of(Residual(2, 4, 1, bias=False), 2, symmetry=s),
    "residual of 3": lambda s: space_of(Residual(1, 3, 1), 1, symmetry=s),
    "residual of 2": lambda s: space_of(Residual(2, 2, 1), 2, symmetry=s),
    "square": lambda _: hand_made([("h", "h")], h=4),
    "square of 3": lambda _: hand_made([("h", "h"), ("h",)], h=3),
    "square of 2": lambda _: hand_made([("h", "h")], h=2),
    "square of 1": lambda _: hand_made([("h", "h"), ("h",)], h=1),
    "two squares of 3": lambda _: hand_made([("h", "h"), ("h", "h")], h=3),
    "two small groups": lambda _: hand_made([("a", "a"), ("b", "b"), ("a", "b")], a=2, b=2),
    "recurrent gates": lambda _: hand_made([(".", "h", "h"), (".", "h", "i"), (".", "h")], h=3, i=2),
    "one group on three axes": lambda _: hand_made([("h", "h", "h")], h=3),
    "three axes and a vector": lambda _: hand_made([("h", "h", "h"), ("h",)], h=2),
    "two of three axes": lambda _: hand_made([("h", "a", "h"), ("a",)], h=2, a=3),
    "four axes": lambda _: hand_made([("h", "a", "h", "a")], h=2, a=2),
    "four groups": lambda _: hand_made([("a", "b", "c", "d"), ("a", "c")], a=2, b=2, c=2, d=2),
    "fixed axes between": lambda _: hand_made([("a", ".", "b", "."), (".", "a")], a=2, b=3),
    "grouped": lambda _: hand_made([("a", "d", "b", "d"), ("b", "d"), ("a", "d")], a=2, b=2, d=2),
    "concatenated": lambda _: hand_made([("c", "a+b"), ("a",), ("b",), ("c",)], a=2, b=3, c=2),
    "concatenated twice": lambda _: hand_made([("a+a", "b"), ("a+a",), ("b",)], a=2, b=2),
    "concatenated, both axes": lambda _: hand_made([("a+b", "b+a")], a=2, b=2),
    "part of a square": lambda _: hand_made([("a", "a+b"), ("a",)], a=3, b=2),
    "independent tensors": lambda s: WeightSpace.independent({"a": torch.zeros(2, 3), "b": torch.zeros(3)}),
}
KNOWN = {
    # To itself a weight has 4 maps and a bias 2; to each other two tensors have 1, and 1 more if they share a group.
    ("2-3-2", "all"): 4 + 4 + 2 * 2 + (2 + 2 + 2 + 1) * 2 + 2 + 2 + 1 * 2,
    ("one layer", "hidden"): (3 * 2 + 2) ** 2,
}


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", SMALL)
def test_free_parameters_are_the_dimension_of_the_equivariant_maps(name: str, symmetry: Symmetry) -> None:
    space = SMALL[name](symmetry)
    layer = PerParameterLinear(space, 1, 1)
    assert layer.bias is not None
    weights = sum(weight.numel() for weight in layer.weights.values())
    assert weights == average_of_fixed_points(space, tensors=2)
    assert layer.bias.numel() == average_of_fixed_points(space, tensors=1)
    if space.numel <= 34:
        assert weights == null_space_dimension(space, tensors=2)
        assert layer.bias.numel() == null_space_dimension(space, tensors=1)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", SMALL)
def test_the_maps_are_equivariant_and_independent(name: str, symmetry: Symmetry) -> None:
    space = SMALL[name](symmetry)
    maps = matrices(PerParameterLinear(space, 1, 1, bias=False).double())
    for permutation in generators(space):
        index = images(space, permutation)
        torch.testing.assert_close(maps[:, index][:, :, index], maps, rtol=0, atol=1e-12)
    gram = maps.flatten(1) @ maps.flatten(1).T
    assert torch.linalg.matrix_rank(gram, hermitian=True) == len(maps)


def test_null_spaces_are_taken_for_most_networks() -> None:
    small = [name for name, make in SMALL.items() if make("all").numel <= 34]
    assert len(small) >= 12


@pytest.mark.parametrize(("name", "symmetry"), KNOWN)
def test_known_dimensions(name: str, symmetry: Symmetry) -> None:
    assert null_space_dimension(SMALL[name](symmetry), tensors=2) == KNOWN[name, symmetry]


def test_fewer_constraints_leave_more_maps() -> None:
    space, hidden = SMALL["2-3-2"]("all"), SMALL["2-3-2"]("hidden")
    assert len(generators(space)) == 1 + 2 + 1
    assert len(generators(hidden)) == 2
    assert null_space_dimension(hidden, tensors=2) > null_space_dimension(space, tensors=2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_one_group_on_a_tensor_of_any_order(order: int) -> None:
    """Partitions of the axes of input and output are counted by the Bell numbers 2, 15, 203, 4140."""
    sizes = {1: (2, 3), 2: (2, 3, 4, 5), 3: (2, 3, 6), 4: (2,)}[order]
    for size in sizes:
        space = hand_made([("h",) * order], h=size)
        layer = PerParameterLinear(space, 1, 1)
        weights = sum(weight.numel() for weight in layer.weights.values())
        assert weights == average_of_fixed_points(space, tensors=2)
        if size >= 2 * order:
            assert weights == [2, 15, 203][order - 1]
        assert layer.bias is not None
        assert layer.bias.numel() == average_of_fixed_points(space, tensors=1)
