"""SGD and Adam as rules are torch's, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nfn_opt.optim import AdamConfig, LearnedOptimizer, SGDConfig, UpdateRule, make_rule
from tests.optim.rule_cases import draw

CASES: dict[str, tuple[UpdateRule, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (make_rule("sgd", lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    "momentum": (make_rule("sgd", lr=0.3, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)),
    "adam": (make_rule("adam", lr=3e-3), lambda p: torch.optim.Adam(p, lr=3e-3)),
    "adam, other": (
        make_rule("adam", lr=1e-2, beta1=0.5, beta2=0.9, eps=1e-4),
        lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.5, 0.9), eps=1e-4),
    ),
    "adam, no momentum": (make_rule("adam", beta1=0.0), lambda p: torch.optim.Adam(p, betas=(0.0, 0.999))),
}


@pytest.mark.usefixtures("double_scalars")
@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case: str, generator: torch.Generator) -> None:
    rule, make = CASES[case]
    start = draw(generator)
    mine, theirs = ([p.clone().requires_grad_() for p in start.values()] for _ in range(2))
    ours, torchs = LearnedOptimizer(mine, rule=rule), make(theirs)
    for t in range(8):
        for i, (a, b, g) in enumerate(zip(mine, theirs, draw(generator).values(), strict=True)):
            # A gradient missing now and then, and one of exact zeros.
            missing = t % 3 == 1 and i == 1
            grad = None if missing else torch.zeros_like(g) if i == 2 else 10.0 ** (t - 4) * g
            a.grad, b.grad = (None, None) if grad is None else (grad.clone(), grad.clone())
        ours.step()
        torchs.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "options", "match"),
    [
        (SGDConfig, {"lr": -1.0}, "lr is -1.0"),
        (SGDConfig, {"momentum": 1.0}, "momentum is 1.0"),
        (AdamConfig, {"beta2": 1.0}, "beta2 is 1.0"),
        (AdamConfig, {"eps": -1e-8}, "eps is -1e-08"),
        (AdamConfig, {"lr": float("nan")}, "lr is nan"),
    ],
)
def test_refused_options(config: Callable[..., Any], options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config(**options)
