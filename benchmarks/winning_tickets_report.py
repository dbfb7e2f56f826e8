"""Table and figure of :mod:`benchmarks.winning_tickets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch import Tensor

from nfn_opt.data.tickets import Architecture, MlpArchitecture

RANDOM = "random"
"""The masks that others are compared with."""

SHOWN = ("IMP", "NP", "NP, most likely", "HNP", "pointwise", "random, layers as IMP", RANDOM)
"""Masks that are drawn."""

NEURONS = 6
"""Neurons, or kernels, of the first network whose masks are drawn."""


def interval(values: Tensor) -> tuple[float, float]:
    """Mean, and half width of its 95 % interval by Student's t, of one number a network.

    Example:
        >>> mean, half = interval(torch.tensor([0.5, 0.7], dtype=torch.float64))
        >>> round(mean, 3), round(half, 3)
        (0.6, 1.271)
    """
    if len(values) < 2:
        return values.mean().item(), float("nan")
    error = values.std().item() / len(values) ** 0.5
    return values.mean().item(), float(student.ppf(0.975, len(values) - 1)) * error


def rows_of(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Numbers of each kind of mask; trainings of one generator, named "name/seed", count as one kind.

    Accuracies in percent: mean, half width of its interval, spread of the means of the trainings, and the same for
    the difference to random masks, which is paired by initial weights.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for name, score in scores.items():
        kinds.setdefault(name.split("/")[0], []).append(score)
    random = 100 * torch.tensor(scores[RANDOM]["accuracy"], dtype=torch.float64)
    rows: dict[str, dict[str, float]] = {}
    for name, some in kinds.items():
        each = 100 * torch.tensor([one["accuracy"] for one in some], dtype=torch.float64)
        mean, half = interval(each.mean(0))
        gain, gain_half = interval(each.mean(0) - random)
        rows[name] = {
            "accuracy": mean,
            "half": half,
            "gain": gain,
            "gain_half": gain_half,
            "networks": each.shape[1],
            "trainings": len(some),
        }
        if len(some) > 1:
            rows[name]["seed_spread"] = each.mean(1).std().item()
        for what in ("overlap", "bound", "seconds"):
            if what in some[0]:
                rows[name][what] = sum(one[what] for one in some) / len(some)
    return rows


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| masks | test accuracy (%) | above random (points) | kept as IMP (%) | bound (nats a weight) |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        generated = f", {row['trainings']:.0f} trainings" if "bound" in row else ""
        gain = "" if name == RANDOM else f"{row['gain']:+.1f} ± {row['gain_half']:.1f}"
        kept = f"{100 * row['overlap']:.1f}" if "overlap" in row else ""
        bound = f"{row['bound']:.4f}" if "bound" in row else ""
        lines.append(
            f"| {name}{generated} | {row['accuracy']:.1f} ± {row['half']:.1f} | {gain} | {kept} | {bound} |"
        )
    count = next(iter(rows.values()))["networks"]
    lines += ["", f"Means over {count:.0f} initial weights, with 95 % intervals."]
    return "\n".join(lines) + "\n"


def draw(
    path: Path,
    rows: Mapping[str, Mapping[str, float]],
    masks: Mapping[str, Mapping[str, Tensor]],
    architecture: Architecture,
) -> None:
    """Accuracies as bars, and masks of the first layer of one network as pictures."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    left, right = panels
    axes = left.subplots()
    names = list(rows)[::-1]
    colors = ["C0" if "bound" in rows[name] else "C7" for name in names]
    halves = [rows[name]["half"] for name in names]
    means = [rows[name]["accuracy"] for name in names]
    axes.barh(names, means, xerr=halves, color=colors, error_kw={"lw": 1})
    for place, (mean, half) in enumerate(zip(means, halves, strict=True)):
        axes.text(mean + (half if half == half else 0), place, f" {mean:.1f}", va="center", fontsize=8)
    axes.set(xlabel="test accuracy (%); blue: generated masks", xlim=(0, 112), xticks=range(0, 101, 20))
    axes.tick_params(axis="y", labelsize=8)
    shown = [name for name in SHOWN if name in masks]
    grid = right.subplots(len(shown), NEURONS + 1, squeeze=False)
    for row, name in zip(grid, shown, strict=True):
        _draw_masks(row, masks[name]["layers.0.weight"], architecture)
        row[0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=8)
    grid[0][0].set_title("share of\nneurons", fontsize=8)
    for number, cell in enumerate(grid[0][1:]):
        cell.set_title(f"neuron {number + 1}", fontsize=8)
    right.suptitle("weights kept in the first layer of one network, by input", fontsize=9)
    figure.savefig(path, dpi=110)


def _draw_masks(row: Any, mask: Tensor, architecture: Architecture) -> None:
    """One network's masks of the first neurons, after their mean over all."""
    if isinstance(architecture, MlpArchitecture):
        maps = mask[0].unflatten(1, (-1, architecture.side, architecture.side)).any(1).float()
    else:
        maps = mask[0].float().flatten(2).flatten(1, 2).unflatten(1, (-1, architecture.kernel_size))
    row[0].imshow(maps.mean(0).numpy(), cmap="magma", vmin=0)
    for cell, one in zip(row[1:], maps, strict=False):
        cell.imshow(one.numpy(), cmap="gray", vmin=0, vmax=1)
    for cell in row:
        cell.set_xticks([])
        cell.set_yticks([])
