"""A scheduled rule is torch's optimizer with the same schedule; runs of one batch have schedules of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nfn_opt.optim import Scheduled, ScheduledConfig, load_rule, make_rule, save_rule
from nfn_opt.optim.classic_schedule import SCHEDULES, Schedule, one_hot, schedule_factors
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import draw

TOTAL = 20

FACTORS: dict[str, Callable[[int], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t / TOTAL)),
    "linear": lambda t: min((t + 1) / 5, (TOTAL - t) / (TOTAL - 5)),
}

OPTIMIZERS: dict[str, tuple[dict[str, float], Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": ({"lr": 0.3, "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)),
    "adamw": ({"weight_decay": 0.5}, lambda p: torch.optim.AdamW(p, weight_decay=0.5)),
    "nadam": ({"lr": 1e-2}, lambda p: torch.optim.NAdam(p, lr=1e-2)),
}


@pytest.mark.usefixtures("double_scalars")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equals_torch_with_a_scheduler(schedule: Schedule, kind: str, generator: torch.Generator) -> None:
    options, make = OPTIMIZERS[kind]
    rule = Scheduled(ScheduledConfig(rule=kind, options=options, schedule=schedule, warmup=0.25)).double()
    params = draw(generator)
    space, state = WeightSpace.independent(params), rule.init(WeightSpace.independent(params), params)
    theirs = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = make(list(theirs.values()))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, FACTORS[schedule])
    for t in range(TOTAL):
        grads = draw(generator)
        for name, p in theirs.items():
            p.grad = grads[name]
        steps = {"step": torch.tensor(t), "total_steps": torch.tensor(TOTAL)}
        updates, state = rule.update(params, grads, state, space=space, **steps)
        params = {name: p + updates[name] for name, p in params.items()}
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(params, {n: p.detach() for n, p in theirs.items()}, rtol=1e-10, atol=1e-10)


def test_each_network_has_its_own_schedule_and_learning_rate(generator: torch.Generator) -> None:
    params, grads = draw(generator), draw(generator)
    space, rule = WeightSpace.independent(params), Scheduled.of(make_rule("adam", lr=0.1).double())
    theta = {name: p.detach().expand(3, *p.shape).clone() for name, p in rule.named_parameters()}
    theta["mix"] = torch.stack([one_hot(schedule).double() for schedule in SCHEDULES])
    theta["rule.log_lr"] = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    steps = {"step": torch.tensor(7), "total_steps": torch.tensor(TOTAL)}
    arguments = (params, grads, rule.init(space, params))

    def update(theta: dict[str, Tensor]) -> Tensor:
        updates, _ = torch.func.functional_call(rule, theta, arguments, {"space": space, **steps})
        return updates["w"]

    expected = [math.exp(i) * FACTORS[schedule](7) for i, schedule in enumerate(SCHEDULES[:2])]
    got = torch.func.vmap(update)(theta)
    first = got[0] / expected[0]
    torch.testing.assert_close(got[1], expected[1] * first, rtol=1e-12, atol=0)
    torch.testing.assert_close(got[2], math.exp(2) * (13 / 19) * first, rtol=1e-12, atol=0)


def test_factors_end_at_zero_and_stay_there() -> None:
    for t in (TOTAL, TOTAL + 5):
        assert schedule_factors(torch.tensor(t), torch.tensor(TOTAL)).tolist() == [1.0, 0.0, 0.0]


def test_saved_and_loaded(tmp_path: Path) -> None:
    rule = Scheduled.of(make_rule("mlp", hidden=(4,)), "linear", warmup=0.1)
    loaded = load_rule(save_rule(rule, tmp_path / "rule.safetensors"))
    assert isinstance(loaded, Scheduled)
    assert loaded.config == rule.config
    torch.testing.assert_close(loaded.state_dict(), rule.state_dict(), rtol=0, atol=0)


def test_refusals() -> None:
    rule, p = Scheduled(), {"w": torch.ones(2)}
    space = WeightSpace.independent(p)
    with pytest.raises(ValueError, match="total_steps is None"):
        rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
    with pytest.raises(ValueError, match="schedule is 'step', expected one of constant"):
        ScheduledConfig(schedule="step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"warmup is 1\.0"):
        ScheduledConfig(warmup=1.0)
    with pytest.raises(ValueError, match=r"none of a 'sgd' rule.*beta1"):
        ScheduledConfig(rule="sgd", options={"beta1": 0.5})
