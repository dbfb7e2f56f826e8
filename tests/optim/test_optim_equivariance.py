"""Permuting the neurons and then updating is updating and then permuting, for every rule."""

from __future__ import annotations

import pytest
import torch

from nfn_opt.optim import UpdateRule, make_rule
from nfn_opt.weight_space import WeightSpace
from tests.optim.networks import difference, random_network, random_space
from tests.optim.rule_cases import RULES, draw


@pytest.fixture(params=RULES, name="rule")
def make(request: pytest.FixtureRequest) -> UpdateRule:
    return RULES[request.param]().double().requires_grad_(False)


@pytest.mark.parametrize("seed", range(8))
def test_traced_spaces(rule: UpdateRule, seed: int, generator: torch.Generator) -> None:
    space = random_space(seed)
    assert difference(rule, space, space, generator) < 1e-10


def test_independent_spaces(rule: UpdateRule, generator: torch.Generator) -> None:
    space = WeightSpace.independent(draw(generator))
    assert difference(rule, space, space, generator) < 1e-10


def test_the_measure_sees_a_rule_that_is_not_equivariant(generator: torch.Generator) -> None:
    class Ordered(type(make_rule("sgd"))):  # type: ignore[misc]
        kind = "ordered"

        def update(self, params, grads, *args, **kwargs):  # type: ignore[no-untyped-def]
            updates, state = super().update(params, grads, *args, **kwargs)
            return {n: u * torch.arange(u.numel()).reshape(u.shape) for n, u in updates.items()}, state

    space = WeightSpace.independent(draw(generator))
    assert difference(Ordered().double().requires_grad_(False), space, space, generator) > 1e-3


def test_networks_are_varied() -> None:
    kinds = {type(layer).__name__ for seed in range(8) for layer in random_network(seed)[0].children()}
    assert {"Linear", "Conv2d", "Flatten", "BatchNorm1d"} <= kinds
