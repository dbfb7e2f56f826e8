"""Learned optimizers in the inner loops of `higher`: same steps, exact gradients to everything."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import higher
import pytest
import torch
from torch import Tensor, nn

from nfn_opt import LearnedOptimizer, WeightSpace
from nfn_opt.meta import ClassificationTask, init_state, unroll
from nfn_opt.optim import SGDRule, UpdateRule, make_rule, save_rule
from nfn_opt.optim.higher_bridge import DifferentiableLearnedOptimizer
from tests.optim.rule_cases import RULES
from tests.optim.shell_cases import DATA, Model, loss_of, make_model, same, snapshot, train

LEARNED: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.3, "momentum": 0.5},
    "adam": {"lr": 0.05},
    "mlp": {"hidden": (3,), "correction": 0.5, "output_scale": 1.0, "lr": 0.05},
    "nfn": {"hidden": (3,), "channels": 2, "correction": 0.5, "output_scale": 1.0, "lr": 0.05},
}


def smooth_rule(kind: str) -> UpdateRule:
    return make_rule(kind, **LEARNED[kind]).double()


def groups(model: Model) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [{"params": named[:2], "lr": 0.5, "weight_decay": 0.1}, {"params": named[2:]}]


def space_of(model: nn.Module) -> WeightSpace:
    return WeightSpace.from_module(model, DATA.to(next(model.parameters()).dtype))


def inner_loop(model: nn.Module, optimizer: LearnedOptimizer, steps: int = 4, **options: Any) -> Tensor:
    """The loss after some steps."""
    with higher.innerloop_ctx(model, optimizer, **options) as (network, inner):
        for _ in range(steps):
            inner.step(loss_of(network))
        return loss_of(network)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("with_space", [False, True])
def test_the_steps_are_those_of_the_optimizer(kind: str, with_space: bool) -> None:
    model = make_model(torch.float64)
    space = space_of(model) if with_space else None
    optimizer = LearnedOptimizer(groups(model), rule=RULES[kind](), space=space)
    train(model, optimizer, 2)
    before, state = copy.deepcopy(model.state_dict()), snapshot(optimizer)
    with higher.innerloop_ctx(model, optimizer) as (network, inner):
        for _ in range(3):
            inner.step(loss_of(network))
        got = [p.detach() for p in network.parameters()]
    same(model.state_dict(), before)
    same(snapshot(optimizer), state)
    train(model, optimizer, 3)
    for ours, theirs in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12)
    for p, kept in zip(model.parameters(), [s for group in inner.state for s in group.values()], strict=True):
        torch.testing.assert_close(
            {key: value.detach() for key, value in kept.items()}, optimizer.state[p], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("kind", ["sgd", "mlp", "nfn"])
def test_all_options_of_the_optimizer_count(kind: str) -> None:
    model = make_model(torch.float64)
    named = list(model.named_parameters())
    parts: list[dict[str, Any]] = [
        {"params": named[:1], "lr": 0.5},
        {"params": named[1:2], "rule": "adam"},
        {"params": named[2:], "weight_decay": 0.1, "rule": make_rule("nfn", lr=0.01)},
    ]
    rule = make_rule("scheduled", rule=kind) if kind == "mlp" else make_rule(kind)
    optimizer = LearnedOptimizer(parts, rule=rule, space=space_of(model), total_steps=9, maximize=True)
    train(model, optimizer, 1)
    with higher.innerloop_ctx(model, optimizer) as (network, inner):
        for _ in range(3):
            inner.step(loss_of(network))
        got = [p.detach() for p in network.parameters()]
    train(model, optimizer, 3)
    torch.testing.assert_close(got, [p.detach() for p in model.parameters()], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", LEARNED)
def test_gradients_equal_finite_differences(kind: str, generator: torch.Generator) -> None:
    model, rule = make_model(torch.float64), smooth_rule(kind)
    lr = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def final_loss() -> Tensor:
        optimizer = LearnedOptimizer(model.parameters(), rule=rule)
        override = {"lr": [lr], "weight_decay": [decay]}
        return inner_loop(model, optimizer, override=override, copy_initial_weights=False)

    leaves = [*rule.parameters(), *model.parameters(), lr, decay]
    gradients = torch.autograd.grad(final_loss(), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        values = []
        for factor in (1e-6, -2e-6):
            with torch.no_grad():
                leaf.add_(direction, alpha=factor)
            values.append(final_loss().item())
        with torch.no_grad():
            leaf.add_(direction, alpha=1e-6)
        numeric = (values[0] - values[1]) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", LEARNED)
def test_meta_gradient_equals_that_of_unroll(kind: str) -> None:
    model, rule, labels = make_model(torch.float64), smooth_rule(kind), torch.arange(16) % 3
    task = ClassificationTask(model, DATA, labels, batch_size=8, dtype=torch.float64)
    params = {name: p.detach()[None].clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    end = unroll(
        rule,
        task,
        params,
        init_state(rule, task, params),
        steps=4,
        start_step=0,
        generator=generator,
        differentiable=True,
        second_order=True,
    )
    expected = torch.autograd.grad(end.losses.sum(), list(rule.parameters()))

    generator.manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    optimizer = LearnedOptimizer(model.named_parameters(), rule=rule, space=task.space)
    with higher.innerloop_ctx(model, optimizer) as (network, inner):
        for _ in range(4):
            inputs, targets = task.batch(generator, 1)
            loss = nn.functional.cross_entropy(network(inputs[0]), targets[0])
            total = total + loss
            inner.step(loss)
    assert total.item() == pytest.approx(end.losses.sum().item(), rel=1e-12)
    got = torch.autograd.grad(total, list(rule.parameters()))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_rule_from_a_file_is_frozen_and_can_be_replaced(tmp_path: Path) -> None:
    model, rule = make_model(), make_rule("sgd", lr=0.2)
    save_rule(make_rule("sgd", lr=0.1), tmp_path / "rule.safetensors")
    optimizer = LearnedOptimizer(model.parameters(), rule=tmp_path / "rule.safetensors")
    inner_loop(model, optimizer).backward()
    assert all(p.grad is None for p in optimizer.rule.parameters())
    loss = inner_loop(model, optimizer, override={"rule": [rule]})
    loss.backward()
    assert loss.item() == inner_loop(model, LearnedOptimizer(model.parameters(), rule=rule)).item()
    assert isinstance(rule, SGDRule)
    assert rule.log_lr.grad is not None


def test_the_rule_given_is_used_as_it_is_now() -> None:
    model, rule = make_model(), make_rule("sgd", lr=0.1)
    assert isinstance(rule, SGDRule)
    optimizer = LearnedOptimizer(model.parameters(), rule=rule)
    before = inner_loop(model, optimizer).item()
    with torch.no_grad():
        rule.log_lr.fill_(-100.0)
    assert inner_loop(model, optimizer).item() == pytest.approx(loss_of(model).item())
    assert before < loss_of(model).item()


def test_without_tracking_there_is_no_graph() -> None:
    model, rule = make_model(), make_rule("mlp")
    optimizer = LearnedOptimizer(model.parameters(), rule=rule)
    with higher.innerloop_ctx(model, optimizer, track_higher_grads=False) as (network, inner):
        for _ in range(2):
            inner.step(loss_of(network))
        assert all(p.is_leaf for p in network.parameters())
        assert not any(v.requires_grad for group in inner.state for s in group.values() for v in s.values())
        loss_of(network).backward()
    assert all(p.grad is None for p in rule.parameters())


def test_a_coarser_dtype_is_computed_in_float32() -> None:
    model, rule = make_model(torch.bfloat16), make_rule("mlp")
    optimizer = LearnedOptimizer(model.parameters(), rule=rule)
    with higher.innerloop_ctx(model, optimizer) as (network, inner):
        inner.step(loss_of(network))
        assert {v.dtype for s in inner.state[0].values() for v in s.values()} <= {torch.float32, torch.int64}
        got = [p.detach() for p in network.parameters()]
    train(model, optimizer, 1)
    torch.testing.assert_close(got, [p.detach() for p in model.parameters()])


def test_parameters_without_gradient_stay() -> None:
    model = make_model(torch.float64)
    model.head.requires_grad_(False)
    optimizer = LearnedOptimizer(model.named_parameters(), rule=make_rule("nfn"), space=space_of(model))
    with higher.innerloop_ctx(model, optimizer) as (network, inner):
        inner.step(loss_of(network))
        assert torch.equal(network.head.weight, model.head.weight)
        assert not torch.equal(network.body.weight, model.body.weight)


def test_the_rule_sees_the_loss() -> None:
    class LossRule(SGDRule):
        kind = "loss"

        def update(self, params, grads, state, *, loss=None, **options):  # type: ignore[no-untyped-def]
            return {name: torch.zeros_like(p) - loss for name, p in params.items()}, state

    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule=LossRule())
    with higher.innerloop_ctx(model, optimizer) as (network, inner):
        loss = loss_of(network)
        inner.step(loss)
        torch.testing.assert_close(network.body.bias, model.body.bias - loss)


def test_values_that_are_not_finite() -> None:
    model = make_model()
    choices: tuple[Literal["raise", "skip"], ...] = ("raise", "skip")
    for choice in choices:
        optimizer = LearnedOptimizer(model.parameters(), rule=make_rule("sgd"), on_nonfinite=choice)
        with higher.innerloop_ctx(model, optimizer) as (network, inner):
            loss = loss_of(network) * torch.inf
            if choice == "raise":
                with pytest.raises(FloatingPointError, match="gradient of parameter 0 of group 0"):
                    inner.step(loss)
            else:
                with pytest.warns(RuntimeWarning, match="step skipped"):
                    inner.step(loss)
            assert all(
                torch.equal(a, b) for a, b in zip(network.parameters(), model.parameters(), strict=True)
            )
            assert inner.steps_made == 0


def test_refused_overrides() -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule=make_rule("sgd"))
    with pytest.raises(ValueError, match=r"has 2 entries, expected a list of one rule"):
        inner_loop(model, optimizer, override={"rule": [make_rule("sgd"), make_rule("sgd")]})
    with pytest.raises(TypeError, match="holds a str, expected an UpdateRule"):
        inner_loop(model, optimizer, override={"rule": ["sgd"]})


def test_subclasses_are_registered_and_may_have_their_own_form() -> None:
    class Plain(LearnedOptimizer):
        pass

    class OwnForm(DifferentiableLearnedOptimizer):
        pass

    class Special(LearnedOptimizer):
        pass

    higher.register_optim(Special, OwnForm)
    for cls, expected in ((Plain, DifferentiableLearnedOptimizer), (Special, OwnForm)):
        model = make_model()
        with higher.innerloop_ctx(model, cls(model.parameters(), rule=make_rule("sgd"))) as (_, inner):
            assert type(inner) is expected


def test_importing_the_library_does_not_import_higher() -> None:
    code = "import sys, nfn_opt, nfn_opt.meta; assert 'higher' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
