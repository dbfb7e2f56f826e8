"""The picture of a meta-training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from nfn_opt.artifacts import atomic_write
from nfn_opt.meta.evaluate import Curves, Tuned

RULE, ADAM = "tab:blue", "tab:gray"
COLUMNS = 4
"""Largest number of panels in a row."""

Points = Sequence[tuple[int, float]]


def draw_curves(
    path: Path,
    meta_losses: Points,
    evaluations: Mapping[str, Points],
    rule: Mapping[str, Curves],
    adam: Mapping[str, Tuned],
) -> None:
    """Draw how the rule was trained, and how it trains networks compared with tuned Adam.

    Args:
        path: PNG file to write.
        meta_losses: Outer step and meta-loss.
        evaluations: For each held-out task, outer step and mean final loss.
        rule: For each held-out task, training with the rule as it is now.
        adam: The same with Adam at several learning rates; may be empty.
    """
    panels = 2 + len(rule)
    columns = min(math.ceil(math.sqrt(panels)) if panels > COLUMNS else panels, COLUMNS)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    _draw_meta_loss(axes[0], meta_losses)
    _draw_evaluations(axes[1], evaluations, adam)
    for ax, (name, curves) in zip(axes[2:], rule.items(), strict=False):
        _draw_comparison(ax, name, curves, adam.get(name))
    for ax in axes[panels:]:
        ax.set_axis_off()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_meta_loss(ax: Axes, points: Points) -> None:
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    losses = [loss for _, loss in finite]
    if finite:
        ax.plot(*zip(*finite, strict=True), color=RULE, alpha=0.3, linewidth=0.6)
        window = max(1, len(finite) // 50)
        ax.plot(*zip(*smooth(finite, window), strict=True), color=RULE, label=f"mean of {window} steps")
    if len(finite) >= 100:
        ax.legend(fontsize="small")
    if losses and min(losses) > 0:
        log_scale(ax)
    ax.set(xlabel="outer step", ylabel="meta-loss", title="Meta-training")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(alpha=0.3)


def smooth(points: Points, window: int) -> list[tuple[int, float]]:
    """Means of consecutive windows, at the last step of each."""
    parts = [points[start : start + window] for start in range(0, len(points), window)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def _draw_evaluations(ax: Axes, evaluations: Mapping[str, Points], adam: Mapping[str, Tuned]) -> None:
    for name, points in evaluations.items():
        unit = float(adam[name].best_curves.final.mean()) if name in adam else 1.0
        shown = [(step, loss / unit) for step, loss in points if math.isfinite(loss / unit)]
        if shown:
            ax.plot(*zip(*shown, strict=True), "o-", markersize=3, linewidth=1, label=_short(name))
    if adam:
        ax.axhline(1.0, color=ADAM, linestyle="--", linewidth=1)
    log_scale(ax)
    ax.set(xlabel="outer step", title="Held-out tasks")
    ax.set_xlim(left=0)
    ax.set_ylabel("final loss / tuned Adam's" if adam else "final loss")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="x-small", ncols=1 + (len(evaluations) > 6))
    ax.grid(alpha=0.3)


def _draw_comparison(ax: Axes, name: str, curves: Curves, adam: Tuned | None) -> None:
    if adam is not None:
        _draw_band(ax, adam.best_curves, ADAM, f"Adam, best of {len(adam.curves)} rates, {adam.best:g}")
    _draw_band(ax, curves, RULE, "this rule")
    ax.set(xlabel="inner step", ylabel="minibatch loss")
    if bool((curves.losses > 0).all()):
        log_scale(ax)
    ax.set_title(f"Held-out {_short(name)}, {len(curves.final)} seeds", fontsize="medium")
    ax.legend(fontsize="small")
    ax.grid(alpha=0.3)


def log_scale(ax: Axes) -> None:
    """A logarithmic axis with plain numbers, also between the powers of ten where there are few of these."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    plain = StrMethodFormatter("{x:.3g}")
    ax.yaxis.set_major_formatter(plain)
    ax.yaxis.set_minor_formatter(plain if high < 8 * low else NullFormatter())
    ax.tick_params(axis="y", which="minor", labelsize="small")


def _short(task: str) -> str:
    """The name of a task; of an image file without its folders."""
    return Path(task).stem if Path(task).suffix else task


def _draw_band(ax: Axes, curves: Curves, color: str, label: str) -> None:
    losses = curves.losses.cpu()
    steps = range(losses.shape[1])
    ax.fill_between(steps, losses.amin(0), losses.amax(0), color=color, alpha=0.2, linewidth=0)
    ax.plot(steps, losses.mean(0), color=color, label=f"{label} (final {float(curves.final.mean()):.2g})")
