"""Truncated backpropagation: the gradient, the bookkeeping of inner problems, and those that diverge."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from nfn_opt.meta import (
    Carry,
    ClassificationTask,
    Reparametrization,
    Task,
    TaskWrapper,
    TruncatedBackprop,
    init_state,
    losses_and_grads,
    unroll,
)
from nfn_opt.optim import UpdateRule, make_rule


def make() -> UpdateRule:
    return make_rule("mlp", hidden=(3,), correction=0.5, lr=0.05).double()


def gradients(rule: UpdateRule) -> Tensor:
    grads = [p.grad for p in rule.parameters()]
    assert all(grad is not None for grad in grads)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize("second_order", [False, True])
def test_full_truncation_is_the_gradient_of_the_whole_unroll(
    second_order: bool, tiny_task: ClassificationTask
) -> None:
    estimator = TruncatedBackprop(tasks=3, truncation=6, horizon=6, second_order=second_order, stagger=False)
    rule, generator = make(), torch.Generator().manual_seed(0)
    carry = estimator.start(rule, tiny_task, generator)
    meta_loss, carry = estimator.step(rule, tiny_task, carry, generator)
    found = gradients(rule)
    assert carry.step.tolist() == [0, 0, 0]
    assert carry.finished == 3

    rule.zero_grad()
    generator.manual_seed(0)
    params = tiny_task.init(generator, 3)
    options: dict[str, Any] = {"differentiable": True, "second_order": second_order}
    state = init_state(rule, tiny_task, params)
    end = unroll(rule, tiny_task, params, state, steps=6, start_step=0, generator=generator, **options)
    last, _ = losses_and_grads(tiny_task, end.params, tiny_task.batch(generator, 3), **options)
    expected = (end.losses[1:].sum(0) + last).mean() / 6
    expected.backward()
    torch.testing.assert_close(meta_loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, gradients(rule), rtol=1e-10, atol=1e-13)


def test_pieces_follow_one_another(tiny_task: ClassificationTask) -> None:
    """The inner problems go through the same parameters in pieces as in one unroll."""
    rule, ends = make(), []
    for truncation in (2, 6):
        estimator = TruncatedBackprop(tasks=2, truncation=truncation, horizon=12, stagger=False)
        generator = torch.Generator().manual_seed(0)
        carry = estimator.start(rule, _OneBatch(tiny_task), generator)
        for _ in range(6 // truncation):
            _, carry = estimator.step(rule, _OneBatch(tiny_task), carry, generator)
        assert carry.step.tolist() == [6, 6]
        assert not any(tensor.requires_grad for tensor in carry.tensors().values())
        ends.append(carry)
    for name, tensor in ends[0].tensors().items():
        torch.testing.assert_close(tensor, ends[1].tensors()[name], rtol=1e-12, atol=1e-14)


class _OneBatch(TaskWrapper):
    """Always the same minibatch."""

    def batch(self, generator: torch.Generator, n: int) -> Any:
        return self.task.batch(torch.Generator().manual_seed(0), n)


@pytest.mark.parametrize("stagger", [False, True])
def test_problems_end_at_their_horizon(stagger: bool, tiny_task: ClassificationTask) -> None:
    estimator = TruncatedBackprop(tasks=4, truncation=5, horizon=20, stagger=stagger)
    rule, generator = make(), torch.Generator().manual_seed(0)
    carry = estimator.start(rule, tiny_task, generator)
    steps = []
    for _ in range(6):
        _, carry = estimator.step(rule, tiny_task, carry, generator)
        steps.append(carry.step.tolist())
    staggered = [[0, 5, 5, 5], [5, 0, 10, 10], [10, 5, 0, 15], [15, 10, 5, 0], [0, 15, 10, 5], [5, 0, 15, 10]]
    together = [[5] * 4, [10] * 4, [15] * 4, [0] * 4, [5] * 4, [10] * 4]
    assert steps == (staggered if stagger else together)
    assert carry.finished == (6 if stagger else 4)


def test_random_horizons(tiny_task: ClassificationTask) -> None:
    estimator = TruncatedBackprop(tasks=500, truncation=2, horizon=100, shortest_horizon=10, stagger=False)
    carry = estimator.start(make(), tiny_task, torch.Generator().manual_seed(0))
    assert set((carry.horizon % 2).tolist()) == {0}
    assert 10 <= carry.horizon.min() <= 12
    assert 90 <= carry.horizon.max() <= 100
    assert 28 <= carry.horizon.double().quantile(0.5) <= 38  # the geometric mean is 31.6


def test_reparametrised_problems_start_at_the_same_networks(tiny_task: ClassificationTask) -> None:
    """SGD on p = w / s moves w by s squared times as much: with s fixed, a change of the learning rate."""
    carries = {}
    for factor, lr in ((1.0, 0.4), (2.0, 0.1)):
        estimator = TruncatedBackprop(
            tasks=2,
            truncation=3,
            horizon=6,
            stagger=False,
            reparametrization=Reparametrization(low=factor, high=factor),
        )
        generator, rule = torch.Generator().manual_seed(0), make_rule("sgd", lr=lr).double()
        carry = estimator.start(rule, tiny_task, generator)
        _, carry = estimator.step(rule, tiny_task, carry, generator)
        carries[factor] = {name: p * carry.scale[name] for name, p in carry.params.items()}
    for name, p in carries[1.0].items():
        torch.testing.assert_close(p, carries[2.0][name], rtol=1e-12, atol=1e-14)


class _Picked(TaskWrapper):
    """Draws three networks and hands out some of them."""

    chosen = (0, 2)

    def init(self, generator: torch.Generator, n: int) -> dict[str, Tensor]:
        return {name: p[list(self.chosen)] for name, p in self.task.init(generator, 3).items()}

    def batch(self, generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        inputs, labels = self.task.batch(generator, 3)
        return inputs[list(self.chosen)], labels[list(self.chosen)]


def with_infinite(carry: Carry, infinite: list[int]) -> Carry:
    params = {name: p.clone() for name, p in carry.params.items()}
    next(iter(params.values()))[infinite] = torch.inf
    return dataclasses.replace(carry, params=params)


def test_diverged_problems_are_left_out_and_drawn_anew(tiny_task: ClassificationTask) -> None:
    results = {}
    for name, task, tasks in (("all", tiny_task, 3), ("finite", _Picked(tiny_task), 2)):
        estimator = TruncatedBackprop(tasks=tasks, truncation=4, horizon=8, stagger=False)
        rule, generator = make(), torch.Generator().manual_seed(0)
        carry = estimator.start(rule, task, generator)
        carry = with_infinite(carry, [1]) if name == "all" else carry
        meta_loss, after = estimator.step(rule, task, carry, generator)
        results[name] = (meta_loss, gradients(rule), after)
    (meta_loss, gradient, after), (expected, expected_gradient, others) = results.values()
    torch.testing.assert_close(meta_loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-13)
    assert after.dropped == 1
    assert after.step.tolist() == [4, 0, 4]
    for name, p in after.params.items():
        assert torch.isfinite(p).all()
        torch.testing.assert_close(p[[0, 2]], others.params[name], rtol=1e-12, atol=1e-14)


def test_no_gradient_if_all_problems_diverge(tiny_task: ClassificationTask) -> None:
    estimator = TruncatedBackprop(tasks=2, truncation=4, horizon=8)
    rule, generator = make(), torch.Generator().manual_seed(0)
    carry = with_infinite(estimator.start(rule, tiny_task, generator), [0, 1])
    meta_loss, carry = estimator.step(rule, tiny_task, carry, generator)
    assert meta_loss.isnan()
    assert all(p.grad is None for p in rule.parameters())
    assert carry.dropped == 2
    assert carry.step.tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["sgd", "mlp"])
def test_a_carry_is_stored_and_restored(kind: str, tiny_task: ClassificationTask) -> None:
    estimator = TruncatedBackprop(tasks=2, truncation=3, horizon=6, reparametrization=Reparametrization())
    rule = make_rule(kind).double()
    first, second = (
        estimator.start(rule, tiny_task, torch.Generator().manual_seed(seed)) for seed in range(2)
    )
    restored = second.restored(first.tensors())
    assert restored.state.keys() == first.state.keys()
    for name, tensor in first.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor)
    _, one = estimator.step(rule, tiny_task, first, torch.Generator().manual_seed(7))
    _, two = estimator.step(rule, tiny_task, restored, torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors().values(), two.tensors().values(), strict=True))


def test_a_foreign_carry_is_refused(tiny_task: ClassificationTask) -> None:
    start = TruncatedBackprop(tasks=2, truncation=3, horizon=6).start
    generator = torch.Generator().manual_seed(0)
    momentum, plain = (make_rule("sgd", momentum=m).double() for m in (0.9, 0.0))
    carry = start(momentum, tiny_task, generator)
    with pytest.raises(ValueError, match=r"state/tensors/0.weight/momentum is unknown.*another task or rule"):
        start(plain, tiny_task, generator).restored(carry.tensors())
    with pytest.raises(ValueError, match=r"step is torch.int64 \(2,\), expected torch.int64 \(3,\)"):
        TruncatedBackprop(tasks=3, truncation=3, horizon=6).start(momentum, tiny_task, generator).restored(
            carry.tensors()
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tasks": 0}, "must be at least 1, got 0 and 20"),
        ({"horizon": 50}, "horizon is 50, expected a positive multiple of the truncation, 20"),
        ({"shortest_horizon": 200}, "shortest_horizon is 200, expected from 1 to the horizon, 100"),
    ],
)
def test_refused_options(options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TruncatedBackprop(**options)  # type: ignore[arg-type]


def test_sensitive_networks_start_alike_and_react_more(tiny_task: Task, generator: torch.Generator) -> None:
    rule = make_rule("sgd", lr=0.01).double()
    seed = generator.get_state()
    moved = []
    for factors in (None, (1.0, 1.0), (3.0, 3.0)):
        generator.set_state(seed)
        estimator = TruncatedBackprop(tasks=2, truncation=1, horizon=50, stagger=False, sensitivity=factors)
        carry = estimator.start(rule, tiny_task, generator)
        generator.set_state(seed)
        _, after = estimator.step(rule, tiny_task, carry, generator)
        weights = {
            name: p * after.scale.get(name, 1.0) + after.shift.get(name, 0.0)
            for name, p in after.params.items()
        }
        moved.append({name: w - carry.params[name] for name, w in weights.items()})
    for name, change in moved[0].items():
        torch.testing.assert_close(moved[1][name], change)
        torch.testing.assert_close(moved[2][name], 9 * change)  # a steeper loss, and longer steps
    with pytest.raises(ValueError, match="sensitivity is"):
        TruncatedBackprop(sensitivity=(0.0, 1.0))
