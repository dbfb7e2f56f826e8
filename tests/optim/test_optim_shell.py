"""``LearnedOptimizer`` keeps the contract of ``torch.optim`` with every rule."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from nfn_opt.optim import LearnedOptimizer, UpdateRule, save_rule
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import leaves
from tests.optim.shell_cases import loss_of, make_model, same, snapshot, train, weights


def test_trains_in_an_ordinary_script(rule: UpdateRule) -> None:
    model = make_model()
    losses = train(model, LearnedOptimizer(model.parameters(), rule), 100)
    assert losses[-1] < 0.99 * losses[0]


def test_equals_the_pure_rule(rule: UpdateRule) -> None:
    model = make_model(torch.float64)
    twin = copy.deepcopy(model)
    train(model, LearnedOptimizer(model.parameters(), rule), 4)
    space, rule = WeightSpace.independent(dict(twin.named_parameters())), copy.deepcopy(rule).double()
    params = {n: p.detach() for n, p in twin.named_parameters()}
    state = rule.init(space, params)
    for t in range(4):
        twin.zero_grad()
        loss_of(twin).backward()
        grads = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
        updates, state = rule.update(params, grads, state, space=space, step=torch.tensor(t))
        for name, p in twin.named_parameters():
            p.data += updates[name].detach()
        params = {n: p.detach() for n, p in twin.named_parameters()}
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-12, atol=1e-14)


def test_rule_is_copied_and_not_trained(mlp: UpdateRule) -> None:
    model, before = make_model(), copy.deepcopy(mlp.state_dict())
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 2)
    same(dict(mlp.state_dict()), dict(before))
    assert all(p.requires_grad and p.grad is None for p in mlp.parameters())
    assert not any(p.requires_grad for p in optimizer.rule.parameters())
    assert not any(leaf.requires_grad for leaf in leaves(snapshot(optimizer)["state"]))


def test_rule_by_path(mlp: UpdateRule, tmp_path: Path) -> None:
    path = save_rule(mlp, tmp_path / "rule.safetensors")
    models = [make_model(), make_model(), make_model()]
    rules: list[UpdateRule | str | Path] = [mlp, path, str(path)]
    for model, rule in zip(models, rules, strict=True):
        train(model, LearnedOptimizer(model.parameters(), rule), 3)
    same(weights(models[0]), weights(models[1]))
    same(weights(models[0]), weights(models[2]))


def test_closure_is_called_once_with_gradients_and_its_loss_returned(mlp: UpdateRule) -> None:
    model, calls = make_model(), []
    optimizer = LearnedOptimizer(model.parameters(), mlp)

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss.item()

    with torch.no_grad():
        expected = loss_of(model).item()
        assert optimizer.step(closure) == expected
    assert calls == [True]
    assert optimizer.step() is None


def test_groups_have_their_own_lr_and_weight_decay(rule: UpdateRule) -> None:
    model, reference = make_model(torch.float64), make_model(torch.float64)
    groups = [
        {"params": list(model.body.parameters()), "lr": 0.5, "weight_decay": 0.1},
        {"params": list(model.head.parameters()), "lr": 0.0},
    ]
    start = weights(model)
    train(model, LearnedOptimizer(groups, rule, lr=2.0), 1)
    train(reference, LearnedOptimizer(reference.parameters(), rule), 1)
    update = [b - a for a, b in zip(start, weights(reference), strict=True)]
    expected = [p * (1 - 0.5 * 0.1) + 0.5 * u for p, u in zip(start[:2], update[:2], strict=True)]
    torch.testing.assert_close(weights(model)[:2], expected, rtol=1e-10, atol=1e-12)
    same(weights(model)[2:], start[2:])


def test_schedulers(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule, lr=0.8)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for expected in (0.8, 0.4, 0.2):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        train(model, optimizer, 1)
        scheduler.step()


def test_tensor_lr(mlp: UpdateRule) -> None:
    models = make_model(), make_model()
    train(models[0], LearnedOptimizer(models[0].parameters(), mlp, lr=torch.tensor(0.5), weight_decay=0.1), 3)
    train(models[1], LearnedOptimizer(models[1].parameters(), mlp, lr=0.5, weight_decay=0.1), 3)
    torch.testing.assert_close(weights(models[0]), weights(models[1]))


def test_add_param_group(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.body.parameters(), mlp)
    train(model, optimizer, 2)
    head = weights(model.head)
    optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.1})
    train(model, optimizer, 2)
    assert all(not torch.equal(a, b) for a, b in zip(head, weights(model.head), strict=True))
    with pytest.raises(ValueError, match=r"lr of group 2 is -1.0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert len(optimizer.param_groups) == 2
    train(model, optimizer, 1)


def test_hooks(mlp: UpdateRule) -> None:
    model, seen = make_model(), []
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "mine": 1})
    train(model, optimizer, 1)
    assert seen == ["before", "after"]
    assert optimizer.state_dict()["mine"] == 1


def test_missing_gradients_leave_the_parameter_and_its_state(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule, weight_decay=0.1)
    train(model, optimizer, 2)
    frozen, others = model.body.weight, [p for p in model.parameters() if p is not model.body.weight]
    before = weights(model), copy.deepcopy(optimizer.state[frozen])
    frozen.requires_grad_(False)
    train(model, optimizer, 2)
    same(frozen, before[0][0])
    same(optimizer.state[frozen], before[1])
    assert all(not torch.equal(p, b) for p, b in zip(others, before[0][1:], strict=True))
    frozen.requires_grad_(True)
    train(model, optimizer, 1)
    assert not torch.equal(frozen, before[0][0])


def test_step_without_any_gradient_does_nothing(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    before = weights(model), snapshot(optimizer)
    optimizer.step()
    same((weights(model), snapshot(optimizer)), before)
