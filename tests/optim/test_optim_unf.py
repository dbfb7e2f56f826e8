"""The rules of *Universal Neural Functionals*: formula, published sizes, symmetry, and the space they belong to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.optim import UNFRule, UpdateRule, make_rule
from nfn_opt.optim.scalars import decay
from nfn_opt.weight_space import WeightSpace
from tests.optim.networks import difference, draw_like, random_space
from tests.optim.rule_cases import run

MODEL = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
HIDDEN = WeightSpace.from_module(MODEL, torch.zeros(1, 64))
ALL = WeightSpace.from_module(MODEL, torch.zeros(1, 64), symmetry="all")
SMALL = WeightSpace.from_module(
    nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), torch.zeros(1, 3)
)


def frozen(rule: UpdateRule) -> UpdateRule:
    return rule.double().requires_grad_(False)


@pytest.mark.parametrize(
    ("last", "size"), [("pointwise", 2788), ("nf", 3783), ("deep_sets", 2788 + 32)], ids=str
)
def test_has_the_published_size(last: str, size: int) -> None:
    """Table of the paper's appendix, for its multilayer perceptron; its Deep Sets see one weight each."""
    rule = make_rule("unf", last=last, space=ALL)
    assert sum(p.numel() for p in rule.parameters()) == size


def test_formula(generator: torch.Generator) -> None:
    """Against the rule written out one tensor at a time, with the last layer for each weight alone."""
    rule = UNFRule(UNFRule.config_class(last="pointwise")).double().requires_grad_(False)
    for parameter in rule.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    params, gradients = draw_like(SMALL, generator), [draw_like(SMALL, generator) for _ in range(3)]
    got, _ = run(rule, SMALL, params, gradients)
    gammas = [float(decay(0.9, rule.momentum)), 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]
    alpha, beta = 0.1 * rule.log_lr.exp(), 1e-3 * rule.log_correction.exp()
    weights = [rule.first.weight, *rule.rest.weights, rule.last.own]
    biases = [rule.first.bias, *rule.rest.biases, rule.last.bias]
    for name, p in params.items():
        m = [torch.zeros_like(p)] * 7
        for t, grads in enumerate(gradients):
            g = grads[name]
            m = [d * x + (1 - d) * g for d, x in zip(gammas, m, strict=True)]
            channels = [x.clamp(-1, 1) for x in (p, g, *m[1:])]
            channels = [x / (1e-5 + (x**2).mean()).sqrt() for x in channels]
            scales = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)
            channels += [torch.full_like(p, t / s - 1).tanh() for s in scales]
            x = torch.stack(channels, -1)
            for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                x = (x if i == 0 else x.relu()) @ weight.T + bias
            p = p - alpha * (m[0] + beta * x[..., 0])
        torch.testing.assert_close(got[name], p, rtol=1e-10, atol=1e-13)


def test_without_its_correction_it_is_momentum(generator: torch.Generator) -> None:
    rule = frozen(make_rule("unf", last="deep_sets"))
    rule.get_parameter("log_correction").fill_(-float("inf"))
    params, gradients = draw_like(SMALL, generator), [draw_like(SMALL, generator) for _ in range(4)]
    got, _ = run(rule, SMALL, params, gradients)
    sgd = frozen(make_rule("sgd", lr=0.01, momentum=0.9))  # 0.1 times the factor (1 - 0.9) of the mean
    torch.testing.assert_close(got, run(sgd, SMALL, params, gradients)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_one_architecture_is_equivariant(seed: int, generator: torch.Generator) -> None:
    space = random_space(seed)
    rule = frozen(make_rule("unf", space=space, hidden=(4, 4), correction=1.0))
    assert difference(rule, space, space, generator) < 1e-10


@pytest.mark.parametrize("sharing", ["per_parameter", "by_relation"])
def test_tied_axes_are_seen(sharing: str, generator: torch.Generator) -> None:
    rule = frozen(make_rule("unf", sharing=sharing, space=SMALL, correction=1.0))
    loose = WeightSpace.independent(draw_like(SMALL, generator))
    assert difference(rule, SMALL, SMALL, generator) < 1e-10
    assert difference(rule, SMALL, loose, generator) > 1e-5


def test_deep_sets_see_their_tensor_alone(generator: torch.Generator) -> None:
    rule = frozen(make_rule("unf", last="deep_sets", correction=1.0))
    params, grads = draw_like(SMALL, generator), draw_like(SMALL, generator)
    other = {**grads, "0.weight": grads["0.weight"].clone(), "2.bias": grads["2.bias"] + 1}
    other["0.weight"][0, 0] += 1
    one, two = (run(rule, SMALL, params, [g])[0] for g in (grads, other))
    changed = {n: (one[n] != two[n]) for n in one}
    assert changed["0.weight"].all()
    assert changed["2.bias"].all()
    assert not any(changed[n].any() for n in changed if n not in ("0.weight", "2.bias"))


@pytest.mark.parametrize("space", [None, HIDDEN], ids=["none", "another"])
def test_another_architecture_is_refused(space: WeightSpace | None, generator: torch.Generator) -> None:
    if space is None:
        with pytest.raises(ValueError, match="none was given; pass space=WeightSpace"):
            make_rule("unf")
        return
    params: dict[str, Tensor] = draw_like(SMALL, generator)
    with pytest.raises(ValueError, match="belong to the weight space"):
        run(frozen(make_rule("unf", space=space)), SMALL, params, [params])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"last": "attention"}, "last is 'attention', expected 'nf'"),
        ({"sharing": "by_name"}, "sharing is 'by_name'"),
        ({"momentum": 1.0}, "a decay is 1.0"),
        ({"features": ("second_moment",)}, "keeps momenta alone"),
        ({"correction": 0.0}, "correction is 0.0"),
    ],
)
def test_refused_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_rule("unf", space=SMALL, **options)
