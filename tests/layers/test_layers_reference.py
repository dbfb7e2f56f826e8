"""The linear layer equals the papers' equations, written out entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.layers import PerParameterLinear
from nfn_opt.testing import random_features
from nfn_opt.weight_space import Features, Symmetry, WeightSpace
from tests.layers.blocks import load_blocks
from tests.layers.reference import Coefficients, Literal, LiteralHNP, LiteralNP
from tests.layers.spaces import SYMMETRIES, cnn, mlp, space_of

C_IN, C_OUT = 2, 3
NETWORKS = {
    "2 layers": (mlp(2, 3, 4), (2,)),
    "3 layers": (mlp(3, 2, 4, 2), (3,)),
    "5 layers": (mlp(2, 3, 2, 4, 3, 2), (2,)),
    "conv, pooled": (cnn(2, 3, 4, kernel=2), (2, 4, 4)),
    "2 convs, pooled": (cnn(3, 2, 4, 2), (3, 4, 4)),
    "2 convs, flattened": (cnn(2, 3, 2, 4, pooled=False), (2, 4, 4)),
    "convs alone": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1)), (2, 8)),
}


def literal(space: WeightSpace, features: Features, generator: torch.Generator) -> Literal:
    """The equations for the networks in weight features."""
    names = list(zip(space.names[::2], space.names[1::2], strict=True))
    fixed = {n: features[n][0, 0, 0, ..., 0].numel() if n.endswith("weight") else 1 for n in space.names}
    kind = LiteralNP if space.symmetry == "all" else LiteralHNP
    return kind(
        names,
        [features[weight].flatten(3) for weight, _ in names],
        [features[bias] for _, bias in names],
        Coefficients({n: size * C_OUT for n, size in fixed.items()}, generator),
    )


def difference(space: WeightSpace, generator: torch.Generator) -> float:
    """Largest relative difference between the layer and the equations, with random coefficients."""
    features = random_features(space, C_IN, 2, generator=generator)
    slow = literal(space, features, generator)
    expected: dict[str, Tensor] = slow.evaluate()
    layer = PerParameterLinear(space, C_IN, C_OUT).double()
    load_blocks(layer, slow.coefficients.blocks(), slow.coefficients.joined_constants())
    with torch.no_grad():
        got = layer(features)
    return max(
        float((got[n] - expected[n].view_as(got[n])).abs().max() / expected[n].abs().max())
        for n in space.names
    )


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_equations(name: str, symmetry: Symmetry, generator: torch.Generator) -> None:
    model, shape = NETWORKS[name]
    assert difference(space_of(model, *shape, symmetry=symmetry), generator) < 1e-10


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_equations_for_random_widths(seed: int, symmetry: Symmetry) -> None:
    generator = torch.Generator().manual_seed(seed)
    depth = int(torch.randint(2, 7, (), generator=generator))
    widths = torch.randint(2, 9, (depth + 1,), generator=generator).tolist()
    assert difference(space_of(mlp(*widths), widths[0], symmetry=symmetry), generator) < 1e-10
