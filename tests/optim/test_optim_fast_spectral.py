"""The spectral rule in the fast step: what is particular to it, and memory; see also ``test_optim_fast``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.optim import LearnedOptimizer, SpectralConfig, SpectralRule, make_rule
from nfn_opt.optim.shell_fast import FastStep
from tests.optim.peak_memory import PeakMemory
from tests.optim.shell_cases import loss_of, make_model, same, snapshot, train, weights


def train_both(rule: SpectralRule, dtype: torch.dtype = torch.float64, **options: Any) -> list[nn.Module]:
    """A network trained by the fast step, and its twin by the rule itself."""
    models: list[nn.Module] = [make_model(dtype), make_model(dtype)]
    fast, general = (LearnedOptimizer(model.parameters(), rule, **options) for model in models)
    engine = general._engines[general._default]
    for where in {(p.device, torch.promote_types(p.dtype, torch.float32)) for p in models[1].parameters()}:
        engine._fast[where] = None
    train(models[0], fast, 4)
    train(models[1], general, 4)
    used = next(iter(fast._engines.values()))._fast
    assert all(step is not None for step in used.values())
    return models


@pytest.mark.parametrize("total_steps", [None, 5])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_it_trains_as_the_rule(dtype: torch.dtype, tolerance: float, total_steps: int | None) -> None:
    rule = SpectralRule(SpectralConfig(correction=0.1)).to(torch.promote_types(dtype, torch.float32))
    one, two = train_both(rule, dtype, total_steps=total_steps)
    torch.testing.assert_close(weights(one), weights(two), rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"features": ("momentum", "gradient")},
        {"features": ("row", "gradient", "momentum", "factored_momentum")},
        {"hidden": (5,)},
        {"hidden": (5, 4, 3), "correction": 3.0},
        {"momentum_decays": (0.5, 0.6), "second_moment_decay": 0.5, "factor_decays": (0.1, 0.2)},
        {"gradient_clip": 0.01, "control": 3, "warmup": 0.5},
        {"lr": 1e-2, "vector_lr": 1e-3, "rate": 0.5, "width_exponent": 0.5, "size_exponent": 0.3},
    ],
)
def test_options_are_followed(options: dict[str, Any]) -> None:
    rule = SpectralRule(SpectralConfig(**options)).double()
    generator = torch.Generator().manual_seed(1)
    for p in rule.parameters():
        p.data.add_(0.01 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    one, two = train_both(rule, total_steps=20)
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_changed_by_gradients_that_are_not_finite(bad: float) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), make_rule("spectral"), on_nonfinite="skip")
    train(model, optimizer, 2)
    loss_of(model).backward()
    grad = model.head.weight.grad
    assert grad is not None
    grad[0, 0] = bad
    before = weights(model), snapshot(optimizer)
    with pytest.warns(RuntimeWarning, match="step skipped"):
        optimizer.step()
    same((weights(model), snapshot(optimizer)), before)


def test_rules_that_are_not_taken() -> None:
    assert FastStep.supports(SpectralRule())
    assert not FastStep.supports(SpectralRule(SpectralConfig(neighbours=True)))
    config = SpectralConfig(control=3, correction=0.1)
    names = [name for name, _ in SpectralRule(config).named_parameters()]
    for name in names:
        for value in (float("nan"), float("inf"), 1e15):
            rule = SpectralRule(config)
            rule.get_parameter(name).data.fill_(value)
            assert not FastStep.supports(rule), (name, value)

    class Mine(SpectralRule):
        def step_sizes(self, *args: Any) -> Any:
            return super().step_sizes(*args)

    assert not FastStep.supports(Mine())


@pytest.mark.parametrize("shape", [(900, 800), (30000, 24), (64, 128, 9, 9), (700000,)])
def test_peak_memory(shape: tuple[int, ...]) -> None:
    p = nn.Parameter(torch.ones(shape))
    optimizer = LearnedOptimizer([p], make_rule("spectral"), total_steps=10)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        with PeakMemory() as memory:
            optimizer.step()
    assert memory.peak < 36 * p.numel() + 16e6
