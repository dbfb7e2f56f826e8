"""Every layer respects the permutations of random weight spaces, and the linear ones notice broken couplings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nfn_opt.layers import (
    AttentionPool,
    ChannelNorm,
    GaussianFourierFeatures,
    InvariantPool,
    LatentPool,
    LearnedScale,
    NFAttention,
    NFLinear,
    NFTransformerBlock,
    ParameterNorm,
    Pointwise,
    PositionEmbedding,
    PositionEncoding,
    ResidualBlock,
    StatisticsFeatures,
)
from nfn_opt.testing import NetworkKind, assert_equivariant, assert_invariant, assert_sensitive, hidden_groups
from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.layers.spaces import KINDS, SYMMETRIES, drawn_space

C = 2


@dataclass(frozen=True)
class Case:
    """A layer and what it promises.

    Attributes:
        make: Builds the layer for ``C`` channels.
        invariant: Whether it gives a tensor in place of features.
        sensitive: Whether it combines tensors, and so must notice when they are permuted apart.
        hidden_only: Whether it tells input and output neurons apart on purpose.
        minimum: Smallest relative change when tensors are permuted apart; branches that start small make a small one.
    """

    make: Callable[[WeightSpace, torch.Generator], nn.Module]
    invariant: bool = False
    sensitive: bool = False
    hidden_only: bool = False
    minimum: float = 1e-3


def invariant_network(space: WeightSpace, generator: torch.Generator) -> nn.Module:
    pool = InvariantPool(space)
    linear = NFLinear(space, C, 3, generator=generator)
    return nn.Sequential(linear, Pointwise(nn.Tanh()), pool, nn.LayerNorm(pool.out_features(3)))


LAYERS = {
    "linear per parameter": Case(lambda s, g: NFLinear(s, C, 3, generator=g), sensitive=True),
    "linear by relation": Case(
        lambda s, g: NFLinear(s, C, 3, sharing="by_relation", generator=g), sensitive=True
    ),
    "linear without bias": Case(lambda s, g: NFLinear(s, C, 3, bias=False, generator=g), sensitive=True),
    "two linear layers": Case(
        lambda s, g: nn.Sequential(
            NFLinear(s, C, 3, generator=g), Pointwise(nn.Tanh()), NFLinear(s, 3, 1, generator=g)
        ),
        sensitive=True,
    ),
    "attention": Case(lambda s, g: NFAttention(s, C, 1, generator=g), sensitive=True),
    "transformer block": Case(
        lambda s, g: NFTransformerBlock(s, C, 1, generator=g), sensitive=True, minimum=1e-6
    ),
    "latent pool": Case(lambda s, g: LatentPool(s, C, 3, 4, 2, generator=g), invariant=True),
    "parameter norm": Case(lambda s, g: ParameterNorm(s, C)),
    "attention pool": Case(lambda s, g: AttentionPool(s, C, 1, generator=g), invariant=True),
    "statistics": Case(lambda s, g: StatisticsFeatures(s), invariant=True),
    "residual block": Case(
        lambda s, g: ResidualBlock(NFLinear(s, C, C, generator=g), Pointwise(nn.Tanh())), sensitive=True
    ),
    "pointwise": Case(lambda s, g: Pointwise(nn.Sequential(nn.Linear(C, 3), nn.ReLU()))),
    "channel norm": Case(lambda s, g: ChannelNorm(C)),
    "learned scale": Case(lambda s, g: LearnedScale(s, 0.5)),
    "Fourier features": Case(lambda s, g: GaussianFourierFeatures(C, 4, generator=g)),
    "position encoding": Case(lambda s, g: PositionEncoding(s, 3), hidden_only=True),
    "position embedding": Case(lambda s, g: PositionEmbedding(s, C, generator=g), hidden_only=True),
    "mean pool": Case(lambda s, g: InvariantPool(s), invariant=True),
    "sum pool": Case(lambda s, g: InvariantPool(s, "sum"), invariant=True),
    "max pool": Case(lambda s, g: InvariantPool(s, "max"), invariant=True),
    "invariant network": Case(invariant_network, invariant=True, sensitive=True),
}


def couples_axes(space: WeightSpace) -> bool:
    names = [a.name for spec in space.cells.space.parameters for a in spec.axes if a.permutable]
    return len(names) > len(set(names))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_random_spaces(layer: str, symmetry: Symmetry, kind: NetworkKind, generator: torch.Generator) -> None:
    case = LAYERS[layer]
    for seed in range(6):
        space = drawn_space(seed, kind, symmetry)
        module = case.make(space, generator).double()
        check = assert_invariant if case.invariant else assert_equivariant
        check(module, space, C, generator, groups=hidden_groups(space) if case.hidden_only else None)
        if case.sensitive and couples_axes(space):
            assert_sensitive(module, space, C, generator, minimum=case.minimum)


@pytest.mark.parametrize("layer", [name for name, case in LAYERS.items() if case.hidden_only])
def test_encodings_tell_inputs_and_outputs_apart(layer: str, generator: torch.Generator) -> None:
    space = drawn_space(0, "mlp", "all")
    module = LAYERS[layer].make(space, generator).double()
    for group in set(space.groups) - hidden_groups(space):
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(module, space, C, generator, groups={group})


def test_random_spaces_couple_axes() -> None:
    """Sensitivity is not vacuous: most random spaces have hidden neurons."""
    spaces = [drawn_space(seed, kind, s) for seed in range(6) for kind in KINDS for s in SYMMETRIES]
    assert sum(map(couples_axes, spaces)) > 0.7 * len(spaces)


def test_one_side_with_the_groups_of_two(generator: torch.Generator) -> None:
    """The weight of ``W x`` beside the bias of the layer that makes such weights: both groups are on its out side."""
    axes = {"weight": ("h", "x"), "made": ("h", "x"), "bias": ("h",), "more": ("x",)}
    shapes = {"weight": (5, 3), "made": (5, 3), "bias": (5,), "more": (3,)}
    space = WeightSpace.from_axes(axes, shapes, roles={"made": ("out", "out")})
    layer = NFLinear(space, C, 3, sharing="by_relation", generator=generator).double()
    assert_equivariant(layer, space, C, generator)
    assert_sensitive(layer, space, C, generator)
