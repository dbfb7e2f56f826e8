"""Invariant functionals and the statistics baseline: shapes, symmetry, options, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.functionals import InvariantConfig, InvariantFunctional, StatNN, StatNNConfig
from nfn_opt.testing import assert_invariant, assert_sensitive, random_features, sensitivity
from nfn_opt.weight_space import WeightSpace
from tests.functionals.networks import SPACES, cnn, mlp

SMALL: dict[str, Any] = {
    "hidden_channels": 6, "hidden_layers": 2, "fourier_frequencies": 4, "position_bands": 2,
    "head_width": 16, "out_features": 3,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"pool": "sum"},
    "max": {"pool": "max"},
    "attention": {"pool": "attention", "pool_heads": 2},
    "by relation": {"sharing": "by_relation"},
    "by relation, max": {"sharing": "by_relation", "pool": "max"},
    "residual": {"residual": True, "norm": True},
    "linear head": {"head_layers": 0, "in_channels": 2},
}


def functional(space: WeightSpace, generator: torch.Generator, **options: Any) -> InvariantFunctional:
    return InvariantFunctional(space, InvariantConfig(**{**SMALL, **options}), generator=generator)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("options", OPTIONS)
def test_invariant_and_sensitive(options: str, space: str, generator: torch.Generator) -> None:
    weights = SPACES[space]()
    network = functional(weights, generator, **OPTIONS[options]).double()
    channels = network.config.in_channels
    out = network(random_features(weights, channels, 5, generator=generator))
    assert out.shape == (5, 3)
    assert out.std(0).min() > 1e-3, "networks are told apart"
    assert_invariant(network, weights, channels, generator)
    assert_sensitive(network, weights, channels, generator, minimum=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_reach_all_weights(options: str, generator: torch.Generator) -> None:
    space = cnn()
    network = functional(space, generator, **OPTIONS[options])
    features = random_features(space, network.config.in_channels, generator=generator, dtype=torch.float32)
    network(features).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
def test_size_of_the_head(symmetry: Any, generator: torch.Generator) -> None:
    """NP: one vector a parameter. HNP: one for every input, output and kernel position."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    space = WeightSpace.from_module(model, torch.zeros(2, 3), symmetry=symmetry)
    entries = 4 if symmetry == "all" else 3 + 1 + 4 + 4
    assert functional(space, generator).head[0].in_features == 6 * entries
    assert functional(space, generator, sharing="by_relation").head[0].in_features == 6 * 2


@pytest.mark.parametrize("options", ["attention", "by relation", "residual"])
def test_compiles_in_one_graph(options: str, generator: torch.Generator) -> None:
    network = functional(mlp(), generator, **OPTIONS[options])
    features = random_features(mlp(), 1, generator=generator, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(features), network(features))


def test_dropout_of_the_head(generator: torch.Generator) -> None:
    network = functional(mlp(), generator, head_dropout=0.5)
    features = random_features(mlp(), 1, generator=generator, dtype=torch.float32)
    assert not torch.equal(network(features), network(features))
    network.eval()
    assert torch.equal(network(features), network(features))


@pytest.mark.parametrize("keep_fixed", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_statistics_network(space: str, keep_fixed: bool, generator: torch.Generator) -> None:
    weights = SPACES[space]()
    config = StatNNConfig(in_channels=2, out_features=3, keep_fixed=keep_fixed, width=16)
    network = StatNN(weights, config, generator=generator).double()
    assert network(random_features(weights, 2, 5, generator=generator)).shape == (5, 3)
    assert_invariant(network, weights, 2, generator)
    assert sensitivity(network, weights, 2, generator) < 1e-10, "couplings are beyond statistics"
    numbers = network.statistics.out_features(2)
    assert numbers == 14 * len(weights.names) or keep_fixed
    assert [m.in_features for m in network.head if isinstance(m, nn.Linear)] == [numbers, 16, 16, 16]


def test_statistics_network_refuses(generator: torch.Generator) -> None:
    network = StatNN(mlp(), generator=generator)
    with pytest.raises(ValueError, match=r"expected \(batch, \*axes, channels\) = \(2, 8, 3, 1\)"):
        network(random_features(mlp(), 2, generator=generator, dtype=torch.float32))
    with pytest.raises(ValueError, match="width is 0, expected 1 or more"):
        StatNNConfig(width=0)


@pytest.mark.parametrize(("options", "message"), [
    ({"out_features": 0}, "out_features is 0, expected 1 or more"),
    ({"head_width": 0}, "head_width is 0, expected 1 or more"),
    ({"head_layers": -1}, r"head_layers is -1, expected 0 \(none\) or more"),
    ({"hidden_layers": 0}, "hidden_layers is 0, expected 1 or more"),
    ({"pool": "median"}, "pool is 'median', expected one of mean, sum, max, attention"),
    ({"pool": "attention", "sharing": "by_relation"}, "expected 'mean', 'sum' or 'max' with sharing='by_relation'"),
    ({"head_dropout": 1.0}, "head_dropout is 1.0, expected at least 0 and less than 1"),
])  # fmt: skip
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InvariantConfig(**options)
