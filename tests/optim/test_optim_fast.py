"""The fast step makes the updates of the pure rule, in little memory."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.optim import (
    LearnedOptimizer,
    MLPConfig,
    MLPRule,
    UpdateRule,
    make_rule,
    shell_engine,
    shell_fast_chunks,
)
from nfn_opt.optim.shell_fast import FastStep
from nfn_opt.optim.shell_fast_chunks import Scratch
from nfn_opt.optim.shell_fast_linear import LinearStep
from nfn_opt.optim.shell_parameters import Entry, entries
from nfn_opt.optim.spectral import REMEMBERED
from nfn_opt.weight_space import WeightSpace
from tests.optim.peak_memory import PeakMemory
from tests.optim.rule_cases import RULES
from tests.optim.shell_cases import loss_of, make_model, same, snapshot, train, weights

FAST = [name for name, make in RULES.items() if FastStep.supports(make())]

SHAPES = [
    *[(4, 3), (4, 3), (3, 3), (1, 5), (50, 7), (7, 50), (2, 300)],  # matrices
    *[(), (1,), (4,), (4,), (9,), (701,)],  # vectors, some of the same shape
    *[(3, 4, 2, 2), (3, 4, 2, 2), (8, 3, 5, 5), (40, 16, 3, 3), (8, 3, 7)],  # convolutions
    *[(2, 3, 4), (1, 6, 7), (3, 1, 4, 2)],  # others
]


def make_entries(dtype: torch.dtype, generator: torch.Generator) -> list[Entry]:
    params = [nn.Parameter(0.1 * torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]
    return entries([{"params": params, "lr": 1.0, "weight_decay": 0.0}], named=False)


def test_all_per_weight_rules_are_covered() -> None:
    assert set(FAST) == {name for name, make in RULES.items() if isinstance(make(), MLPRule)} | {"spectral"}


@pytest.mark.parametrize("chunk", [16384, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", FAST)
def test_equals_the_pure_rule(
    name: str,
    dtype: torch.dtype,
    tolerance: float,
    chunk: int,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell_fast_chunks, "CPU_CHUNK", chunk)
    rule = RULES[name]().to(dtype).requires_grad_(False)
    tolerance *= 10 if name in ("celo2", "celo2, flat", "spectral") else 1  # orthogonal: more roundings
    found = make_entries(dtype, generator)
    params = {entry.key: entry.param.detach() for entry in found}
    space = WeightSpace.independent(params)
    fast = FastStep(rule, (torch.device("cpu"), dtype), Scratch())
    taken = [entry for entry in found if fast.takes(space, entry.key)]
    state = rule.init(space, params)
    own = copy.deepcopy(state["tensors"])
    for t in range(3):
        grads = {
            key: 0.05 * torch.randn(p.shape, generator=generator, dtype=dtype) for key, p in params.items()
        }
        told: dict[str, Any] = {"space": space, "step": torch.tensor(t), "total_steps": torch.tensor(9)}
        expected, state = rule.update(params, grads, state, **told)
        for entry, update in fast.updates(taken, grads, own, **told):
            size = expected[entry.key].abs().max()
            assert (update - expected[entry.key]).abs().max() <= tolerance * size, entry.label
            for key, value in state["tensors"][entry.key].items():
                small = tolerance * (
                    1.0 if key in REMEMBERED else 1e-6
                )  # logarithms and cosines are of order 1
                torch.testing.assert_close(own[entry.key][key], value, rtol=10 * tolerance, atol=small)
        for key, update in expected.items():
            params[key] += update
    assert len(taken) >= len([shape for shape in SHAPES if len(shape) == 2])


def test_what_is_left_to_the_rule() -> None:
    space = WeightSpace.independent({str(i): torch.zeros(shape) for i, shape in enumerate(SHAPES)})
    for config, left in (
        (MLPConfig(), {(3, 1, 4, 2)}),
        (MLPConfig.celo2_base(), {(8, 3, 5, 5), (8, 3, 7), (2, 3, 4), (1, 6, 7), (3, 1, 4, 2)}),
    ):
        fast = FastStep(MLPRule(config), (torch.device("cpu"), torch.float32), Scratch())
        assert {s for i, s in enumerate(SHAPES) if not fast.takes(space, str(i))} == left


def test_unknown_rules_are_not_taken() -> None:
    class Mine(MLPRule):
        def _scaled(self, *args: Any) -> Tensor:
            return 2 * super()._scaled(*args)

    assert not FastStep.supports(Mine())
    assert not FastStep.supports(make_rule("nfn"))
    for value in (float("inf"), float("nan"), 1e12):
        rule = MLPRule()
        rule.first.weight.data.fill_(value)
        assert not FastStep.supports(rule)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e10, 1e38])
@pytest.mark.parametrize(
    "name", [name for name in FAST if getattr(RULES[name]().config, "vectors", "learned") == "learned"]
)
def test_finite_for_what_is_finite(name: str, scale: float, generator: torch.Generator) -> None:
    found = [
        nn.Parameter((scale * torch.randn(shape, generator=generator)).clamp(-3e38, 3e38)) for shape in SHAPES
    ]
    optimizer = LearnedOptimizer(found, RULES[name](), lr=0.0)
    for _ in range(2):
        for p in found:
            p.grad = (scale * torch.randn(p.shape, generator=generator)).clamp(-3e38, 3e38)
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(mlp: UpdateRule, bad: float) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.named_parameters(), mlp)
    train(model, optimizer, 2)
    loss_of(model).backward()
    model.head.weight.data[0, 0] = bad
    before = weights(model)[:2], snapshot(optimizer)
    with pytest.raises(FloatingPointError, match=r"the update of 'head.weight' is NaN or infinite"):
        optimizer.step()
    same((weights(model)[:2], snapshot(optimizer)), before)


def test_any_memory_format(mlp: UpdateRule, generator: torch.Generator) -> None:
    plain = torch.randn(6, 5, 3, 3, generator=generator)
    formats = [
        plain.clone(),
        plain.clone(memory_format=torch.channels_last),
        plain.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ]
    params = [nn.Parameter(p) for p in formats]
    optimizers = [LearnedOptimizer([p], mlp) for p in params]
    for _ in range(3):
        grad = torch.randn(plain.shape, generator=generator)
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = grad.clone(memory_format=torch.preserve_format)
            optimizer.step()
    for p, start in zip(params[1:], formats[1:], strict=True):
        torch.testing.assert_close(p, params[0], rtol=0, atol=1e-6)
        assert p.stride() == start.stride()


@pytest.mark.parametrize("rule", [MLPRule(MLPConfig.celo2_base()), make_rule("mlp")], ids=["celo2", "mlp"])
def test_peak_memory(rule: UpdateRule) -> None:
    model = nn.Sequential(nn.Linear(1500, 600), nn.Linear(600, 20))
    optimizer = LearnedOptimizer(model.parameters(), rule)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with PeakMemory() as memory:
            optimizer.step()
    state = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    n = sum(p.numel() for p in model.parameters())
    assert state < 17 * n
    assert memory.peak < 4 * n + 32e6


def test_config_replacements_are_followed() -> None:
    """Every option of the rule that changes the update is one that the fast step follows."""
    options: dict[str, Any] = {
        "lr": 0.5,
        "base": "none",
        "correction": 0.7,
        "gradient_clip": 0.01,
        "eps": 0.1,
        "orthogonal": "flat",
        "normalise_output": True,
        "normalise_over": "matrix",
        "vector_factor": 3.0,
        "vectors": "adam",
        "momentum_decays": (0.5, 0.6, 0.7),
        "second_moment_decay": 0.5,
        "factor_decays": (0.1, 0.2, 0.3),
        "hidden": (5, 4, 3),
        "use_time": False,
        "schedule": False,
        "by_kind": False,
        "features": ("gradient", "row"),
        "output_scale": 3.0,
        "learn_lr": False,
    }
    assert set(options) == {field.name for field in dataclasses.fields(MLPConfig)}
    for name, value in options.items():
        rule = MLPRule(MLPConfig(**{name: value})).double()
        model, twin = make_model(torch.float64), make_model(torch.float64)
        train(model, LearnedOptimizer(model.parameters(), rule), 3)
        general = LearnedOptimizer(twin.parameters(), rule)
        general._engines[general._default]._fast[torch.device("cpu"), torch.float64] = None
        train(twin, general, 3)
        torch.testing.assert_close(weights(model), weights(twin), rtol=1e-9, atol=1e-12, msg=name)


def test_parts_of_a_large_network(rule: UpdateRule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule itself makes the same updates of all parameters at once and of some at a time."""
    models = [make_model(torch.float64), make_model(torch.float64)]
    for step in (FastStep, LinearStep):
        monkeypatch.setattr(step, "least", 10**9)
    for model, together in zip(models, (10**9, 17), strict=True):
        monkeypatch.setattr(shell_engine, "TOGETHER", together)
        train(model, LearnedOptimizer(model.parameters(), rule), 3)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-12, atol=1e-14)
