"""The spectral rule in the fast step: what is particular to it, and memory; see also ``test_optim_fast``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.optim import LearnedOptimizer, SpectralConfig, SpectralRule, make_rule, shell_fast_linear
from nfn_opt.optim.shell_fast import FastStep
from nfn_opt.optim.shell_fast_linear import LinearStep
from nfn_opt.weight_space import WeightSpace
from tests.optim.peak_memory import PeakMemory
from tests.optim.shell_cases import loss_of, make_model, same, snapshot, train, weights

LINEAR: dict[str, Any] = {"hidden": (), "features": ("momentum", "gradient"), "momentum_decays": (0.9,)}
"""The rule whose direction is linear in gradient and momentum."""


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
@pytest.mark.parametrize("options", [{"correction": 0.1}, LINEAR])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_it_trains_as_the_rule(
    dtype: torch.dtype, tolerance: float, options: dict[str, Any], total_steps: int | None
) -> None:
    rule = SpectralRule(SpectralConfig(**options)).to(torch.promote_types(dtype, torch.float32))
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
        LINEAR,
        {**LINEAR, "momentum_decays": (0.5, 0.9), "gradient_clip": 0.01, "weight_decay": 0.0, "control": 2},
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
    assert not FastStep.supports(SpectralRule(SpectralConfig(neighbours=True)))
    linear, network = SpectralConfig(control=3, **LINEAR), SpectralConfig(control=3, correction=0.1)

    class Mine(SpectralRule):
        def step_sizes(self, *args: Any) -> Any:
            return super().step_sizes(*args)

    for step, config, other in ((FastStep, network, linear), (LinearStep, linear, network)):
        assert step.supports(SpectralRule(config))
        assert not step.supports(SpectralRule(other))
        assert not step.supports(Mine(config))
        for name, _ in SpectralRule(config).named_parameters():
            for value in (float("nan"), float("inf"), 1e15):
                rule = SpectralRule(config)
                rule.get_parameter(name).data.fill_(value)
                assert not step.supports(rule), (name, value)
    assert not LinearStep.supports(SpectralRule(SpectralConfig(hidden=())))


def test_a_linear_rule_keeps_only_what_it_reads() -> None:
    p = nn.Parameter(torch.ones(5, 3))
    for features, more in (
        (LINEAR["features"], set()),
        (SpectralConfig().features, {"second_moment", "row", "column"}),
    ):
        rule = SpectralRule(SpectralConfig(hidden=(), features=features))
        (state,) = rule.init(WeightSpace.independent({"p": p}), {"p": p})["tensors"].values()
        assert set(state) == {"step", "momentum", "agreement", "size", "moved", *more}


def test_neighbours_need_hidden_layers() -> None:
    with pytest.raises(ValueError, match="expected hidden layers"):
        SpectralConfig(hidden=(), neighbours=True)


@pytest.mark.parametrize("together", [1, 100, 10**6])
def test_tensors_are_worked_on_together_and_in_sections(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(shell_fast_linear, "TOGETHER", together)
    monkeypatch.setattr(shell_fast_linear, "chunk_size", lambda device: max(7, together // 10))
    rule = SpectralRule(SpectralConfig(**LINEAR)).double()
    one, two = train_both(rule, total_steps=20)
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, LINEAR])
@pytest.mark.parametrize("shape", [(900, 800), (30000, 24), (64, 128, 9, 9), (700000,)])
def test_peak_memory(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    p = nn.Parameter(torch.ones(shape))
    optimizer = LearnedOptimizer([p], SpectralRule(SpectralConfig(**options)), total_steps=10)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        with PeakMemory() as memory:
            optimizer.step()
    assert memory.peak < 36 * p.numel() + 16e6
