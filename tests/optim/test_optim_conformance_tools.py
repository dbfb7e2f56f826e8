"""Learned optimizers with PyTorch's own tools: schedulers, averaging, scaling, clipping, compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel

from nfn_opt.optim import LearnedOptimizer, UpdateRule
from tests.optim.rule_cases import leaves
from tests.optim.shell_cases import loss_of, make_model, same, snapshot, train, weights

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "constant": lambda o: lr_scheduler.ConstantLR(o),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, 2, cycle_momentum=False),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=8, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, 3)], milestones=[2]
    ),
    "averaging": lambda o: SWALR(o, swa_lr=0.1),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers_set_the_lr_that_is_used(mlp: UpdateRule, name: str, tensor: bool) -> None:
    model, twin = make_model(torch.float64), make_model(torch.float64)
    lr: Any = torch.tensor(0.8, dtype=torch.float64) if tensor else 0.8
    optimizer, reference = (LearnedOptimizer(m.parameters(), mlp, lr=lr) for m in (model, twin))
    scheduler = SCHEDULERS[name](optimizer)
    rates = []
    for _ in range(5):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        reference.param_groups[0]["lr"] = rates[-1]
        train(twin, reference, 1)
        train(model, optimizer, 1)
        scheduler.step(1.0) if name == "plateau" else scheduler.step()
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-10, atol=1e-12)
    assert name == "constant" or len(set(rates)) > 1


def test_schedules_are_saved_and_continued(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step()
    other = make_model()
    other.load_state_dict(model.state_dict())
    resumed = LearnedOptimizer(other.parameters(), rule)
    its = lr_scheduler.CosineAnnealingLR(resumed, 6)
    resumed.load_state_dict(snapshot(optimizer))
    its.load_state_dict(scheduler.state_dict())
    for m, o, s in ((model, optimizer, scheduler), (other, resumed, its)):
        train(m, o, 1)
        s.step()
        train(m, o, 1)
    same(weights(model), weights(other))


def test_scheduler_before_the_first_step_warns(mlp: UpdateRule) -> None:
    scheduler = lr_scheduler.StepLR(LearnedOptimizer(make_model().parameters(), mlp), 1)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()


def test_averaged_models(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer, averaged = LearnedOptimizer(model.parameters(), mlp), AveragedModel(model)
    found = []
    for _ in range(3):
        train(model, optimizer, 1)
        averaged.update_parameters(model)
        found.append(weights(model))
    mean = [torch.stack(tensors).mean(0) for tensors in zip(*found, strict=True)]
    torch.testing.assert_close(weights(averaged.module), mean)


def test_gradient_scaler_and_clipping(rule: UpdateRule) -> None:
    model, twin = make_model(), make_model()
    optimizer, other = (LearnedOptimizer(m.parameters(), rule) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        loss_of(twin).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        other.step()
    same(weights(model), weights(twin))


def test_gradient_scaler_skips_overflows(rule: UpdateRule) -> None:
    model = make_model()
    optimizer, scaler = LearnedOptimizer(model.parameters(), rule), torch.amp.GradScaler("cpu")
    train(model, optimizer, 1)
    before = weights(model), snapshot(optimizer)
    scaler.scale(loss_of(model)).backward()
    assert model.head.bias.grad is not None
    model.head.bias.grad[0] = float("inf")
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    same((weights(model), snapshot(optimizer)), before)
    assert scaler.get_scale() < scale


def test_autocast(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(t.dtype == torch.float32 for t in leaves(optimizer.state[model.body.weight]) if t.dim() > 0)


def test_step_inside_autocast_is_the_same(rule: UpdateRule) -> None:
    model, twin = make_model(), make_model()
    optimizer, other = (LearnedOptimizer(m.parameters(), rule) for m in (model, twin))
    for m, o in ((model, optimizer), (twin, other)):
        loss_of(m).backward()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=m is model):
            o.step()
    same(weights(model), weights(twin))


@pytest.mark.parametrize("what", ["step", "training step"])
def test_compiled(mlp: UpdateRule, what: str) -> None:
    model, twin = make_model(), make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    compiled = torch.compile(optimizer.step, backend="eager")

    @torch.compile(backend="eager")
    def training_step() -> None:
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    for _ in range(3):
        if what == "step":
            optimizer.zero_grad()
            loss_of(model).backward()
            compiled()
        else:
            training_step()
    train(twin, LearnedOptimizer(twin.parameters(), mlp), 3)
    same(weights(model), weights(twin))


def test_gradients_accumulate(rule: UpdateRule) -> None:
    model, twin = make_model(torch.float64), make_model(torch.float64)
    optimizer, other = (LearnedOptimizer(m.parameters(), rule) for m in (model, twin))
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(4):
            (loss_of(model) / 4).backward()
        optimizer.step()
    train(twin, other, 2)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-9, atol=1e-11)
