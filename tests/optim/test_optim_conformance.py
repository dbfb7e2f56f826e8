"""What PyTorch expects of every optimizer, on every rule: groups, hooks, copies, options, errors."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nfn_opt.optim import LearnedOptimizer, UpdateRule, make_rule
from tests.optim.shell_cases import loss_of, make_model, same, snapshot, train, weights


def test_is_an_optimizer_with_the_usual_attributes(rule: UpdateRule) -> None:
    optimizer = LearnedOptimizer(make_model().parameters(), rule, lr=0.5, weight_decay=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 0.1)
    assert optimizer.param_groups[0]["lr"] == 0.5
    shown = repr(optimizer)
    assert shown.startswith("LearnedOptimizer (\nParameter Group 0\n")
    assert f"rule: {rule.kind} " in shown


def test_same_inputs_same_outputs(rule: UpdateRule) -> None:
    models = [make_model(), make_model()]
    for model in models:
        train(model, LearnedOptimizer(model.parameters(), rule), 5)
    same(weights(models[0]), weights(models[1]))


def test_order_of_groups_does_not_matter(rule: UpdateRule) -> None:
    model, twin = make_model(torch.float64), make_model(torch.float64)
    train(model, LearnedOptimizer(model.named_parameters(), rule), 3)
    groups = [{"params": [named]} for named in reversed(list(twin.named_parameters()))]
    if not rule.coupled:  # without a space, a coupled rule takes the tensors in the order in which they come
        train(twin, LearnedOptimizer(groups, rule), 3)
        torch.testing.assert_close(weights(model), weights(twin), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("closure_kind", ["tensor", "number", "none"])
def test_closure(rule: UpdateRule, closure_kind: str) -> None:
    model, twin = make_model(), make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    results = {"tensor": lambda loss: loss, "number": lambda loss: loss.item(), "none": lambda loss: None}

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return results[closure_kind](loss)

    for _ in range(3):
        returned = optimizer.step(closure)
        assert (returned is None) == (closure_kind == "none")
    train(twin, LearnedOptimizer(twin.parameters(), rule), 3)
    same(weights(model), weights(twin))


def test_closure_that_raises_changes_nothing(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 2)
    before = weights(model), snapshot(optimizer)

    def closure() -> float:
        loss_of(model).backward()
        raise RuntimeError("data loader")

    with pytest.raises(RuntimeError, match="data loader"):
        optimizer.step(closure)
    same((weights(model), snapshot(optimizer)), before)


def test_without_gradients_nothing_happens(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    before = weights(model), snapshot(optimizer)
    optimizer.step()
    same((weights(model), snapshot(optimizer)), before)


def test_zero_grad(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    loss_of(model).backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())
    optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_missing_gradients_leave_tensor_and_state(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 2)
    loss_of(model).backward()
    model.body.weight.grad = None
    kept, state = model.body.weight.detach().clone(), copy.deepcopy(optimizer.state[model.body.weight])
    head = model.head.weight.detach().clone()
    optimizer.step()
    same(model.body.weight.detach(), kept)
    same(optimizer.state[model.body.weight], state)
    assert not torch.equal(model.head.weight, head)


def test_freezing_and_unfreezing(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 1)
    model.body.requires_grad_(False)
    kept = weights(model.body)
    train(model, optimizer, 2)
    same(weights(model.body), kept)
    model.body.requires_grad_(True)
    train(model, optimizer, 1)
    assert all(not torch.equal(a, b) for a, b in zip(weights(model.body), kept, strict=True))


def test_parameters_added_mid_run(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.body.parameters(), rule)
    train(model, optimizer, 2)
    head = weights(model.head)
    optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.5})
    train(model, optimizer, 2)
    assert all(not torch.equal(a, b) for a, b in zip(head, weights(model.head), strict=True))
    restored = LearnedOptimizer(
        [{"params": layer.parameters()} for layer in copy.deepcopy(model).children()], rule
    )
    restored.load_state_dict(snapshot(optimizer))
    same(snapshot(restored), snapshot(optimizer))


@pytest.mark.parametrize(
    ("group", "error", "match"),
    [
        ([nn.Parameter(torch.ones(2))], TypeError, "must be a dict"),
        ({"params": {nn.Parameter(torch.ones(2))}}, TypeError, "set"),
        ({"params": [3.0]}, TypeError, "can only optimize Tensors"),
        ({"params": [nn.Parameter(torch.ones(2)) * 2]}, ValueError, "non-leaf"),
        ({"params": [nn.Parameter(torch.ones(2))], "lr": -0.1}, ValueError, r"lr of group 1 is -0.1"),
        ({"params": [nn.Parameter(torch.ones(2))], "lr": "fast"}, TypeError, r"lr of group 1 is 'fast'"),
        ({"params": [nn.Parameter(torch.ones(2))], "lr": torch.ones(2)}, TypeError, "a tensor of one"),
        ({"params": [nn.Parameter(torch.ones(2))], "rule": "admw"}, ValueError, "mean 'adamw'"),
        ({"params": [nn.Parameter(torch.ones(2))], "rule": 7}, TypeError, "rule is a int"),
    ],
)
def test_groups_that_are_refused(mlp: UpdateRule, group: Any, error: type[Exception], match: str) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 1)
    before = snapshot(optimizer), list(optimizer.rules)
    with pytest.raises(error, match=match):
        optimizer.add_param_group(group)
    same((snapshot(optimizer), list(optimizer.rules)), before)
    train(model, optimizer, 1)


def test_the_same_parameter_twice(mlp: UpdateRule) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = LearnedOptimizer([p], mlp)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    with pytest.warns(UserWarning, match="duplicate parameters"):
        LearnedOptimizer([p, p], mlp)


def test_hooks_around_the_step(rule: UpdateRule) -> None:
    model, seen = make_model(), []
    optimizer = LearnedOptimizer(model.parameters(), rule)

    def note(what: str) -> Callable[..., None]:
        return lambda opt, args, kwargs: seen.append((what, opt is optimizer))

    handles = [
        register_optimizer_step_pre_hook(note("any before")),
        register_optimizer_step_post_hook(note("any after")),
        optimizer.register_step_pre_hook(note("before")),
        optimizer.register_step_post_hook(note("after")),
    ]
    train(model, optimizer, 1)
    for handle in handles:
        handle.remove()
    train(model, optimizer, 1)
    assert seen == [(what, True) for what in ("any before", "before", "after", "any after")]


def test_hooks_around_the_state(rule: UpdateRule) -> None:
    model, seen = make_model(), []
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 1)
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: seen.append(f"before {state.pop('mine')}"))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("after"))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert seen == ["before saving", "before 1", "after"]


def test_copies_go_on_alike(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule, lr=0.5, weight_decay=0.01)
    train(model, optimizer, 2)
    pair = pickle.loads(pickle.dumps((model, optimizer)))  # noqa: S301
    copies = [copy.deepcopy((model, optimizer)), pair]
    train(model, optimizer, 2)
    for other, its in copies:
        train(other, its, 2)
        same((weights(other), snapshot(its)), (weights(model), snapshot(optimizer)))


def test_state_with_and_without_names(rule: UpdateRule) -> None:
    model = make_model()
    named = LearnedOptimizer(model.named_parameters(), rule)
    train(model, named, 2)
    plain = LearnedOptimizer(copy.deepcopy(model).parameters(), rule)
    plain.load_state_dict(snapshot(named))
    same(snapshot(plain)["state"], snapshot(named)["state"])
    again = LearnedOptimizer(copy.deepcopy(model).named_parameters(), rule)
    again.load_state_dict(snapshot(plain))
    same(snapshot(again)["state"], snapshot(named)["state"])


@pytest.mark.parametrize(("saved", "loaded"), [("float64", "float32"), ("float32", "bfloat16")])
def test_state_is_cast_to_other_dtypes(rule: UpdateRule, saved: str, loaded: str) -> None:
    model, other = make_model(getattr(torch, saved)), make_model(getattr(torch, loaded))
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 2)
    receiver = LearnedOptimizer(other.parameters(), rule)
    receiver.load_state_dict(snapshot(optimizer))
    train(other, receiver, 2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            wanted = torch.promote_types(q.dtype, torch.float32) if value.is_floating_point() else value.dtype
            assert receiver.state[q][key].dtype == wanted
            assert receiver.state[q][key].device == q.device


def test_maximize(rule: UpdateRule) -> None:
    model, twin = make_model(), make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule, maximize=True)
    other = LearnedOptimizer(twin.parameters(), rule)
    for _ in range(3):
        optimizer.zero_grad()
        (-loss_of(model)).backward()
        optimizer.step()
    train(twin, other, 3)
    same(weights(model), weights(twin))


def test_lr_of_zero_keeps_the_weights_and_moves_the_state(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule, lr=0.0)
    start = weights(model)
    train(model, optimizer, 2)
    same(weights(model), start)
    assert optimizer.param_groups[0]["step"] == 2


@pytest.mark.parametrize("shape", [(), (1,)])
def test_lr_as_a_tensor(rule: UpdateRule, shape: tuple[int, ...]) -> None:
    model, twin = make_model(torch.float64), make_model(torch.float64)
    lr = torch.full(shape, 0.5, dtype=torch.float64)
    train(model, LearnedOptimizer(model.parameters(), rule, lr=lr, weight_decay=0.1), 3)
    train(twin, LearnedOptimizer(twin.parameters(), rule, lr=0.5, weight_decay=0.1), 3)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("option", ["foreach", "fused", "capturable", "differentiable", "amsgrad"])
def test_options_of_torch(mlp: UpdateRule, option: str) -> None:
    asked: dict[str, Any] = {option: False}
    LearnedOptimizer(make_model().parameters(), mlp, **asked)
    with pytest.raises(NotImplementedError, match=f"does not support {option}=True"):
        LearnedOptimizer(make_model().parameters(), mlp, **{**asked, option: True})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"betas": (0.9, 0.99)}, TypeError, "no option 'betas'.* decays"),
        ({"learning_rate": 1.0}, TypeError, "no option 'learning_rate'"),
        ({"total_steps": 0}, ValueError, "total_steps is 0, expected at least 1"),
        ({"total_steps": 1e3}, TypeError, "total_steps is a float"),
        ({"total_steps": True}, TypeError, "total_steps is a bool"),
        ({"maximize": "yes"}, TypeError, "maximize is 'yes', expected True or False"),
        ({"maximize": 1}, TypeError, "maximize is 1, expected True or False"),
        ({"foreach": 0}, NotImplementedError, "does not support foreach=0"),
        ({"lr": torch.tensor(-1.0)}, ValueError, r"lr of group 0 is tensor\(-1.\)"),
        ({"lr": None}, TypeError, "lr of group 0 is None"),
    ],
)
def test_options_that_are_refused(
    mlp: UpdateRule, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        LearnedOptimizer(make_model().parameters(), mlp, **options)


def test_total_steps_reaches_the_rule() -> None:
    rule = make_rule("scheduled", rule="sgd", options={"lr": 0.1}, schedule="cosine")
    model = make_model()
    with pytest.raises(ValueError, match="total_steps is None, and the schedule of a 'scheduled' rule"):
        LearnedOptimizer(model.parameters(), rule)
    plain = LearnedOptimizer(model.body.parameters())
    with pytest.raises(ValueError, match="total_steps is None"):
        plain.add_param_group({"params": model.head.parameters(), "rule": rule})
    assert len(plain.param_groups) == len(plain.rules) == 1
    optimizer = LearnedOptimizer(model.parameters(), rule, total_steps=2)
    assert copy.deepcopy(optimizer).total_steps == optimizer.total_steps == 2
    train(model, optimizer, 2)
    end = weights(model)
    with pytest.warns(RuntimeWarning, match="more updates are made"):
        train(model, optimizer, 1)  # the schedule is at zero
    same(weights(model), end)


@pytest.mark.parametrize("lr", [1e-3, torch.tensor(0.04)])
def test_an_lr_as_for_adam_is_warned_of_once(mlp: UpdateRule, lr: float | Tensor) -> None:
    model = make_model()
    with pytest.warns(UserWarning, match=r"lr is a factor .* times smaller") as found:
        optimizer = LearnedOptimizer(model.parameters(), mlp, lr=lr)
    assert [warning.filename for warning in found] == [__file__]
    train(model, optimizer, 2)
    with pytest.warns(UserWarning, match="lr=0.01 makes every update 100 times smaller"):
        LearnedOptimizer([{"params": m.parameters(), "lr": 0.01} for m in model.children()], mlp)


def test_an_lr_that_may_be_meant_is_not_warned_of(mlp: UpdateRule) -> None:
    model = make_model()
    for lr in (0.0, 0.05, 2.0):
        LearnedOptimizer(model.parameters(), mlp, lr=lr)
    some: list[dict[str, Any]] = [
        {"params": model.body.parameters(), "lr": 0.01},
        {"params": model.head.parameters()},
    ]
    LearnedOptimizer(some, mlp)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lr is a factor")
        optimizer = LearnedOptimizer(model.parameters(), mlp, lr=1e-3)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1e-3})


def test_profiled_under_its_own_name(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 1)
    assert "Optimizer.step#LearnedOptimizer.step" in {event.key for event in profile.key_averages()}


def test_state_can_be_moved_as_trainers_do(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 1)
    for key, state in optimizer.state.items():
        optimizer.state[key] = {name: value.to("cpu") for name, value in state.items()}
        assert all(isinstance(value, Tensor) for value in state.values())
    train(model, optimizer, 1)


def test_no_warnings(rule: UpdateRule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model()
        optimizer = LearnedOptimizer(model.named_parameters(), rule)
        train(model, optimizer, 2)
        optimizer.load_state_dict(optimizer.state_dict())
