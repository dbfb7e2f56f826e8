"""Table and intervals of :mod:`benchmarks.inr_classification`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

PUBLISHED: dict[str, dict[str, float]] = {
    "mnist": {"Inr2Array": 98.5, "direct NP": 92.9, "direct HNP": 92.5, "flat MLP": 14.5},
    "cifar": {"Inr2Array": 63.4, "direct NP": 46.6, "direct HNP": 44.1, "flat MLP": 16.9},
}
"""Test accuracy in % of arXiv:2302.14040 and arXiv:2305.13546, on the authors' own INRs: 45,000 for training with 10
(MNIST) or 20 (CIFAR-10) further views of each, 200,000 steps."""


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its confidence interval by Student's t; NaN for a single value.

    Example:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 2)
        (2.0, 2.48)
    """
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan
    factor = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return mean, float(factor) * statistics.stdev(values) / math.sqrt(len(values))


def differences_of(found: Mapping[str, Sequence[Mapping[str, Any]]], name: str, base: str) -> list[float]:
    """Accuracy of one above that of another, in points, seed by seed."""
    return [
        100 * (one["accuracy"] - other["accuracy"])
        for one, other in zip(found[name], found[base], strict=False)
    ]


def table(found: Mapping[str, Sequence[Mapping[str, Any]]], base: str, published: Mapping[str, float]) -> str:
    """The results as Markdown.

    Args:
        found: Records of the trainings, seed by seed.
        base: The method that others are compared with.
        published: Accuracy in % on other data.
    """
    lines = [
        "| classifier | parameters | steps | processor s | test accuracy (%) | seeds | "
        f"above {base} (points) | published, other data (%) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, some in found.items():
        accuracy = _with_half(*interval([100 * one["accuracy"] for one in some]))
        seconds = statistics.mean(one["processor_seconds"] for one in some)
        above = "" if name == base else _with_half(*interval(differences_of(found, name, base)))
        lines.append(
            f"| {name} | {some[0]['parameters']:,} | {some[0]['steps']:,} | {seconds:.0f} | {accuracy} | {len(some)} | "
            f"{above} | {published.get(name, '')} |"
        )
    return "\n".join(lines) + "\n"


def _with_half(mean: float, half: float) -> str:
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def metrics(found: Mapping[str, Sequence[Mapping[str, Any]]], name: str, base: str) -> dict[str, float]:
    """The result in numbers: the gain of a method over the base, whether it is above 3 points, and the time of both."""
    numbers = {
        f"{each}/accuracy": interval([one["accuracy"] for one in some])[0] for each, some in found.items()
    }
    if name not in found or base not in found:
        return numbers
    mean, half = interval(differences_of(found, name, base))
    seconds = {
        each: statistics.mean(one["processor_seconds"] for one in found[each]) for each in (name, base)
    }
    low = {} if math.isnan(half) else {"gain_low": mean - half, "gain_high": mean + half}
    return {**numbers, "gain": mean, **low, "processor_seconds_ratio": seconds[base] / seconds[name]}
