"""Equivariant functionals: shapes, symmetry, initial size, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.functionals import EquivariantConfig, EquivariantFunctional
from nfn_opt.testing import assert_equivariant, assert_sensitive, hidden_groups, random_features
from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.functionals.networks import SPACES, cnn, mlp

SMALL: dict[str, Any] = {
    "hidden_channels": 6,
    "hidden_layers": 2,
    "fourier_frequencies": 4,
    "position_bands": 2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels": {"in_channels": 3, "out_channels": 2},
    "without encodings": {"fourier_frequencies": 0, "position_bands": 0},
    "norm": {"norm": True},
    "residual": {"residual": True, "hidden_layers": 3},
    "residual with norm": {"residual": True, "norm": True, "hidden_layers": 3},
    "attention": {"mixing": "attention", "heads": 2, "hidden_layers": 3},
    "pointwise": {"mixing": "pointwise"},
    "one layer": {"hidden_layers": 1, "residual": True},
}
SHARINGS = ("per_parameter", "by_relation")


def functional(space: WeightSpace, generator: torch.Generator, **options: Any) -> EquivariantFunctional:
    config = EquivariantConfig(**{**SMALL, "out_scale": 1.0, **options})
    return EquivariantFunctional(space, config, generator=generator)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("options", OPTIONS)
def test_shapes_and_gradients(options: str, sharing: str, generator: torch.Generator) -> None:
    space = mlp()
    network = functional(space, generator, sharing=sharing, **OPTIONS[options])
    config = network.config
    features = random_features(space, config.in_channels, 3, generator=generator, dtype=torch.float32)
    out = network(features)
    assert {n: t.shape for n, t in out.items()} == {
        spec.name: (3, *spec.view_shape, config.out_channels) for spec in space.parameters
    }
    sum(tensor.square().sum() for tensor in out.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("options", ["plain", "residual with norm", "attention"])
def test_equivariant_and_sensitive(
    options: str, space: str, sharing: str, generator: torch.Generator
) -> None:
    weights = SPACES[space]()
    network = functional(weights, generator, sharing=sharing, **OPTIONS[options]).double()
    assert_equivariant(network, weights, 1, generator)
    assert_sensitive(network, weights, 1, generator)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_pointwise_entries_hear_nothing(sharing: str, generator: torch.Generator) -> None:
    space = mlp()
    network = functional(space, generator, sharing=sharing, mixing="pointwise").double()
    assert_equivariant(network, space, 1, generator)
    features = random_features(space, 1, 1, generator=generator, dtype=torch.float64)
    before = network(features)
    name = space.names[0]
    place = (0,) * features[name].dim()
    features[name] = features[name].index_put(tuple(map(torch.tensor, place)), torch.tensor(9.0).double())
    after = network(features)
    for other in space.names:
        changed = (after[other] != before[other]).nonzero()[:, :-1].unique(dim=0)
        assert changed.tolist() == ([list(place[:-1])] if other == name else [])


@pytest.mark.parametrize("sharing", SHARINGS)
def test_inputs_and_outputs_are_told_apart_by_position_alone(
    sharing: str, generator: torch.Generator
) -> None:
    space = WeightSpace.from_module(
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), torch.zeros(2, 3), symmetry="all"
    )
    without = functional(space, generator, sharing=sharing, position_bands=0).double()
    assert_equivariant(without, space, 1, generator)
    told_apart = functional(space, generator, sharing=sharing).double()
    assert_equivariant(told_apart, space, 1, generator, groups=hidden_groups(space))
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(told_apart, space, 1, generator)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("residual", [False, True])
def test_variance_through_eight_layers(space: str, residual: bool, sharing: str) -> None:
    """With norms, every tensor comes out with a mean square within a factor of 2 of 1, averaged over seeds."""
    weights = SPACES[space]()
    squares = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        options = {"hidden_channels": 32, "hidden_layers": 8, "out_channels": 16, "fourier_frequencies": 16}
        network = functional(weights, generator, sharing=sharing, norm=True, residual=residual, **options)
        features = random_features(weights, 1, 4, generator=generator, dtype=torch.float32)
        with torch.no_grad():
            out = network(features)
        squares.append([tensor.square().mean() for tensor in out.values()])
    means = torch.tensor(squares).mean(0)
    assert means.min() > 0.5, dict(zip(weights.names, means.tolist(), strict=True))
    assert means.max() < 2.0, dict(zip(weights.names, means.tolist(), strict=True))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_change_starts_small(sharing: str, generator: torch.Generator) -> None:
    space = mlp()
    options: dict[str, Any] = {"sharing": sharing, "hidden_channels": 8}
    network = EquivariantFunctional(space, EquivariantConfig(**options), generator=generator)
    features = random_features(space, 1, 8, generator=generator, dtype=torch.float32)
    for tensor in network(features).values():
        assert 0 < tensor.abs().max() < 0.1


def test_the_same_generator_gives_the_same_network() -> None:
    first, second, third = (
        functional(mlp(), torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_weights_are_saved_and_loaded(generator: torch.Generator) -> None:
    space = cnn()
    first, second = functional(space, generator), functional(space, generator)
    second.load_state_dict(first.state_dict())
    features = random_features(space, 1, generator=generator, dtype=torch.float32)
    a, b = first(features), second(features)
    assert all(torch.equal(a[name], b[name]) for name in space.names)


@pytest.mark.parametrize(("option", "value", "message"), [
    ("in_channels", 0, "in_channels is 0, expected 1 or more"),
    ("out_channels", 0, "out_channels is 0, expected 1 or more"),
    ("hidden_channels", -2, "hidden_channels is -2, expected 1 or more"),
    ("hidden_layers", 0, "hidden_layers is 0, expected 1 or more"),
    ("fourier_frequencies", -1, r"fourier_frequencies is -1, expected 0 \(none\) or more"),
    ("position_bands", -1, r"position_bands is -1, expected 0 \(none\) or more"),
    ("sharing", "none", "sharing is 'none', expected 'per_parameter' or 'by_relation'"),
])  # fmt: skip
def test_options_that_are_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquivariantConfig(**{option: value})


def test_weights_of_one_space_refuse_another(generator: torch.Generator) -> None:
    network = functional(mlp(), generator)
    features = random_features(mlp(), 1, generator=generator, dtype=torch.float32)
    assert network(features, space=mlp()).keys() == features.keys()
    symmetry: Symmetry = "all"
    layers = (nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    other = WeightSpace.from_module(nn.Sequential(*layers), torch.zeros(2, 3), symmetry=symmetry)
    with pytest.raises(ValueError, match=r"is different: symmetry='hidden' here, 'all' there.*by_relation"):
        network(features, space=other)
    with pytest.raises(ValueError, match=r"missing 4\.weight, 4\.bias"):
        network(random_features(cnn(), 1, generator=generator, dtype=torch.float32))
