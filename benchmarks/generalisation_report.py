"""Table and figures of :mod:`benchmarks.generalisation`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from nfn_opt.artifacts import atomic_write
from nfn_opt.predictors.report import draw_calibration, draw_scatter
from nfn_opt.predictors.scores import Interval, kendall_tau, r_squared

PUBLISHED: Mapping[str, Mapping[str, str]] = {
    "NFN, HNP": {"CIFAR-10-GS": "0.934 ± 0.001", "SVHN-GS": "0.931 ± 0.005"},
    "NFN, NP": {"CIFAR-10-GS": "0.922 ± 0.001", "SVHN-GS": "0.856 ± 0.001"},
    "StatNN": {"CIFAR-10-GS": "0.915 ± 0.002", "SVHN-GS": "0.843 ± 0.000"},
}
"""Kendall's tau in the table of Sec. 4.1 of arXiv:2302.14040, of two runs, on other networks than here."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """One training.

    Attributes:
        predicted: Predictions for the test networks, shape (N,).
        seconds: Processor time of its training.
        parameters: Of the predictor.
        best_step: The step whose weights were kept, if known.
        validation: Kendall's tau on the validation networks, if known.
    """

    predicted: Tensor
    seconds: float
    parameters: int
    best_step: int | None = None
    validation: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "predicted": self.predicted.tolist()}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Trained:
        """The inverse of `record`."""
        return cls(**{**record, "predicted": torch.tensor(record["predicted"])})


def taus(some: Sequence[Trained], targets: Tensor) -> list[float]:
    """Kendall's tau of every training."""
    return [kendall_tau(one.predicted, targets) for one in some]


def table(found: Mapping[str, Sequence[Trained]], targets: Tensor) -> str:
    """Rows of a Markdown table: mean and standard deviation over seeds, best first."""
    lines = [
        "| predictor | Kendall's tau | seeds | R^2 | mean error | parameters | processor s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda name: -statistics.mean(taus(found[name], targets))):
        some = found[name]
        errors = [(one.predicted - targets).abs().mean().item() for one in some]
        squared = [r_squared(one.predicted, targets) for one in some]
        seconds = statistics.mean(one.seconds for one in some)
        lines.append(
            f"| {name} | {_spread(taus(some, targets))} | {len(some)} | {statistics.mean(squared):.3f} | "
            f"{statistics.mean(errors):.3f} | {some[0].parameters:,} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def published_table() -> str:
    """The published numbers, and that they are of other networks."""
    lines = [
        "Published, **on other data** (the public Small CNN Zoo, 12,000 training networks, 86 epochs each; two runs):",
        "",
        "| predictor | CIFAR-10-GS | SVHN-GS |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {row['CIFAR-10-GS']} | {row['SVHN-GS']} |" for name, row in PUBLISHED.items()]
    return "\n".join(lines) + "\n"


def difference_line(first: str, second: str, found: Interval, count: int) -> str:
    """The difference of two predictors in words."""
    verdict = "does not hold 0" if found.low > 0 or found.high < 0 else "holds 0"
    return (
        f"Kendall's tau of {first} minus that of {second}: {found.value:+.3f}, 95 % bootstrap interval "
        f"{found.low:+.3f} to {found.high:+.3f} over {count:,} test networks, which {verdict}.\n"
    )


def draw(
    path: Path, found: Mapping[str, Sequence[Trained]], targets: Tensor, shown: Sequence[str], title: str
) -> None:
    """Histogram of the accuracies, scatter of the best predictor, calibration of some.

    Args:
        path: PNG file to write.
        found: The trainings.
        targets: Accuracies of the test networks, shape (N,).
        shown: The predictors to draw, best first.
        title: Of the figure.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.hist(targets.numpy(), bins=25, color="tab:gray")
    left.set(xlabel="test accuracy", ylabel="networks", title=f"{len(targets):,} test networks")
    best = found[shown[0]][0]
    draw_scatter(middle, best.predicted, targets, "test accuracy")
    middle.set_title(f"{shown[0]}, first seed", fontsize="medium")
    curves = {name: (found[name][0].predicted, targets) for name in shown}
    draw_calibration(right, curves, "test accuracy")
    figure.suptitle(title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def in_words(zoo: Any) -> str:
    """What a zoo is, as the heading of a figure."""
    return repr(zoo).partition("(")[2].removesuffix(")")


def draw_taus(path: Path, found: Mapping[str, Sequence[Trained]], targets: Tensor) -> None:
    """Kendall's tau of every training, by predictor."""
    order = sorted(found, key=lambda name: statistics.mean(taus(found[name], targets)))
    figure = Figure(figsize=(6.4, 1.2 + 0.32 * len(order)), layout="constrained")
    ax = figure.subplots()
    for place, name in enumerate(order):
        values = taus(found[name], targets)
        ax.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5, markersize=5)
        ax.plot(statistics.mean(values), place, "|", color="tab:red", markersize=14)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=f"Kendall's tau, {len(targets):,} test networks (dot: a seed, line: mean)")
    ax.grid(axis="x", alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def stacked(some: Sequence[Trained]) -> Tensor:
    """Predictions of all seeds, shape (S, N)."""
    return torch.stack([one.predicted for one in some])
