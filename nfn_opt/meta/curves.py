"""The picture of a meta-training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nfn_opt.artifacts import atomic_write
from nfn_opt.meta.evaluate import Curves, Tuned

RULE, ADAM = "tab:blue", "tab:gray"


def draw_curves(
    path: Path,
    meta_losses: Sequence[tuple[int, float]],
    evaluations: Mapping[str, Sequence[tuple[int, float]]],
    rule: Mapping[str, Curves],
    adam: Mapping[str, Tuned],
) -> None:
    """Draw how the rule was trained, and how it trains networks compared with tuned Adam.

    Args:
        path: PNG file to write.
        meta_losses: Outer step and meta-loss.
        evaluations: For each image set, outer step and mean final loss on held-out images.
        rule: For each image set, training on held-out images with the trained rule.
        adam: The same with Adam at several learning rates.
    """
    figure = Figure(figsize=(4.6 * (1 + len(rule)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(rule), squeeze=False)[0]
    _draw_training(axes[0], meta_losses, evaluations)
    for ax, (name, curves) in zip(axes[1:], rule.items(), strict=True):
        _draw_comparison(ax, name, curves, adam[name])
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_training(
    ax: Axes, meta_losses: Sequence[tuple[int, float]], evaluations: Mapping[str, Sequence[tuple[int, float]]]
) -> None:
    steps, losses = zip(*meta_losses, strict=True)
    ax.plot(steps, losses, color=RULE, alpha=0.5, linewidth=0.8, label="meta-loss")
    for name, points in evaluations.items():
        ax.plot(*zip(*points, strict=True), "o-", markersize=3, label=f"held-out {_short(name)}, final loss")
    ax.set(xlabel="outer step", ylabel="training loss (nats)", yscale="log", title="Meta-training")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="small")
    ax.grid(alpha=0.3)


def _draw_comparison(ax: Axes, name: str, curves: Curves, adam: Tuned) -> None:
    _draw_band(ax, adam.best_curves, ADAM, f"Adam, best of {len(adam.curves)} learning rates, {adam.best:g}")
    _draw_band(ax, curves, RULE, "this rule")
    ax.set(xlabel="inner step", ylabel="minibatch loss (nats)", yscale="log")
    ax.set_title(
        f"Training on held-out {_short(name)}\n(mean and range of {len(curves.final)} seeds)",
        fontsize="medium",
    )
    ax.legend(fontsize="small")
    ax.grid(alpha=0.3)


def _short(images: str) -> str:
    """The name of an image set, without the folders of a path."""
    return Path(images).stem


def _draw_band(ax: Axes, curves: Curves, color: str, label: str) -> None:
    losses = curves.losses.cpu()
    steps = range(losses.shape[1])
    ax.fill_between(steps, losses.amin(0), losses.amax(0), color=color, alpha=0.2, linewidth=0)
    ax.plot(steps, losses.mean(0), color=color, label=f"{label} (final {curves.score:.2g})")
