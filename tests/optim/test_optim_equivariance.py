"""Permuting the neurons and then updating is updating and then permuting, for every rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nfn_opt.optim import UpdateRule, make_rule
from nfn_opt.weight_space import WeightSpace
from tests.optim.networks import random_network, random_space
from tests.optim.rule_cases import RULES, draw, run


@pytest.fixture(params=RULES, name="rule")
def make(request: pytest.FixtureRequest) -> UpdateRule:
    return RULES[request.param]().double().requires_grad_(False)


def draw_like(space: WeightSpace, generator: torch.Generator) -> dict[str, Tensor]:
    return {s.name: torch.randn(s.shape, generator=generator, dtype=torch.float64) for s in space.parameters}


def difference(
    rule: UpdateRule, space: WeightSpace, acting: WeightSpace, generator: torch.Generator
) -> float:
    """Relative difference of the two orders after three updates, for a random permutation of ``acting``."""
    params, gradients = draw_like(space, generator), [draw_like(space, generator) for _ in range(3)]
    permutation = acting.random_permutation(generator)
    after, _ = run(rule, space, params, gradients)
    permuted = [acting.permute(tensors, permutation) for tensors in (params, *gradients)]
    got, _ = run(rule, space, permuted[0], permuted[1:])
    expected = acting.permute(after, permutation)
    moved = {name: expected[name] - permuted[0][name] for name in expected}
    size = max(m.abs().max().item() for m in moved.values())
    return max((got[n] - expected[n]).abs().max().item() for n in expected) / size


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
