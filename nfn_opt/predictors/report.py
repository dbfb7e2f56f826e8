"""What is said of a predictor on held-out networks: scores, and a picture that shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from nfn_opt.artifacts import atomic_write
from nfn_opt.predictors.config import Target
from nfn_opt.predictors.scores import bootstrap_tau, calibration, kendall_tau, r_squared

__all__ = ["draw_calibration", "draw_predictions", "draw_scatter", "draw_training", "score_report"]


def score_report(predicted: Tensor, targets: Tensor, target: Target, *, seed: int = 0) -> dict[str, Any]:
    """Scores of predictions, as JSON values.

    Args:
        predicted: Predictions, shape (N, outputs), or classes of shape (N,).
        targets: What is true, of the same shape.
        target: What is predicted.
        seed: Of the resamples of the interval of Kendall's tau.

    Returns:
        ``networks``; for classes ``accuracy`` and ``most_frequent`` (that of naming the most frequent class); else of
        the first output ``kendall_tau`` with its 95 % interval ``kendall_tau_interval``, ``r_squared``, ``mean_error``
        (mean absolute error), ``mean_error_of_mean`` (that of predicting the mean), ``calibration`` (expected, observed
        and count of ten bins), and ``kendall_taus`` where there are several outputs.
    """
    found: dict[str, Any] = {"networks": len(targets)}
    if target == "class":
        frequent = targets.bincount().max().item() / len(targets)
        return found | {
            "accuracy": (predicted == targets).double().mean().item(),
            "most_frequent": frequent,
        }
    first, true = predicted[:, 0], targets[:, 0]
    tau = bootstrap_tau(first, true, generator=torch.Generator().manual_seed(seed))
    found |= {
        "kendall_tau": tau.value,
        "kendall_tau_interval": [tau.low, tau.high],
        "r_squared": r_squared(first, true),
        "mean_error": (first - true).abs().mean().item(),
        "mean_error_of_mean": (true.mean() - true).abs().mean().item(),
        "calibration": [list(one) for one in calibration(first, true)],
    }
    if predicted.shape[1] > 1:
        pairs = zip(predicted.unbind(1), targets.unbind(1), strict=True)
        found["kendall_taus"] = [kendall_tau(*pair) for pair in pairs]
    return found


def draw_predictions(
    path: str | os.PathLike[str], predicted: Tensor, targets: Tensor, *, name: str, title: str
) -> Path:
    """Predictions against what is true, and their calibration, side by side.

    Args:
        path: PNG file to write.
        predicted: Shape (N,).
        targets: Shape (N,).
        name: What is predicted, for the axes.
        title: Of the picture.
    """
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_scatter(left, predicted, targets, name)
    draw_calibration(right, {"": (predicted, targets)}, name)
    figure.suptitle(title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return Path(path)


def draw_scatter(ax: Axes, predicted: Tensor, targets: Tensor, name: str) -> None:
    """Every network as a point: what is true over what is predicted."""
    ends = _ends(predicted, targets)
    ax.plot(ends, ends, color="tab:gray", linewidth=1, zorder=1)
    ax.scatter(predicted.numpy(), targets.numpy(), s=9, alpha=0.5, linewidths=0, color="tab:blue", zorder=2)
    tau, squared = kendall_tau(predicted, targets), r_squared(predicted, targets)
    ax.text(0.04, 0.96, f"Kendall's $\\tau$ {tau:.3f}\n$R^2$ {squared:.3f}", transform=ax.transAxes, va="top")
    ax.set(xlabel=f"predicted {name}", ylabel=name, xlim=ends, ylim=ends, aspect="equal")


def draw_calibration(ax: Axes, curves: Mapping[str, tuple[Tensor, Tensor]], name: str) -> None:
    """Mean of what is true over the mean prediction, of bins of equal numbers of networks.

    Args:
        ax: Where to draw.
        curves: Predictions and truths, shapes (N,), by the name of the predictor.
        name: What is predicted.
    """
    together = [torch.cat(pair) for pair in zip(*curves.values(), strict=True)]
    ends = _ends(*together)
    ax.plot(ends, ends, color="tab:gray", linewidth=1)
    for label, (predicted, targets) in curves.items():
        bins = calibration(predicted, targets)
        expected, observed = [one.expected for one in bins], [one.observed for one in bins]
        ax.plot(expected, observed, "o-", markersize=4, linewidth=1.2, label=label or None)
    count = min(len(targets) // len(bins) for _, targets in curves.values())
    ax.set(
        xlabel=f"mean predicted {name}",
        ylabel=f"mean {name}",
        xlim=ends,
        ylim=ends,
        aspect="equal",
        title=f"{len(bins)} bins of {count} networks or more",
    )
    if any(curves):
        ax.legend(fontsize="small")


def _ends(*values: Tensor) -> tuple[float, float]:
    low, high = min(value.min().item() for value in values), max(value.max().item() for value in values)
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def draw_training(
    path: str | os.PathLike[str], history: Sequence[Mapping[str, float]], *, score: str, title: str
) -> Path:
    """The loss and the validation score of a training.

    Args:
        path: PNG file to write.
        history: As :class:`nfn_opt.training.TrainingResult` has it.
        score: Name of the score.
        title: Of the picture.
    """
    steps = [one["step"] for one in history]
    scores = [one["score"] for one in history]
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [one["loss"] for one in history], "o-", markersize=3, color="tab:blue")
    left.set(xlabel="step", ylabel="training loss")
    best = max(range(len(scores)), key=scores.__getitem__)
    right.plot(steps, scores, "o-", markersize=3, color="tab:orange")
    right.plot(
        steps[best], scores[best], "*", markersize=12, color="tab:red", label=f"best, {scores[best]:.3f}"
    )
    right.set(xlabel="step", ylabel=f"validation {score}")
    right.legend(fontsize="small", loc="lower right")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return Path(path)
