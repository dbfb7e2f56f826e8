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
from tests.layers.spaces import SYMMETRIES, Residual, cnn, mlp, space_of

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


@pytest.mark.parametrize("width", [2, 3])
def test_small_squares_have_more_weights_than_maps(width: int) -> None:
    """As the layer's documentation says: fewer entries than blocks of a partition make the maps dependent."""
    space = space_of(Residual(1, width, 1), 1)
    layer = PerParameterLinear(space, 1, 1, bias=False).double()
    maps = matrices(layer).flatten(1)
    rank = int(torch.linalg.matrix_rank(maps @ maps.T, hermitian=True))
    assert rank == average_of_fixed_points(space, tensors=2) < len(maps)
