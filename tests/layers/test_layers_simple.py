"""What the layers without couplings compute: pointwise maps, encodings of values and positions, pooling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.layers import (
    ChannelNorm,
    GaussianFourierFeatures,
    InvariantPool,
    LearnedScale,
    Pointwise,
    PositionEmbedding,
    PositionEncoding,
)
from nfn_opt.layers.pooling import Reduction
from nfn_opt.testing import random_features
from nfn_opt.weight_space import Features, Symmetry, WeightSpace
from tests.layers.spaces import SYMMETRIES, cnn, mlp, space_of


@pytest.fixture(params=SYMMETRIES, name="space")
def make_space(request: pytest.FixtureRequest) -> WeightSpace:
    symmetry: Symmetry = request.param
    return space_of(cnn(2, 4, 5, 3), 2, 6, 6, symmetry=symmetry)


def zeros(space: WeightSpace, channels: int = 1, dtype: torch.dtype = torch.float32) -> Features:
    return {s.name: torch.zeros(2, *s.view_shape, channels, dtype=dtype) for s in space.parameters}


def varies(tensor: Tensor, dim: int) -> bool:
    """Whether any two slices differ, and if so, whether all do."""
    slices = tensor.movedim(dim, 0).flatten(1)
    different = [not torch.equal(slices[i], slices[j]) for i in range(len(slices)) for j in range(i)]
    assert all(different) or not any(different)
    return any(different)


def test_pointwise_applies_the_module_to_every_entry(space: WeightSpace, generator: torch.Generator) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    features = random_features(space, 2, generator=generator, dtype=torch.float32)
    out = Pointwise(module)(features)
    assert all(torch.equal(out[n], module(features[n])) for n in space.names)


def test_channel_norm_normalizes_the_channels_of_every_entry(
    space: WeightSpace, generator: torch.Generator
) -> None:
    features = {n: 5 + 3 * t for n, t in random_features(space, 16, generator=generator).items()}
    for tensor in ChannelNorm(16).double()(features).values():
        torch.testing.assert_close(tensor.mean(-1), torch.zeros_like(tensor[..., 0]))
        torch.testing.assert_close(
            tensor.var(-1, correction=0), torch.ones_like(tensor[..., 0]), rtol=1e-4, atol=0
        )


def test_learned_scale_has_a_number_for_each_parameter(
    space: WeightSpace, generator: torch.Generator
) -> None:
    layer = LearnedScale(space, 0.25)
    features = random_features(space, 2, generator=generator, dtype=torch.float32)
    assert all(torch.equal(layer(features)[n], features[n] / 4) for n in space.names)
    with torch.no_grad():
        layer.scale.copy_(torch.arange(len(space.names)))
    assert all(torch.equal(layer(features)[n], features[n] * i) for i, n in enumerate(space.names))
    assert str(layer) == f"LearnedScale({len(space.names)} parameters)"


def test_fourier_features_are_sines_and_cosines(space: WeightSpace, generator: torch.Generator) -> None:
    layer = GaussianFourierFeatures(2, 5, scale=0.5, generator=generator).double()
    features = random_features(space, 2, generator=generator)
    out = layer(features)
    assert layer.out_channels == 10
    x, frequencies = features["0.weight"][1, 2, 0, 1, 1], layer.frequency_matrix
    for j in range(5):
        phase = 2 * math.pi * (x[0] * frequencies[0, j] + x[1] * frequencies[1, j])
        torch.testing.assert_close(out["0.weight"][1, 2, 0, 1, 1, j], phase.sin())
        torch.testing.assert_close(out["0.weight"][1, 2, 0, 1, 1, 5 + j], phase.cos())


def test_fourier_frequencies_are_saved_and_not_trained(generator: torch.Generator) -> None:
    layer = GaussianFourierFeatures(1, 4096, scale=3.0, generator=generator)
    assert layer.frequency_matrix.std() == pytest.approx(3.0, rel=0.05)
    assert not list(layer.parameters())
    other = GaussianFourierFeatures(1, 4096, scale=3.0, generator=generator)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.frequency_matrix, other.frequency_matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_position_encoding_appends_channels(
    space: WeightSpace, dtype: torch.dtype, generator: torch.Generator
) -> None:
    layer = PositionEncoding(space, bands=4)
    assert layer.extra_channels == 9
    features = random_features(space, 2, generator=generator, dtype=dtype)
    for name, tensor in layer(features).items():
        assert tensor.shape == (*features[name].shape[:-1], 2 + 9)
        assert tensor.dtype == dtype
        assert torch.equal(tensor[..., :2], features[name])
        assert tensor.abs().max() < 10
    assert not layer.state_dict()


@pytest.mark.parametrize("kind", ["encoding", "embedding"])
def test_positions_of_all_but_hidden_neurons_are_told_apart(
    kind: str, space: WeightSpace, generator: torch.Generator
) -> None:
    channels = 1 if kind == "encoding" else 4
    layer = (
        PositionEncoding(space) if kind == "encoding" else PositionEmbedding(space, 4, generator=generator)
    )
    out = layer(zeros(space, channels))
    # Axes of the first convolution: hidden, input, kernel row, kernel column; of the last layer: output, hidden.
    expected = {
        "0.weight": [False, True, True, True],
        "0.bias": [False],
        "2.weight": [False, False, True, True],
        "6.weight": [True, False],
        "6.bias": [True],
    }
    for name, told_apart in expected.items():
        assert [varies(out[name], 1 + i) for i in range(len(told_apart))] == told_apart, name
        assert not varies(out[name], 0), "networks of the batch are treated alike"


@pytest.mark.parametrize("kind", ["encoding", "embedding"])
def test_parameters_are_told_apart(kind: str, space: WeightSpace, generator: torch.Generator) -> None:
    layer = (
        PositionEncoding(space) if kind == "encoding" else PositionEmbedding(space, 1, generator=generator)
    )
    out = layer(zeros(space))
    means = torch.stack([tensor.flatten(1, -2).mean((0, 1)) for tensor in out.values()])
    assert varies(means, 0)


def test_an_output_has_one_embedding_in_its_weight_and_its_bias(generator: torch.Generator) -> None:
    space = space_of(mlp(3, 5, 4), 3, symmetry="all")
    layer = PositionEmbedding(space, 2, generator=generator)
    out = layer(zeros(space, 2))
    weight, bias = out["2.weight"][0, :, 0], out["2.bias"][0]
    torch.testing.assert_close(weight - weight[:1], bias - bias[:1])
    assert {tuple(table.shape) for table in layer.axis_tables.values()} == {(3, 2), (4, 2)}
    assert sum(p.numel() for p in layer.parameters()) == (4 + 3 + 4) * 2


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 2.5), ("sum", 10.0), ("max", 4.0)])
def test_pooling_by_hand(reduction: Reduction, expected: float) -> None:
    space = WeightSpace.independent({"w": torch.zeros(2, 2)})
    pool = InvariantPool(space, reduction)
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    out = pool({"w": torch.stack([tensor, -tensor], dim=-1)[None]})
    assert out.tolist() == [[expected, -1.0 if reduction == "max" else -expected]]
    assert str(pool) == f"InvariantPool({reduction})"


def test_pooling_keeps_fixed_axes_apart(space: WeightSpace, generator: torch.Generator) -> None:
    features = random_features(space, 3, 5, generator=generator)
    pool = InvariantPool(space)
    out = pool(features)
    assert out.shape == (5, pool.out_features(3))
    entries = {"all": 9 + 1 + 9 + 1 + 1 + 1, "hidden": 2 * 9 + 1 + 9 + 1 + 3 + 3}
    assert out.shape[1] == 3 * entries[space.symmetry]
    kernel = features["2.weight"].mean((1, 2)).flatten(1)
    start = 3 * (entries[space.symmetry] - (9 + 1 + (1 + 1 if space.symmetry == "all" else 3 + 3)))
    torch.testing.assert_close(out[:, start : start + 27], kernel)
