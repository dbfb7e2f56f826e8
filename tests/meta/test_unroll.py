"""Unrolls are right step by step, and their gradients agree with finite differences, autograd and `higher`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import higher
import pytest
import torch
from torch import Tensor, nn

from nfn_opt.meta import ClassificationTask, Reparametrization, init_state, losses_and_grads, unroll
from nfn_opt.optim import UpdateRule, make_rule

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.3, "momentum": 0.5},
    "adam": {"lr": 0.05},
    "mlp": {"hidden": (3,), "correction": 0.5, "output_scale": 1.0, "lr": 0.05},
    "nfn": {"hidden": (3,), "channels": 2, "correction": 0.5, "output_scale": 1.0, "lr": 0.05},
}


def make(kind: str) -> UpdateRule:
    return make_rule(kind, **RULES[kind]).double()


def final_loss(
    rule: UpdateRule,
    task: ClassificationTask,
    *,
    second_order: bool,
    scale: Mapping[str, Tensor] | None = None,
    steps: int = 4,
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    params = task.init(generator, 3)
    end = unroll(
        rule,
        task,
        params,
        init_state(rule, task, params),
        steps=steps,
        start_step=torch.tensor([0, 5, 9]),
        generator=generator,
        differentiable=True,
        second_order=second_order,
        scale=scale,
    )
    batch = task.batch(generator, 3)
    last, _ = losses_and_grads(
        task, end.params, batch, differentiable=True, second_order=second_order, scale=scale
    )
    return end.losses.sum() + last.sum()


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("scaled", [False, True])
def test_second_order_gradient_equals_finite_differences(
    kind: str, scaled: bool, tiny_task: ClassificationTask, generator: torch.Generator
) -> None:
    rule = make(kind)
    params = tiny_task.init(generator, 3)
    augmentation = Reparametrization(level="tensor", low=0.5, high=2.0)
    scale = augmentation.sample(generator, params) if scaled else None
    final_loss(rule, tiny_task, second_order=True, scale=scale).backward()
    for parameter in rule.parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
            values.append(final_loss(rule, tiny_task, second_order=True, scale=scale).item())
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * 1e-5)
        numeric = (values[0] - values[1]) / 2e-5
        assert parameter.grad is not None
        assert (parameter.grad * direction).sum().item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", RULES)
def test_first_order_gradient_equals_a_hand_written_unroll(kind: str, tiny_task: ClassificationTask) -> None:
    rule = make(kind)
    final_loss(rule, tiny_task, second_order=False).backward()
    gradients = [p.grad for p in rule.parameters()]
    rule.zero_grad()
    one_by_one(rule, tiny_task).backward()
    for gradient, parameter in zip(gradients, rule.parameters(), strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)


def one_by_one(rule: UpdateRule, task: ClassificationTask) -> Tensor:
    """What `final_loss` computes in first order, network by network, loss by loss, by plain autograd."""
    generator = torch.Generator().manual_seed(0)
    start = task.init(generator, 3)
    batches = [task.batch(generator, 3) for _ in range(5)]
    total = torch.zeros((), dtype=torch.float64)
    for i, first in enumerate((0, 5, 9)):
        params = {name: p[i].requires_grad_() for name, p in start.items()}
        state = rule.init(task.space, params)
        for t, (inputs, labels) in enumerate(batches):
            loss = task.loss(params, (inputs[i], labels[i]))
            total = total + loss
            grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
            step, named = torch.tensor(first + t), dict(zip(params, grads, strict=True))
            updates, state = rule.update(
                params, named, state, space=task.space, step=step, loss=loss.detach()
            )
            params = {name: p + updates[name] for name, p in params.items()}
    return total


def test_gradient_of_sgd_equals_that_of_higher(tiny_task: ClassificationTask) -> None:
    rule = make("sgd")
    generator = torch.Generator().manual_seed(0)
    params = tiny_task.init(generator, 1)
    state = init_state(rule, tiny_task, params)
    before = generator.get_state()
    options = {"steps": 5, "start_step": 0, "differentiable": True, "second_order": True}
    end = unroll(rule, tiny_task, params, state, generator=generator, **options)  # type: ignore[arg-type]
    end.losses.sum().backward()

    generator.set_state(before)
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2, bias=False)).double()
    network.load_state_dict({name: p[0] for name, p in params.items()})
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    momentum = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.5)
    total = torch.zeros((), dtype=torch.float64)
    with higher.innerloop_ctx(network, sgd, override={"lr": [lr], "momentum": [momentum]}) as (copy, inner):
        for _ in range(5):
            inputs, labels = tiny_task.batch(generator, 1)
            loss = nn.functional.cross_entropy(copy(inputs[0]), labels[0])
            total = total + loss
            inner.step(loss)
        total.backward()
    assert end.losses.sum().item() == pytest.approx(total.item(), rel=1e-12)
    # The rule learns log(lr) and the logit of 1 - momentum.
    gradients = {name: p.grad.item() for name, p in rule.named_parameters() if p.grad is not None}
    assert lr.grad is not None
    assert momentum.grad is not None
    assert gradients["log_lr"] == pytest.approx(0.3 * lr.grad.item(), rel=1e-6)
    assert gradients["momentum"] == pytest.approx(-0.25 * momentum.grad.item(), rel=1e-6)


@pytest.mark.parametrize("kind", RULES)
def test_networks_do_not_interact(kind: str, tiny_task: ClassificationTask) -> None:
    rule = make(kind)

    def trained(factor: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        params = {name: p * torch.tensor([1.0, factor])[:, None, None] if p.dim() == 3 else p
                  for name, p in tiny_task.init(generator, 2).items()}  # fmt: skip
        state = init_state(rule, tiny_task, params)
        return unroll(rule, tiny_task, params, state, steps=3, start_step=0, generator=generator).losses

    assert torch.equal(trained(1.0)[:, 0], trained(2.0)[:, 0])
    assert not torch.equal(trained(1.0)[:, 1], trained(2.0)[:, 1])


def test_the_step_counts_on_and_differs_between_networks(tiny_task: ClassificationTask) -> None:
    class Recorder(type(make("sgd"))):  # type: ignore[misc]
        kind = "recorder"

        def update(self, params, grads, state, *, space, step, loss=None, total_steps=None):  # type: ignore[no-untyped-def]
            return {name: torch.zeros_like(p) + step for name, p in params.items()}, state

    generator = torch.Generator().manual_seed(0)
    start = {name: torch.zeros_like(p) for name, p in tiny_task.init(generator, 2).items()}
    rule = Recorder()
    end = unroll(
        rule,
        tiny_task,
        start,
        init_state(rule, tiny_task, start),
        steps=3,
        start_step=torch.tensor([0, 10]),
        generator=generator,
    )
    assert {tuple(p.flatten(1)[:, 0].tolist()) for p in end.params.values()} == {(0 + 1 + 2, 10 + 11 + 12)}


def test_without_differentiable_there_is_no_graph(tiny_task: ClassificationTask) -> None:
    generator = torch.Generator().manual_seed(0)
    rule, params = make("mlp"), tiny_task.init(generator, 2)
    state = init_state(rule, tiny_task, params)
    end = unroll(rule, tiny_task, params, state, steps=2, start_step=0, generator=generator)
    assert not end.losses.requires_grad
    assert not any(p.requires_grad for p in end.params.values())


@pytest.mark.parametrize(
    ("options", "match"),
    [({"second_order": True, "steps": 1}, "differentiable=True"), ({"steps": 0}, "at least 1, got 0")],
)
def test_refused_options(options: dict[str, int], match: str, tiny_task: ClassificationTask) -> None:
    generator = torch.Generator().manual_seed(0)
    rule, params = make("sgd"), tiny_task.init(generator, 1)
    state = init_state(rule, tiny_task, params)
    with pytest.raises(ValueError, match=match):
        unroll(rule, tiny_task, params, state, start_step=0, generator=generator, **options)  # type: ignore[arg-type]
