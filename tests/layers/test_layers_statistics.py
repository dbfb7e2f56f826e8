"""Statistics features: by hand, against torch.quantile and the ``nfn`` package, fixed axes, large tensors."""

from __future__ import annotations

import pytest
import torch
from nfn.layers.misc_layers import StatFeaturizer
from torch import Tensor

from nfn_opt.layers import SpectrumFeatures, StatisticsFeatures
from nfn_opt.layers.statistics import QUANTILES, STATISTICS, statistics
from nfn_opt.testing import assert_invariant, random_features
from nfn_opt.weight_space import WeightSpace
from tests.layers.nfn_weights import to_nfn
from tests.layers.spaces import SYMMETRIES, cnn, mlp, space_of


def slow(entries: Tensor) -> list[float]:
    """Statistics of a vector by torch's own functions."""
    quantiles = torch.quantile(entries, torch.tensor(QUANTILES, dtype=entries.dtype))
    variance = entries.var() if len(entries) > 1 else torch.zeros((), dtype=entries.dtype)
    return [entries.mean().item(), variance.item(), *quantiles.tolist()]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 101])
def test_statistics_are_torchs(count: int, generator: torch.Generator) -> None:
    entries = torch.randn(3, count, 2, generator=generator, dtype=torch.float64)
    got = statistics(entries)
    expected = [[slow(entries[b, :, c]) for c in range(2)] for b in range(3)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_same_as_the_nfn_package(network: str, generator: torch.Generator) -> None:
    space = space_of(mlp(3, 7, 2), 3) if network == "mlp" else space_of(cnn(2, 4, 5, 3), 2, 6, 6)
    features = random_features(space, 3, 4, generator=generator)
    ours = StatisticsFeatures(space)(features)
    theirs = StatFeaturizer()(to_nfn({n: t.float() for n, t in features.items()}))  # (B, C, parameters * 7)
    theirs = theirs.unflatten(2, (-1, STATISTICS)).transpose(1, 2).flatten(1)
    torch.testing.assert_close(ours.float(), theirs)


def test_fixed_axes_are_kept_apart(generator: torch.Generator) -> None:
    space = space_of(cnn(2, 4, 5, 3), 2, 6, 6)
    layer = StatisticsFeatures(space, keep_fixed=True)
    features = random_features(space, 2, 3, generator=generator)
    out = layer(features)
    assert out.shape == (3, layer.out_features(2))
    assert layer.out_features(2) == STATISTICS * 2 * (2 * 9 + 1 + 9 + 1 + 3 + 3)
    first = out[:, : STATISTICS * 2 * 18].reshape(3, 2, 3, 3, 2, STATISTICS)
    kernel = features["0.weight"][1, :, 1, 2, 0, 1]
    torch.testing.assert_close(first[1, 1, 2, 0, 1], torch.tensor(slow(kernel), dtype=torch.float64))


@pytest.mark.parametrize("keep_fixed", [False, True])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_invariant(symmetry: str, keep_fixed: bool, generator: torch.Generator) -> None:
    space = space_of(cnn(2, 4, 5, 3), 2, 6, 6, symmetry=symmetry)  # type: ignore[arg-type]
    assert_invariant(StatisticsFeatures(space, keep_fixed=keep_fixed), space, 2, generator)


def test_parts_of_a_concatenated_axis() -> None:
    """Without fixed axes a tensor is taken whole; with them every cell has statistics of its own."""
    space = WeightSpace.from_axes({"w": (["a", "b", 2], None)}, {"w": (9, 2)}, sizes={"a": 3})
    features = {"w": torch.arange(18.0).reshape(1, 9, 2, 1)}
    assert StatisticsFeatures(space)(features).tolist() == [slow(torch.arange(18.0))]
    kept = StatisticsFeatures(space, keep_fixed=True)(features)
    assert kept.shape == (1, STATISTICS * (2 + 2 + 4))
    assert kept[0, :STATISTICS].tolist() == [2.0, 4.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    assert kept[0, -STATISTICS:].tolist() == [17.0, 0.0, *5 * [17.0]]


def test_gradients(generator: torch.Generator) -> None:
    entries = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(statistics, entries)


@pytest.mark.parametrize("keep_fixed", [False, True])
def test_a_number_without_axes_and_no_networks(keep_fixed: bool) -> None:
    space = WeightSpace.independent({"w": torch.zeros(3, 2), "scale": torch.zeros(())})
    layer = StatisticsFeatures(space, keep_fixed=keep_fixed)
    out = layer({"w": torch.ones(2, 3, 2, 1), "scale": torch.full((2, 1), 4.0)})
    assert out[0, STATISTICS:].tolist() == [4.0, 0.0, *5 * [4.0]]
    nothing = {"w": torch.ones(0, 3, 2, 1), "scale": torch.ones(0, 1)}
    assert layer(nothing).shape == (0, layer.out_features(1))


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_singular_values_are_invariant(symmetry: str, generator: torch.Generator) -> None:
    space = space_of(cnn(2, 4, 5, 3), 2, 6, 6, symmetry=symmetry)  # type: ignore[arg-type]
    assert_invariant(SpectrumFeatures(space, count=3), space, 2, generator)


def test_singular_values(generator: torch.Generator) -> None:
    """Those of each channel's matrix, outputs by inputs and kernel entries; they see more than the entries."""
    space = space_of(cnn(2, 4, 5, 3), 2, 6, 6)
    features = random_features(space, 2, 3, generator=generator)
    layer = SpectrumFeatures(space, count=4)
    out = layer(features)
    assert out.shape == (3, layer.out_features(2))
    assert layer.out_features(2) == 2 * (4 + 4 + 3)
    kernels = features["0.weight"][1, ..., 1].reshape(4, -1)
    torch.testing.assert_close(out[1, 4:8].exp(), torch.linalg.svdvals(kernels), rtol=1e-4, atol=1e-5)
    order = torch.randperm(features["2.weight"][0, ..., 0].numel(), generator=generator)
    mixed = {
        name: value.flatten(1, -2)[:, order].view_as(value) if name == "2.weight" else value
        for name, value in features.items()
    }
    assert (layer(mixed) - out).abs().max() > 0.01
    with pytest.raises(ValueError, match="count is 0"):
        SpectrumFeatures(space, count=0)
