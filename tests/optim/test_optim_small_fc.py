"""The rule of Metz et al. is the published one, with decays that can be learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nfn_opt.optim import SmallFCConfig, SmallFCRule, make_rule
from nfn_opt.optim.scalars import decay
from nfn_opt.weight_space import WeightSpace
from tests.optim import small_fc_twin
from tests.optim.rule_cases import draw, run


@pytest.mark.parametrize("hidden", [(4, 4), (32, 32), (6,)])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e2])
def test_is_the_published_rule(scale: float, hidden: tuple[int, ...], generator: torch.Generator) -> None:
    rule = SmallFCRule(SmallFCConfig(hidden=hidden)).double().requires_grad_(False)
    for parameter in rule.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    params, gradients = draw(generator), [draw(generator) for _ in range(4)]
    gradients = [{name: scale * g for name, g in grads.items()} for grads in gradients]
    got, _ = run(rule, WeightSpace.independent(params), params, gradients)
    config, offsets = rule.config, rule.offsets()
    decays = (
        [float(decay(d, o)) for d, o in zip(config.momentum_decays, offsets["momentum"], strict=True)],
        float(decay(config.second_moment_decay, offsets["second_moment"])),
        [float(decay(d, o)) for d, o in zip(config.factor_decays, offsets["factor"], strict=True)],
    )
    weights, biases = [rule.first.weight, *rule.rest.weights], [rule.first.bias, *rule.rest.biases]
    expected = small_fc_twin.run(params, gradients, weights, biases, decays)
    moved = {name: expected[name] - params[name] for name in params}
    assert all(m.abs().max() > 1e-4 for m in moved.values())
    torch.testing.assert_close({n: got[n] - params[n] for n in params}, moved, rtol=1e-10, atol=1e-13)


def test_has_the_published_size() -> None:
    rule = SmallFCRule()
    assert rule.first.in_features == 39
    network = sum(p.numel() for n, p in rule.named_parameters() if "decay" not in n)
    assert network == 39 * 4 + 4 + 4 * 4 + 4 + 4 * 2 + 2
    assert {n: p.numel() for n, p in rule.named_parameters() if "decay" in n} == {
        "decay_offsets.momentum": 3,
        "decay_offsets.second_moment": 1,
        "decay_offsets.factor": 3,
    }


def test_decays_that_are_not_learned_are_the_initial_ones(generator: torch.Generator) -> None:
    learned, fixed = (make_rule("small_fc", learn_decays=learn).double() for learn in (True, False))
    assert not [n for n, _ in fixed.named_parameters() if "decay" in n]
    params, gradients = draw(generator), [draw(generator) for _ in range(3)]
    space = WeightSpace.independent(params)
    one, other = (run(rule, space, params, gradients) for rule in (learned, fixed))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"magnitude": -1.0}, "magnitude is -1.0"),
        ({"hidden": (0,)}, "hidden is"),
        ({"second_moment_decay": 1.0}, "a decay is 1.0"),
        ({"factor_decays": (0.9,)}, "factor_decays has 1 values, expected 3"),
    ],
)
def test_refused_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_rule("small_fc", **options)
