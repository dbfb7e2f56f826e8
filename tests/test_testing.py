"""The test toolkit: its numbers are right, and its assertions catch layers that break or ignore the symmetry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.layers import NFLinear
from nfn_opt.testing import (
    FeatureMap,
    NetworkKind,
    assert_equivariant,
    assert_invariant,
    assert_sensitive,
    equivariance_error,
    hidden_groups,
    random_features,
    random_network,
    random_space,
    sensitivities,
    sensitivity,
)
from nfn_opt.weight_space import Features, WeightSpace

KINDS: tuple[NetworkKind, ...] = get_args(NetworkKind)


@pytest.fixture
def space() -> WeightSpace:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    return WeightSpace.from_module(model, torch.zeros(1, 3), symmetry="all")


def ordered(features: Mapping[str, Tensor]) -> Features:
    """Depends on the order of the neurons, a little."""
    return {
        n: t + 1e-6 * torch.arange(t.shape[1]).reshape(-1, *[1] * (t.dim() - 2)) for n, t in features.items()
    }


def tensor_by_tensor(features: Mapping[str, Tensor]) -> Features:
    """A Deep Set on every tensor alone: equivariant to far more than the network's symmetry."""
    return {n: t + t.mean(1, keepdim=True) for n, t in features.items()}


def first_row(features: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten(1)[:, :1] for t in features.values()], dim=1)


def sums(features: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten(1).sum(1, keepdim=True) for t in features.values()], dim=1)


class OneTensorAlone(nn.Module):
    """Couples all tensors but one."""

    def __init__(self, space: WeightSpace, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = NFLinear(space, 1, 1, generator=generator).double()

    def forward(self, features: Features) -> Features:
        without = {n: torch.zeros_like(t) if n == "2.bias" else t for n, t in features.items()}
        return {**self.linear(without), "2.bias": features["2.bias"]}


def test_an_ordered_layer_is_caught(space: WeightSpace, generator: torch.Generator) -> None:
    assert 1e-8 < equivariance_error(ordered, space, 2, generator) < 1e-4
    with pytest.raises(AssertionError, match=r"ordered is not equivariant: .* expected at most 1e-10"):
        assert_equivariant(ordered, space, 2, generator)
    assert_equivariant(ordered, space, 2, generator, tolerance=1e-4)


def test_an_ordered_invariant_is_caught(space: WeightSpace, generator: torch.Generator) -> None:
    with pytest.raises(AssertionError, match="first_row is not invariant"):
        assert_invariant(first_row, space, 2, generator)
    assert_invariant(sums, space, 2, generator)


def test_one_permuted_group_of_many_is_enough(space: WeightSpace, generator: torch.Generator) -> None:
    def only_outputs(features: Features) -> Features:
        return {**features, "4.bias": features["4.bias"] * torch.tensor([[1.0], [2.0]])}

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(only_outputs, space, 1, generator, trials=8)
    assert_equivariant(only_outputs, space, 1, generator, groups=hidden_groups(space))


def test_an_uncoupled_layer_is_caught(space: WeightSpace, generator: torch.Generator) -> None:
    assert_equivariant(tensor_by_tensor, space, 2, generator)
    with pytest.raises(
        AssertionError, match=r"does not notice .*0\.weight\[0\].*0\.bias\[0\].*4\.weight\[1\]"
    ):
        assert_sensitive(tensor_by_tensor, space, 2, generator)
    assert_sensitive(NFLinear(space, 2, 3, generator=generator).double(), space, 2, generator)


def test_an_invariant_of_each_tensor_alone_is_caught(space: WeightSpace, generator: torch.Generator) -> None:
    with pytest.raises(AssertionError, match="sums does not notice"):
        assert_sensitive(sums, space, 2, generator)


def test_one_uncoupled_tensor_is_named(space: WeightSpace, generator: torch.Generator) -> None:
    layer = OneTensorAlone(space, generator)
    assert_equivariant(layer, space, 1, generator)
    with pytest.raises(
        AssertionError, match=r"OneTensorAlone does not notice .*: relative change of 2\.bias\[0\]"
    ):
        assert_sensitive(layer, space, 1, generator)
    changes = sensitivities(layer, space, 1, generator)
    assert min(changes, key=lambda axis: changes[axis]) == "2.bias[0]"


def test_axes_that_are_coupled(space: WeightSpace, generator: torch.Generator) -> None:
    assert list(sensitivities(ordered, space, 1, generator)) == [
        "0.weight[0]", "0.bias[0]", "2.weight[1]",
        "2.weight[0]", "2.bias[0]", "4.weight[1]",
        "4.weight[0]", "4.bias[0]",
    ]  # fmt: skip
    assert len(sensitivities(ordered, space, 1, generator, groups=hidden_groups(space))) == 6


@pytest.mark.parametrize(("function", "check", "other"), [
    (sums, assert_equivariant, "assert_invariant"),
    (tensor_by_tensor, assert_invariant, "assert_equivariant"),
])  # fmt: skip
def test_the_wrong_assertion_names_the_right_one(
    function: FeatureMap,
    check: Callable[..., None],
    other: str,
    space: WeightSpace,
    generator: torch.Generator,
) -> None:
    with pytest.raises(AssertionError, match=f"use {other}"):
        check(function, space, 1, generator)


def test_float32_modules_get_float32_features(space: WeightSpace, generator: torch.Generator) -> None:
    layer = NFLinear(space, 2, 3, generator=generator)
    assert 1e-10 < equivariance_error(layer, space, 2, generator) < 1e-5
    assert_equivariant(layer, space, 2, generator)
    assert equivariance_error(layer.double(), space, 2, generator) < 1e-14


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda s, g: equivariance_error(sums, s, 1, g, groups={"h9"}), ValueError, r"\['h9'\].*h1"),
    (lambda s, g: equivariance_error(lambda _: 1.0, s, 1, g), TypeError, "returned a float, expected weight features"),
    (lambda s, g: equivariance_error(lambda x: sums(x) / 0, s, 1, g), ValueError, "not finite"),
    (lambda s, g: random_network(g, "gru"), ValueError, "kind is 'gru', expected one of mlp"),  # type: ignore[arg-type]
])  # fmt: skip
def test_errors(
    call: Callable[..., object],
    error: type[Exception],
    message: str,
    space: WeightSpace,
    generator: torch.Generator,
) -> None:
    with pytest.raises(error, match=message):
        call(space, generator)


def test_nothing_to_be_sensitive_to(generator: torch.Generator) -> None:
    space = WeightSpace.from_module(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no two axes of the weight space share a group"):
        sensitivity(ordered, space, 1, generator)


def test_random_features_agree_over_dtypes(space: WeightSpace) -> None:
    double, single = (
        random_features(space, 2, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    assert all(torch.equal(double[name].float(), single[name]) for name in space.names)


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks_have_the_symmetry_of_their_space(kind: NetworkKind) -> None:
    for seed in range(4):
        model, inputs = random_network(torch.Generator().manual_seed(seed), kind)
        for symmetry in ("hidden", "all"):
            space = WeightSpace.from_module(model, inputs, symmetry=symmetry)
            assert space.verify(model, inputs) < 1e-10


def test_random_networks_are_varied_and_repeatable() -> None:
    state = torch.get_rng_state()
    networks = [random_network(torch.Generator().manual_seed(seed))[0] for seed in range(40)]
    spaces = [random_space(torch.Generator().manual_seed(seed)) for seed in range(40)]
    again = [random_space(torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert torch.equal(state, torch.get_rng_state())
    assert spaces == again
    layers = [layer for network in networks for layer in network.modules()]
    assert {
        "Conv1d",
        "Conv2d",
        "BatchNorm1d",
        "BatchNorm2d",
        "LayerNorm",
        "Flatten",
        "AdaptiveAvgPool2d",
        "GRU",
        "MultiheadAttention",
    } <= {type(layer).__name__ for layer in layers}
    linear = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert {layer.bias is None for layer in linear} == {True, False}
    assert {space.symmetry for space in spaces} == {"hidden", "all"}
    widths = {space[name].shape[0] for space in spaces for name in space.names if name.endswith("weight")}
    assert {1, 17} <= widths
    assert max(len(network.state_dict()) for network in networks) > 10
