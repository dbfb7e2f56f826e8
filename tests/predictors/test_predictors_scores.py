"""Scores against other ways of computing them."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import r2_score

from nfn_opt.predictors import (
    bootstrap_tau,
    bootstrap_tau_difference,
    calibration,
    kendall_tau,
    r_squared,
)


def test_tau_counts_pairs(generator: torch.Generator) -> None:
    predicted, target = torch.rand(2, 30, generator=generator)
    pairs = [(i, j) for i in range(30) for j in range(i)]
    signs = [torch.sign((predicted[i] - predicted[j]) * (target[i] - target[j])).item() for i, j in pairs]
    assert kendall_tau(predicted, target) == pytest.approx(sum(signs) / len(pairs))


def test_a_constant_orders_nothing() -> None:
    assert kendall_tau(torch.zeros(4), torch.rand(4)) == 0.0


def test_r_squared_is_that_of_sklearn(generator: torch.Generator) -> None:
    predicted, target = torch.rand(2, 50, generator=generator)
    assert r_squared(predicted, target) == pytest.approx(r2_score(target, predicted), rel=1e-5)


def test_calibration_keeps_all_networks(generator: torch.Generator) -> None:
    target = torch.rand(103, generator=generator)
    predicted = target * 0.5 + 0.1
    bins = calibration(predicted, target, bins=10)
    assert sum(one.networks for one in bins) == 103
    for one in bins:
        assert one.expected == pytest.approx(one.observed * 0.5 + 0.1, rel=1e-5)
    assert [one.expected for one in bins] == sorted(one.expected for one in bins)


def test_bootstrap_holds_what_is_true_about_as_often_as_it_says(generator: torch.Generator) -> None:
    """Normal variables of correlation r have tau = 2 / pi asin(r)."""
    r, trials, count = 0.8, 60, 60
    truth = 2 / torch.pi * torch.asin(torch.tensor(r)).item()
    held = 0
    for _ in range(trials):
        x, noise = torch.randn(2, count, generator=generator)
        y = r * x + (1 - r**2) ** 0.5 * noise
        found = bootstrap_tau(x, y, generator=generator, resamples=60, level=0.9)
        assert found.low <= found.value <= found.high
        held += found.low < truth < found.high
    assert 0.78 <= held / trials <= 0.99


def test_difference_is_paired(generator: torch.Generator) -> None:
    target = torch.rand(80, generator=generator)
    noisy = target + 0.5 * torch.rand(80, generator=generator)
    same = bootstrap_tau_difference(noisy, noisy, target, generator=generator, resamples=20)
    assert same == (0.0, 0.0, 0.0)
    better = bootstrap_tau_difference(target, noisy, target, generator=generator, resamples=50)
    assert better.low > 0
    assert better.value == pytest.approx(1 - kendall_tau(noisy, target))


def test_several_trainings_are_averaged(generator: torch.Generator) -> None:
    target = torch.rand(40, generator=generator)
    both = target + 0.3 * torch.rand(2, 40, generator=generator)
    found = bootstrap_tau(both, target, generator=generator, resamples=5)
    assert found.value == pytest.approx((kendall_tau(both[0], target) + kendall_tau(both[1], target)) / 2)


def test_refusals(generator: torch.Generator) -> None:
    two = torch.rand(2)
    with pytest.raises(ValueError, match="same two or more networks"):
        kendall_tau(two, torch.rand(3))
    with pytest.raises(ValueError, match="must be finite"):
        kendall_tau(torch.tensor([0.0, torch.nan]), two)
    with pytest.raises(ValueError, match="no variance"):
        r_squared(two, torch.ones(2))
    with pytest.raises(ValueError, match="bins is 0"):
        calibration(two, two, bins=0)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_tau(two, two, generator=generator, resamples=0)
