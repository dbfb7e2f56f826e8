from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from nfn_opt.meta import (
    EvolutionStrategies,
    MetaGradient,
    Mixture,
    Objective,
    PersistentES,
    Reparametrization,
    Task,
    TruncatedBackprop,
)
from nfn_opt.meta.tasks import Params
from nfn_opt.optim import UpdateRule, make_rule
from nfn_opt.weight_space import WeightSpace

LR, CURVATURE, START, HORIZON = 0.3, 0.7, 2.0, 8
PLAIN = Objective(measure="loss", cap=1e6)


class Quadratic(Task):
    """Half the curvature times the square of one weight; gradient descent on it is a geometric series."""

    space = WeightSpace.independent({"w": torch.zeros(1)})

    def init(self, generator: torch.Generator, n: int) -> Params:
        return {"w": torch.full((n, 1), START, dtype=torch.float64)}

    def batch(self, generator: torch.Generator, n: int) -> Tensor:
        return torch.zeros(n)

    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        return 0.5 * CURVATURE * params["w"].square().sum()

    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * CURVATURE * params["w"].square().sum(1)


def sgd() -> UpdateRule:
    return make_rule("sgd", lr=LR).double()


def analytic() -> float:
    """Derivative of the mean loss before each update with respect to the logarithm of the step size."""
    log_lr = torch.tensor(LR, dtype=torch.float64).log().requires_grad_()
    weights = START * (1 - log_lr.exp() * CURVATURE) ** torch.arange(HORIZON)
    (0.5 * CURVATURE * weights**2).mean().backward()
    assert log_lr.grad is not None
    return float(log_lr.grad)


def estimates(estimator: MetaGradient, generator: torch.Generator, repeats: int) -> Tensor:
    """Estimates of the meta-gradient of one whole inner training, one for each repeat."""
    found = []
    rule, task = sgd(), Quadratic()
    pieces = HORIZON // estimator.truncation  # type: ignore[attr-defined]
    for _ in range(repeats):
        rule.zero_grad()
        carry = estimator.start(rule, task, generator)
        for _ in range(pieces):
            _, carry = estimator.step(rule, task, carry, generator)
        grad = rule.get_parameter("log_lr").grad
        assert grad is not None
        found.append(grad / pieces)
    return torch.stack(found)


def options(truncation: int) -> dict[str, Any]:
    return {
        "tasks": 200,
        "truncation": truncation,
        "horizon": HORIZON,
        "stagger": False,
        "sigma": 0.01,
        "objective": PLAIN,
    }


@pytest.mark.parametrize(
    ("kind", "truncation", "unbiased"),
    [
        (EvolutionStrategies, HORIZON, True),
        (PersistentES, HORIZON, True),
        (PersistentES, 4, True),
        (PersistentES, 1, True),
        (EvolutionStrategies, 2, False),
    ],
)
def test_the_mean_is_the_analytic_gradient(
    kind: Any, truncation: int, unbiased: bool, generator: torch.Generator
) -> None:
    found = estimates(kind(**options(truncation)), generator, 60)
    error = found.std() / len(found) ** 0.5
    distance = abs(float(found.mean()) - analytic())
    if unbiased:
        assert distance < 4 * error
        assert error < 0.05 * abs(analytic())
    else:
        assert distance > 20 * error


def test_a_truncation_of_persistent_es_by_hand(generator: torch.Generator) -> None:
    estimator = PersistentES(tasks=2, truncation=2, horizon=4, stagger=False, sigma=0.1, objective=PLAIN)
    rule, task = sgd(), Quadratic()
    carry = estimator.start(rule, task, generator)
    past = torch.zeros(2, dtype=torch.float64)
    weights = torch.full((2, 2), START, dtype=torch.float64)
    for _ in range(2):
        seed = generator.get_state()
        noise = 0.1 * torch.randn(2, generator=generator, dtype=torch.float64)
        generator.set_state(seed)
        rates = LR * torch.exp(torch.stack([noise, -noise]))
        losses = torch.zeros(2, 2, dtype=torch.float64)
        for _ in range(2):
            losses += 0.5 * CURVATURE * weights**2 / 2
            weights = weights * (1 - rates * CURVATURE)
        past = past + noise
        expected = ((losses[0] - losses[1]) / (2 * 0.1**2) * past).mean()
        rule.zero_grad()
        meta_loss, carry = estimator.step(rule, task, carry, generator)
        torch.testing.assert_close(rule.get_parameter("log_lr").grad, expected)
        torch.testing.assert_close(meta_loss, losses.mean())
    assert int(carry.finished) == 2
    assert carry.step.tolist() == [0] * 4
    assert float(carry.extra["past_noise"]["log_lr"].abs().max()) == 0


def test_both_versions_see_the_same(tiny_task: Task, generator: torch.Generator) -> None:
    rule = make_rule("sgd", lr=0.1).double()
    estimator = EvolutionStrategies(
        tasks=3, truncation=3, horizon=6, sigma=1e-12, reparametrization=Reparametrization()
    )
    carry = estimator.start(rule, tiny_task, generator)
    for _ in range(3):
        _, carry = estimator.step(rule, tiny_task, carry, generator)
        for p in carry.params.values():
            torch.testing.assert_close(p[:3], p[3:], rtol=1e-8, atol=1e-10)
            assert not torch.equal(p[0], p[1])


def test_what_is_not_finite_is_dropped_and_counted(generator: torch.Generator) -> None:
    class Sometimes(Quadratic):
        def init(self, generator: torch.Generator, n: int) -> Params:
            start = torch.full((n, 1), START, dtype=torch.float64)
            start[0] = torch.nan
            return {"w": start}

    estimator = PersistentES(**{**options(4), "tasks": 3})
    rule, task = sgd(), Sometimes()
    carry = estimator.start(rule, task, generator)
    loss, carry = estimator.step(rule, task, carry, generator)
    assert torch.isfinite(loss)
    assert torch.isfinite(rule.get_parameter("log_lr").grad).all()  # type: ignore[arg-type]
    assert int(carry.dropped) == 1
    carry.params["w"].fill_(torch.inf)
    rule.zero_grad()
    loss, carry = estimator.step(rule, task, carry, generator)
    assert torch.isnan(loss)
    assert rule.get_parameter("log_lr").grad is None
    assert int(carry.dropped) == 4


def test_compiled_is_eager(tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    grads = []
    for compiled in (False, True):
        generator = torch.Generator().manual_seed(1)
        rule = make_rule("mlp").double()
        estimator = PersistentES(tasks=2, truncation=2, horizon=4, compiled=compiled)
        carry = estimator.start(rule, tiny_task, generator)
        for _ in range(3):
            _, carry = estimator.step(rule, tiny_task, carry, generator)
        grads.append({name: p.grad for name, p in rule.named_parameters()})
    torch.testing.assert_close(*grads)


def test_random_lengths_of_pieces(tiny_task: Task, generator: torch.Generator) -> None:
    rule = make_rule("sgd").double()
    for kind in (TruncatedBackprop, PersistentES):
        estimator = kind(tasks=2, shortest_truncation=2, truncation=5, horizon=11, stagger=False)
        carry, seen = estimator.start(rule, tiny_task, generator), set()
        for _ in range(12):
            before = carry.step.clone()
            _, carry = estimator.step(rule, tiny_task, carry, generator)
            seen |= set((carry.step - before)[carry.step > 0].tolist())
        assert seen <= {2, 3, 4, 5}
        assert len(seen) > 2
        assert int(carry.finished) > 0


def test_a_mixture_is_the_weighted_sum(tiny_task: Task) -> None:
    members = (
        TruncatedBackprop(tasks=2, truncation=2, horizon=4),
        PersistentES(tasks=3, truncation=2, horizon=4),
    )
    rule = make_rule("sgd").double()
    generator = torch.Generator().manual_seed(3)
    carries = [member.start(rule, tiny_task, generator) for member in members]
    total = torch.zeros((), dtype=torch.float64)
    for member, carry, weight in zip(members, carries, (0.25, 2.0), strict=True):
        rule.zero_grad()
        member.step(rule, tiny_task, carry, generator)
        total += weight * rule.get_parameter("log_lr").grad  # type: ignore[operator]
    generator.manual_seed(3)
    rule.zero_grad()
    mixture = Mixture(members, (0.25, 2.0))
    carry = mixture.start(rule, tiny_task, generator)
    loss, carry = mixture.step(rule, tiny_task, carry, generator)
    torch.testing.assert_close(rule.get_parameter("log_lr").grad, total)
    assert torch.isfinite(loss)
    again = carry.restored(carry.tensors())
    assert again.tensors().keys() == carry.tensors().keys()
    mixture.step(rule, tiny_task, again, generator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PersistentES(sigma=0.0), "sigma is 0.0"),
        (lambda: PersistentES(shortest_truncation=30), "shortest_truncation is 30"),
        (lambda: Objective(measure="ratio"), "measure is 'ratio'"),  # type: ignore[arg-type]
        (lambda: Objective(cap=0), "cap is 0"),
        (lambda: Objective(floor=0), "floor is 0"),
        (lambda: Mixture((PersistentES(),), ()), "1 estimators and 0 weights"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_measures() -> None:
    losses = torch.tensor([[4.0], [1.0]], dtype=torch.float64)
    initial, progress = torch.tensor([2.0]), torch.tensor([[0.5], [1.0]])
    assert float(Objective(measure="loss", cap=9)(losses, initial, progress)) == 2.5
    assert float(Objective(measure="relative", cap=1)(losses, initial, progress)) == 0.75
    log = Objective(measure="log", cap=9, emphasis=1.0)(losses, initial, progress)
    assert float(log) == pytest.approx(-0.5 * math.log(2))
    floored = Objective(measure="log", floor=0.25)(losses * 0, initial, progress)
    assert float(floored) == pytest.approx(math.log(0.25))


def test_what_is_not_trained_is_not_perturbed(tiny_task: Task) -> None:
    grads = []
    for frozen in (False, True):
        generator = torch.Generator().manual_seed(5)
        rule = make_rule("sgd", lr=0.1, momentum=0.5).double()
        rule.get_parameter("momentum").requires_grad_(not frozen)
        estimator = EvolutionStrategies(tasks=2, truncation=4, horizon=4, sigma=1e-6)
        carry = estimator.start(rule, tiny_task, generator)
        assert ("momentum" in carry.extra["past_noise"]) is not frozen
        estimator.step(rule, tiny_task, carry, generator)
        grads.append(rule.get_parameter("momentum").grad)
    assert grads[0] is not None
    assert grads[1] is None
