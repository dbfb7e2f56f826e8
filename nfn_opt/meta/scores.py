"""What is read off training curves: speed-up over a baseline, and means over tasks with intervals.

All losses are arrays of float64 with one row for each seed; a loss that is not finite counts as infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal, stats

Array = NDArray[np.float64]

EMA_DECAY = 0.95
"""Decay of the moving mean by which curves of minibatch losses are smoothed, as VeLO's baselines are."""


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def smoothed(losses: ArrayLike, decay: float = EMA_DECAY) -> Array:
    r"""The running minimum of the moving mean of a curve.

    .. math:: e_t = d e_{t-1} + (1 - d) \ell_t, \quad e_0 = \ell_0 \qquad s_t = \min_{i \le t} e_i

    From the first loss on that is not finite, the moving mean is infinite.

    Args:
        losses: Minibatch losses, shape (..., steps).
        decay: :math:`d`.

    Returns:
        Shape (..., steps), falling along the last axis.

    Example:
        >>> smoothed([4.0, 2.0, 6.0], decay=0.5).tolist()
        [4.0, 3.0, 3.0]
    """
    curve = np.asarray(losses, dtype=np.float64)
    broken = np.maximum.accumulate(~np.isfinite(curve), axis=-1)
    clean = np.where(broken, 0.0, curve)
    start = decay * clean[..., :1]
    mean, _ = signal.lfilter([1 - decay], [1, -decay], clean, axis=-1, zi=start)
    return np.minimum.accumulate(np.where(broken, np.inf, mean), axis=-1)


def steps_to(target: ArrayLike, losses: ArrayLike) -> Array:
    """How many updates it takes until the smoothed loss is as low as a target, infinite if it never is.

    Args:
        target: Losses to reach, shape (...).
        losses: Minibatch losses before each update, shape (..., steps).

    Returns:
        Shape (...); at least 1.

    Example:
        >>> steps_to(3.7, [4.0, 0.0, 0.0, 0.0]).item()
        2.0
        >>> steps_to(-1.0, [4.0, 0.0, 0.0, 0.0]).item()
        inf
    """
    reached = smoothed(losses) <= np.asarray(target, dtype=np.float64)[..., None]
    first = np.maximum(np.argmax(reached, axis=-1), 1)
    return np.where(reached.any(axis=-1), first, np.inf).astype(np.float64)


def speed_up(losses: ArrayLike, baseline: ArrayLike, failed: ArrayLike = False) -> Array:
    """Steps that the baseline needs to its own final loss, over the steps needed to reach that loss.

    Losses are smoothed, see :func:`smoothed`; the target is the last smoothed loss of the baseline on the same
    seed, so that the baseline has 1 by itself. A run that failed or never reaches the target has 0, and
    so has every run where the baseline failed on its own seed, as there is no target.

    Args:
        losses: Minibatch losses, shape (seeds, steps).
        baseline: Those of the baseline on the same seeds, shape (seeds, baseline steps).
        failed: Which runs failed, shape (seeds,).

    Returns:
        Shape (seeds,).

    Example:
        >>> curve = [[4.0 - 0.03 * t for t in range(100)]]
        >>> twice = [[4.0 - 0.06 * t for t in range(100)]]
        >>> speed_up(curve, curve).item(), round(speed_up(twice, curve).item(), 1)
        (1.0, 1.7)
    """
    target = smoothed(baseline)[..., -1]
    needed = np.where(np.asarray(failed), np.inf, steps_to(target, losses))
    found = steps_to(target, baseline) / needed
    return np.where(np.isfinite(target), found, 0.0)


def progress(final: ArrayLike, initial: ArrayLike, baseline: ArrayLike) -> Array:
    """How far the loss fell, over how far it fell with the baseline: 1 for the baseline, 0 for a failed run.

    Args:
        final: Final losses, infinite where a run failed.
        initial: Initial losses.
        baseline: Final losses of the baseline.
    """
    final, initial, baseline = (np.asarray(x, dtype=np.float64) for x in (final, initial, baseline))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (initial - final) / (initial - baseline)
    return np.where(np.isfinite(share), share, 0.0)


def iqm(scores: Array) -> Any:
    """The interquartile mean, over the last two axes: the mean of the middle half (arXiv:2108.13264).

    Args:
        scores: Shape (..., tasks, seeds).

    Example:
        >>> float(iqm(np.array([[0.0, 2.0], [4.0, 100.0]])))
        3.0
    """
    return stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def win_rate(losses: Array) -> Any:
    """Share of the tasks with a lower mean loss than the other, a tie counting half.

    Args:
        losses: Losses of one and of the other, shape (..., tasks, seeds, 2); infinite where a run failed.
    """
    means = losses.mean(axis=-2)
    one, other = means[..., 0], means[..., 1]
    return ((one < other) + 0.5 * (one == other)).mean(axis=-1)


def bootstrap(
    statistic: Callable[[Array], Any],
    scores: ArrayLike,
    generator: np.random.Generator,
    *,
    tasks: bool = False,
    resamples: int = 5000,
) -> Interval:
    """A statistic with its 95 % percentile interval by the stratified bootstrap (arXiv:2108.13264).

    Seeds are drawn anew with replacement within each task. With few seeds the interval tells the noise of
    training on *these* tasks; with ``tasks=True`` the tasks are drawn anew, too, and it tells about others like
    them.

    Args:
        statistic: From scores (..., tasks, seeds, *rest) to numbers (...).
        scores: Shape (tasks, seeds, *rest).
        generator: Source of randomness.
        tasks: Whether tasks are drawn anew, too.
        resamples: How often.

    Raises:
        ValueError: If there are no scores.

    Example:
        >>> bootstrap(iqm, np.ones((4, 3)), np.random.default_rng(0))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim < 2 or values.size == 0:
        raise ValueError(
            f"scores have shape {values.shape}, expected (tasks, seeds, ...), at least one of each"
        )
    n, m = values.shape[:2]
    rows = generator.integers(n, size=(resamples, n, 1)) if tasks else np.arange(n)[None, :, None]
    columns = generator.integers(m, size=(resamples, n, m))
    found = statistic(values[rows, columns])
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(statistic(values)), float(low), float(high))
