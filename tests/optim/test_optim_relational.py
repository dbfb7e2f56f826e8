"""The normalised rule with neighbours: what the neighbours add, and that nothing else is added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.layers import RelationLinear
from nfn_opt.optim import MLPConfig, MLPRule, RelationalRule, make_rule
from nfn_opt.weight_space import WeightSpace
from tests.optim.networks import difference, draw_like, random_space
from tests.optim.rule_cases import draw, run

MODEL = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7))
SPACE = WeightSpace.from_module(MODEL, torch.zeros(1, 6))


def frozen(**options: Any) -> RelationalRule:
    rule = make_rule("relational", **options).double().requires_grad_(False)
    assert isinstance(rule, RelationalRule)
    return rule


def test_without_neighbours_it_is_celo2_base(generator: torch.Generator) -> None:
    rule, celo2 = frozen(neighbours=False), MLPRule(MLPConfig.celo2_base()).double().requires_grad_(False)
    params, gradients = draw(generator), [draw(generator) for _ in range(3)]
    space = WeightSpace.independent(params)
    one, other = (run(r, space, params, gradients) for r in (rule, celo2))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_both_forms_have_the_same_network_for_each_weight() -> None:
    with_, without = (dict(frozen(neighbours=n).named_parameters()) for n in (True, False))
    assert with_.keys() - without.keys() == {"neighbours.weight"}
    torch.testing.assert_close({n: with_[n] for n in without}, without, rtol=0, atol=0)


def test_starts_close_to_the_network_for_each_weight(generator: torch.Generator) -> None:
    params, grads = draw_like(SPACE, generator), draw_like(SPACE, generator)
    for scale, low, high in ((0.1, 1e-4, 0.1), (0.0, -1.0, 1e-12)):
        rules = frozen(neighbour_scale=scale), frozen(neighbours=False)
        one, other = (run(rule, SPACE, params, [grads])[0] for rule in rules)
        apart = torch.cat([(one[n] - other[n]).flatten() for n in params]).norm()
        moved = torch.cat([(other[n] - params[n]).flatten() for n in params]).norm()
        assert low < apart / moved < high


def test_neighbours_are_heard(generator: torch.Generator) -> None:
    """A change of one tensor's gradient reaches all others, if there are neighbours."""
    params, grads = draw_like(SPACE, generator), draw_like(SPACE, generator)
    other = {**grads, "2.weight": grads["2.weight"].flip(0)}
    for neighbours in (True, False):
        rule = frozen(neighbours=neighbours)
        one, two = (run(rule, SPACE, params, [g])[0] for g in (grads, other))
        heard = [not torch.equal(one[n], two[n]) for n in params if n != "2.weight"]
        assert all(heard) if neighbours else not any(heard)
        assert rule.coupled == neighbours


def test_symmetry_of_the_network_and_no_more(generator: torch.Generator) -> None:
    rule, loose = frozen(neighbour_scale=3.0), WeightSpace.independent(draw_like(SPACE, generator))
    assert difference(rule, SPACE, SPACE, generator) < 1e-10
    assert difference(rule, SPACE, loose, generator) > 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_one_rule_serves_every_architecture(seed: int, generator: torch.Generator) -> None:
    space = random_space(seed)
    assert difference(frozen(neighbour_scale=3.0), space, space, generator) < 1e-10


@pytest.mark.parametrize(
    "shapes", [{"a": ()}, {"a": (3,)}, {"a": (), "b": (2,)}, {"a": (2, 3, 3, 2)}], ids=str
)
def test_small_spaces(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    """A tensor that hears nothing is updated by its own network."""
    params = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    space, rule = WeightSpace.independent(params), frozen()
    once, _ = run(rule, space, params, [params])
    batched = torch.func.vmap(lambda p: run(rule, space, p, [p])[0])({n: p[None] for n, p in params.items()})
    torch.testing.assert_close({n: p[0] for n, p in batched.items()}, once)
    assert all(p.isfinite().all() for p in once.values())


@pytest.mark.parametrize("seed", range(4))
def test_the_layer_without_own_entries(seed: int, generator: torch.Generator) -> None:
    """It is the whole layer less the same layer in which an entry is only sent to itself."""
    space = random_space(seed)
    whole, others = (
        RelationLinear(space, 2, 3, bias=False, own=own).double().requires_grad_(False)
        for own in (True, False)
    )
    others.weight.copy_(whole.weight)
    features = {
        s.name: torch.randn(1, *s.view_shape, 2, generator=generator, dtype=torch.float64)
        for s in space.parameters
    }
    heard, all_ = others(features), whole(features)
    # What is left is a map of each entry alone: no other entry moves it.
    name = space.names[0]
    moved = {**features, name: features[name].clone()}
    moved[name].view(-1, 2)[0] += 1
    rest = {n: all_[n] - heard[n] for n in all_}
    heard_moved, all_moved = others(moved), whole(moved)
    for n in rest:
        changed = ((all_moved[n] - heard_moved[n]) - rest[n]).abs().amax(-1).flatten() > 1e-9
        assert changed.sum() == (1 if n == name else 0)


def test_refused_options() -> None:
    with pytest.raises(ValueError, match="neighbour_scale is -1"):
        make_rule("relational", neighbour_scale=-1.0)
