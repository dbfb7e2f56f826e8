"""What does not fit is refused by name, in every layer that knows its weight space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.layers import (
    InvariantPool,
    LearnedScale,
    NFLinear,
    PerParameterLinear,
    PositionEmbedding,
    PositionEncoding,
    RelationLinear,
)
from nfn_opt.testing import random_features
from nfn_opt.weight_space import Features, WeightSpace
from tests.layers.spaces import mlp, space_of

LAYERS: dict[str, Callable[[WeightSpace], nn.Module]] = {
    "per parameter": lambda s: PerParameterLinear(s, 2, 3),
    "by relation": lambda s: RelationLinear(s, 2, 3),
    "position embedding": lambda s: PositionEmbedding(s, 2),
    "position encoding": PositionEncoding,
    "learned scale": LearnedScale,
    "pool": InvariantPool,
}
WITH_WEIGHTS = ("per parameter", "by relation", "position embedding")


@pytest.fixture
def space() -> WeightSpace:
    return space_of(mlp(3, 5, 2), 3)


def without(features: Features, name: str) -> Features:
    return {n: t for n, t in features.items() if n != name}


def each(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    return {n: change(t) for n, t in features.items()}


MISFITS: dict[str, tuple[Callable[[Features], Mapping[str, Any]], str]] = {
    "missing": (lambda f: without(f, "2.bias"), "missing 2.bias"),
    "unknown": (lambda f: {**f, "4.bias": f["2.bias"]}, "unknown 4.bias"),
    "shape": (lambda f: {**f, "2.weight": f["2.weight"][:, :, 1:]}, r"2\.weight have shape \(2, 2, 4, 2\)"),
    "batch": (lambda f: {**f, "0.bias": f["0.bias"][:1]}, r"0\.bias have shape \(1, 5, 2\)"),
    "mixed dtypes": (lambda f: {**f, "2.bias": f["2.bias"].double()}, r"2\.bias are torch.float64"),
    "mixed devices": (lambda f: {**f, "2.bias": f["2.bias"].to("meta")}, r"2\.bias are .* on meta"),
}
WEIGHT_MISFITS: dict[str, tuple[Callable[[Features], Features], str]] = {
    "channels": (lambda f: each(f, lambda t: t[..., :1]), r"expected .* = \(2, 5, 3, 2\)"),
    "dtype": (
        lambda f: each(f, lambda t: t.double()),
        "features are torch.float64 .* expected torch.float32",
    ),
    "device": (lambda f: each(f, lambda t: t.to("meta")), "torch.float32 on meta, expected .* on cpu"),
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("layer", LAYERS)
def test_features_of_another_space(
    layer: str, misfit: str, space: WeightSpace, generator: torch.Generator
) -> None:
    change, message = MISFITS[misfit]
    features = random_features(space, 2, generator=generator, dtype=torch.float32)
    module = LAYERS[layer](space)
    module(features)
    with pytest.raises(ValueError, match=message):
        module(change(features))


@pytest.mark.parametrize("misfit", WEIGHT_MISFITS)
@pytest.mark.parametrize("layer", WITH_WEIGHTS)
def test_features_that_do_not_fit_the_weights(
    layer: str, misfit: str, space: WeightSpace, generator: torch.Generator
) -> None:
    change, message = WEIGHT_MISFITS[misfit]
    with pytest.raises(ValueError, match=message):
        LAYERS[layer](space)(change(random_features(space, 2, generator=generator, dtype=torch.float32)))


def test_another_space_by_argument(space: WeightSpace, generator: torch.Generator) -> None:
    features = random_features(space, 2, generator=generator, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"missing 4\.weight, 4\.bias"):
        RelationLinear(space, 2, 3)(features, space=space_of(mlp(3, 5, 4, 2), 3))


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((0, 3), {}, "in_channels is 0, expected at least 1"),
    ((2, -1), {}, "out_channels is -1, expected at least 1"),
    ((2, 3), {"sharing": "none"}, "sharing is 'none', expected 'per_parameter' or 'by_relation'"),
])  # fmt: skip
def test_options(
    arguments: tuple[int, int], options: dict[str, Any], message: str, space: WeightSpace
) -> None:
    with pytest.raises(ValueError, match=message):
        NFLinear(space, *arguments, **options)


def test_other_options(space: WeightSpace) -> None:
    with pytest.raises(ValueError, match="bands is 0, expected at least 1"):
        PositionEncoding(space, 0)
    with pytest.raises(ValueError, match="reduction is 'median', expected 'mean', 'sum' or 'max'"):
        InvariantPool(space, "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [torch.zeros(2, 3), None, nn.Linear(2, 3)])
def test_features_that_are_no_dict(given: object) -> None:
    layer = NFLinear(WeightSpace.independent({"w": torch.zeros(2, 3)}), 1, 1)
    with pytest.raises(TypeError, match=rf"features is a {type(given).__name__}, expected weight features"):
        layer(given)
