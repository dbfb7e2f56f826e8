"""How good predictions are: rank correlation with an interval, squared error, calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.stats import kendalltau
from torch import Tensor

__all__ = [
    "CalibrationBin",
    "Interval",
    "bootstrap_tau",
    "bootstrap_tau_difference",
    "calibration",
    "kendall_tau",
    "r_squared",
]

RESAMPLES = 1000
"""Of a bootstrap, if nothing is said."""


class Interval(NamedTuple):
    """An estimate with a bootstrap interval.

    Attributes:
        value: Of all networks.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class CalibrationBin(NamedTuple):
    """Networks with similar predictions.

    Attributes:
        expected: Mean prediction.
        observed: Mean of what is true.
        networks: How many they are.
    """

    expected: float
    observed: float
    networks: int


def kendall_tau(predicted: Tensor, target: Tensor) -> float:
    """Kendall's rank correlation tau-b, 1 for the same order, -1 for the opposite one.

    Args:
        predicted: Shape (N,).
        target: Shape (N,).

    Returns:
        The correlation; 0 where one of the two is the same for all networks, which orders nothing.

    Raises:
        ValueError: If the shapes differ, there are fewer than two networks, or a number is not finite.

    Example:
        >>> kendall_tau(torch.tensor([0.1, 0.2, 0.4]), torch.tensor([0.3, 0.5, 0.9]))
        1.0
    """
    _check(predicted, target)
    return _tau(predicted, target)


def _tau(predicted: Tensor, target: Tensor) -> float:
    found = float(kendalltau(predicted.numpy(), target.numpy()).statistic)
    return 0.0 if found != found else found


def r_squared(predicted: Tensor, target: Tensor) -> float:
    """Share of the target's variance that the predictions explain; 0 is that of the mean, below is worse.

    Args:
        predicted: Shape (N,).
        target: Shape (N,).

    Raises:
        ValueError: As :func:`kendall_tau`, and if all targets are the same.
    """
    _check(predicted, target)
    predicted, target = predicted.double(), target.double()
    variance = (target - target.mean()).square().mean()
    if variance == 0:
        raise ValueError("all targets are the same, expected several values: there is no variance to explain")
    return float(1 - (predicted - target).square().mean() / variance)


def calibration(predicted: Tensor, target: Tensor, bins: int = 10) -> list[CalibrationBin]:
    """Networks in the order of their predictions, in bins of equal numbers: what was expected, and what is.

    Args:
        predicted: Shape (N,).
        target: Shape (N,).
        bins: Number of bins; fewer if there are fewer networks.

    Raises:
        ValueError: As :func:`kendall_tau`, and if there is no bin.

    Example:
        >>> bins = calibration(torch.tensor([0.2, 0.9, 0.1, 0.8]), torch.tensor([0.0, 1.0, 0.0, 0.5]), bins=2)
        >>> [(round(one.expected, 2), one.observed, one.networks) for one in bins]
        [(0.15, 0.0, 2), (0.85, 0.75, 2)]
    """
    _check(predicted, target)
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1")
    order = predicted.argsort(stable=True)
    return [
        CalibrationBin(predicted[part].double().mean().item(), target[part].double().mean().item(), len(part))
        for part in order.tensor_split(min(bins, len(order)))
    ]


def bootstrap_tau(
    predicted: Tensor,
    target: Tensor,
    *,
    generator: torch.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Kendall's tau with the interval that resampling the networks gives (percentile bootstrap).

    Args:
        predicted: Shape (N,), or (S, N) of several trainings, whose correlations are averaged.
        target: Shape (N,).
        generator: Source of the resamples.
        resamples: Number of them.
        level: Share of the resamples that the interval holds.

    Raises:
        ValueError: As :func:`kendall_tau`, and if there is no resample or the level is not between 0 and 1.
    """
    _check_all(predicted, target)
    return _interval(lambda i: _mean_tau(predicted, target, i), len(target), generator, resamples, level)


def bootstrap_tau_difference(
    first: Tensor,
    second: Tensor,
    target: Tensor,
    *,
    generator: torch.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Kendall's tau of one predictor minus that of another on the same networks, with its bootstrap interval.

    Both are resampled together, so that what makes some networks hard for both does not count.

    Args:
        first: Shape (N,), or (S, N) of several trainings, whose correlations are averaged.
        second: Shape (N,), or (T, N).
        target: Shape (N,).
        generator: Source of the resamples.
        resamples: Number of them.
        level: Share of the resamples that the interval holds.

    Raises:
        ValueError: As :func:`bootstrap_tau`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> target = torch.rand(50, generator=generator)
        >>> noise = torch.rand(50, generator=generator)
        >>> bootstrap_tau_difference(target, target + noise, target, generator=generator).low > 0
        True
    """
    _check_all(first, target)
    _check_all(second, target)

    def difference(index: Tensor) -> float:
        return _mean_tau(first, target, index) - _mean_tau(second, target, index)

    return _interval(difference, len(target), generator, resamples, level)


def _mean_tau(predicted: Tensor, target: Tensor, index: Tensor) -> float:
    rows = predicted.reshape(-1, len(target))[:, index]
    return sum(_tau(row, target[index]) for row in rows) / len(rows)


def _interval(
    measure: Callable[[Tensor], float],
    count: int,
    generator: torch.Generator,
    resamples: int,
    level: float,
) -> Interval:
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples is {resamples} and level {level}, expected at least 1 and a number between 0 and 1"
        )
    draws = [measure(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(ends).tolist()
    return Interval(measure(torch.arange(count)), low, high)


def _check_all(predicted: Tensor, target: Tensor) -> None:
    for row in predicted if predicted.ndim == 2 else predicted[None]:
        _check(row, target)


def _check(predicted: Tensor, target: Tensor) -> None:
    if predicted.ndim != 1 or predicted.shape != target.shape or len(target) < 2:
        raise ValueError(
            f"predicted has shape {tuple(predicted.shape)} and target {tuple(target.shape)}, expected one number for "
            "each of the same two or more networks"
        )
    if not (predicted.isfinite().all() and target.isfinite().all()):
        raise ValueError(
            "predicted and target must be finite; leave out networks that are not, and count them"
        )
