"""Initial weights keep the variance of features through many layers, in every parameter of every space."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.layers import NFLinear, Sharing
from nfn_opt.testing import random_features
from nfn_opt.weight_space import Features, Symmetry, WeightSpace
from tests.layers.spaces import SYMMETRIES, Residual, cnn, hand_made, mlp, space_of

DEPTH, CHANNELS = 8, 64
SHARINGS: tuple[Sharing, ...] = ("per_parameter", "by_relation")
SPACES: dict[str, Callable[[Symmetry], WeightSpace]] = {
    "MLP": lambda s: space_of(mlp(3, 16, 16, 2), 3, symmetry=s),
    "wide, no bias": lambda s: space_of(mlp(40, 64, 48, bias=False), 40, symmetry=s),
    "deep and narrow": lambda s: space_of(mlp(2, *[4] * 12, 1), 2, symmetry=s),
    "deep and wide": lambda s: space_of(mlp(8, *[24] * 8, 8), 8, symmetry=s),
    "widths of 1": lambda s: space_of(mlp(2, 1, 3, 1), 2, symmetry=s),
    "CNN": lambda s: space_of(cnn(1, 8, 8, 10), 1, 5, 5, symmetry=s),
    "flattened CNN": lambda s: space_of(cnn(1, 4, 4, 10, pooled=False), 1, 5, 5, symmetry=s),
    "residual": lambda s: space_of(Residual(3, 16, 2), 3, symmetry=s),
    "narrow residual": lambda s: space_of(Residual(1, 3, 1), 1, symmetry=s),
    "square": lambda _: hand_made([("h", "h")], h=12),
    "square of 2": lambda _: hand_made([("h", "h"), ("h",)], h=2),
    "square of 1": lambda _: hand_made([("h", "h"), ("h",)], h=1),
    "three axes": lambda _: hand_made([("h", "h", "h"), ("h",)], h=6),
    "three axes of 2": lambda _: hand_made([("h", "h", "h"), ("h",)], h=2),
    "concatenated": lambda _: hand_made(
        [("c", "a+b"), ("a",), ("b",), ("c",), ("a", "i")], a=6, b=5, c=8, i=3
    ),
    "grouped": lambda _: hand_made([("a", "d", "b", "d"), ("b", "d"), ("a", "d")], a=4, b=3, d=2),
    "independent": lambda _: hand_made([("a", "b"), ("c",)], a=6, b=5, c=8),
}


def variances(
    space: WeightSpace, sharing: Sharing, activation: Callable[[Tensor], Tensor], generator: torch.Generator
) -> list[dict[str, float]]:
    """Mean square of every parameter's features behind each of 8 layers, for independent inputs of variance 1."""
    features: Features = random_features(space, CHANNELS, 16, generator=generator, dtype=torch.float32)
    found = []
    for _ in range(DEPTH):
        layer = NFLinear(space, CHANNELS, CHANNELS, sharing=sharing, generator=generator)
        with torch.no_grad():
            features = {name: activation(t) for name, t in layer(features).items()}
        found.append({name: float(t.square().mean()) for name, t in features.items()})
    return found


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", SPACES)
def test_variance_stays_within_a_factor_of_2_through_8_layers(
    name: str, symmetry: Symmetry, sharing: Sharing, generator: torch.Generator
) -> None:
    for depth, behind in enumerate(variances(SPACES[name](symmetry), sharing, nn.Identity(), generator)):
        for parameter, variance in behind.items():
            assert 0.5 < variance < 2, f"{parameter} behind layer {depth + 1}"


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", SPACES)
def test_with_an_activation_the_mean_over_parameters_does(
    name: str, sharing: Sharing, generator: torch.Generator
) -> None:
    """A ReLU times the square root of 2 keeps the variance on average over channels, not in every single mean."""
    for behind in variances(SPACES[name]("hidden"), sharing, lambda t: t.relu() * 2**0.5, generator):
        assert 0.4 < sum(behind.values()) / len(behind) < 2.5


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 64), (64, 8), (16, 16)])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_other_numbers_of_channels(
    sharing: Sharing, inputs: int, outputs: int, generator: torch.Generator
) -> None:
    for make in SPACES.values():
        space = make("hidden")
        features = random_features(space, inputs, 32, generator=generator, dtype=torch.float32)
        with torch.no_grad():
            out = NFLinear(space, inputs, outputs, sharing=sharing, generator=generator)(features)
        assert all(0.6 < tensor.square().mean() < 1.5 for tensor in out.values())


@pytest.mark.parametrize("sharing", SHARINGS)
def test_inputs_equal_along_axes_keep_their_variance_too(
    sharing: Sharing, generator: torch.Generator
) -> None:
    """Means are then as large as the entries."""
    for make in SPACES.values():
        space = make("all")
        features = random_features(space, CHANNELS, 64, generator=generator, dtype=torch.float32)
        equal = {
            n: t.flatten(1, -2)[:, :1].view(64, *[1] * (t.dim() - 2), CHANNELS).expand_as(t)
            for n, t in features.items()
        }
        with torch.no_grad():
            out = NFLinear(space, CHANNELS, CHANNELS, sharing=sharing, generator=generator)(equal)
        assert all(0.7 < tensor.square().mean() < 1.4 for tensor in out.values())
