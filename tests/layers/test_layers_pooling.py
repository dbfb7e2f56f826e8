"""Attention pooling and pooling by kind: against slow loops, the ``nfn`` package and the plain pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nfn.common import network_spec_from_wsfeat
from nfn.layers import HNPPool, NPPool

from nfn_opt.layers import AttentionPool, InvariantPool, SharedPool
from nfn_opt.testing import assert_invariant, random_features
from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.layers.nfn_weights import to_nfn
from tests.layers.spaces import SYMMETRIES, cnn, mlp, space_of

CONCATENATED = WeightSpace.from_axes(
    {"v": ("a",), "w": (["a", "b", 2], "a", None), "u": ("a", ("b", 2))},
    {"v": (3,), "w": (9, 3, 2), "u": (3, 8)},
)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_means_are_those_of_the_nfn_package(
    network: str, symmetry: Symmetry, generator: torch.Generator
) -> None:
    model, shape = (mlp(3, 7, 5, 2), (3,)) if network == "mlp" else (cnn(2, 4, 5, 3), (2, 6, 6))
    space = space_of(model, *shape, symmetry=symmetry)
    features = random_features(space, 3, 4, generator=generator)
    theirs = to_nfn(features)
    pool: Any = (NPPool if symmetry == "all" else HNPPool)(network_spec_from_wsfeat(theirs))
    expected = pool(theirs).transpose(1, 2).flatten(1)  # (B, C, entries) to (B, entries * C)
    torch.testing.assert_close(InvariantPool(space)(features), expected)


def slow_attention(pool: AttentionPool, tensor: torch.Tensor, query: torch.Tensor) -> list[float]:
    """Attention over the entries (entries, C) of one tensor of one network."""
    width = pool.channels // pool.heads
    out = []
    for head in range(pool.heads):
        scores = torch.stack([entry @ query[:, head] for entry in tensor]) / pool.channels**0.5
        values = tensor[:, head * width : (head + 1) * width]
        out += (scores.softmax(0)[:, None] * values).sum(0).tolist()
    return out


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_by_hand(heads: int, generator: torch.Generator) -> None:
    space = space_of(cnn(2, 4, 5, 3), 2, 6, 6)
    pool = AttentionPool(space, 4, heads, generator=generator).double()
    features = random_features(space, 4, 2, generator=generator)
    out = pool(features)
    assert out.shape == (2, pool.out_features(4)) == (2, InvariantPool(space).out_features(4))
    first = out[:, : 18 * 4].reshape(2, 2, 3, 3, 4)
    for i, row, column in ((0, 0, 0), (1, 2, 1)):
        entries = features["0.weight"][1, :, i, row, column]
        expected = slow_attention(pool, entries, pool.queries[0])
        torch.testing.assert_close(first[1, i, row, column].tolist(), expected)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_attention_of_no_preference_is_the_mean(symmetry: Symmetry, generator: torch.Generator) -> None:
    for space in (space_of(cnn(2, 4, 5, 3), 2, 6, 6, symmetry=symmetry), CONCATENATED):
        pool = AttentionPool(space, 4, 2).double()
        torch.nn.init.zeros_(pool.queries)
        features = random_features(space, 4, generator=generator)
        torch.testing.assert_close(pool(features), InvariantPool(space)(features))


def test_parts_of_a_concatenated_axis_are_pooled_apart() -> None:
    tensor = torch.arange(54.0).reshape(1, 9, 3, 2, 1)
    features = {"v": torch.zeros(1, 3, 1), "w": tensor, "u": torch.zeros(1, 3, 4, 2, 1)}
    out = InvariantPool(CONCATENATED)(features)
    assert out.shape == (1, InvariantPool(CONCATENATED).out_features(1))
    parts = [tensor[:, :3].mean((1, 2)), tensor[:, 3:7].mean((1, 2)), tensor[:, 7:].mean(2)]
    assert out[0, 1:-2].tolist() == torch.cat([part.flatten() for part in parts]).tolist()


@pytest.mark.parametrize("pool", [
    InvariantPool(CONCATENATED),
    InvariantPool(CONCATENATED, "max"),
    AttentionPool(CONCATENATED, 2, 2).double(),
    SharedPool(CONCATENATED),
    SharedPool(CONCATENATED, "sum"),
])  # fmt: skip
def test_invariant_on_concatenated_axes(pool: torch.nn.Module, generator: torch.Generator) -> None:
    assert_invariant(pool, CONCATENATED, 2, generator)


def test_shared_pool_of_any_space(generator: torch.Generator) -> None:
    here, there = space_of(mlp(3, 5, 2), 3), space_of(cnn(2, 4, 5, 3), 2, 6, 6)
    pool = SharedPool(here, "max")
    features = random_features(there, 2, 3, generator=generator)
    out = pool(features, there)
    assert out.shape == (3, pool.out_features(2)) == (3, 4)
    largest = {name: tensor.flatten(1, -2).amax(1) for name, tensor in features.items()}
    biases = (largest["0.bias"] + largest["2.bias"] + largest["6.bias"]) / 3
    torch.testing.assert_close(out[:, :2], biases)
    with pytest.raises(ValueError, match=r"missing 2\.weight, 2\.bias"):
        pool(random_features(space_of(mlp(3, 5), 3), 2, generator=generator))


def test_a_kind_that_does_not_occur_gives_zeros(generator: torch.Generator) -> None:
    space = space_of(mlp(3, 5, 2, bias=False), 3)
    out = SharedPool(space)(random_features(space, 2, generator=generator))
    assert not out[:, :2].any()
    assert out[:, 2:].all()


@pytest.mark.parametrize(("channels", "heads"), [(4, 3), (4, 0), (0, 1)])
def test_attention_heads_divide_channels(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"channels is {channels} and heads {heads}, expected positive"):
        AttentionPool(CONCATENATED, channels, heads)


def test_attention_pool_of_no_networks() -> None:
    space = WeightSpace.independent({"w": torch.zeros(5, 3), "scale": torch.zeros(())})
    pool = AttentionPool(space, 4, heads=2)
    assert pool({"w": torch.ones(0, 5, 3, 4), "scale": torch.ones(0, 4)}).shape == (0, 8)
