"""A picture of a zoo: how good its networks are, and at which learning rates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nfn_opt.artifacts import atomic_write
from nfn_opt.data.zoos.varied import VariedZoo
from nfn_opt.data.zoos.zoo import Zoo

__all__ = ["draw_adders_zoo", "draw_varied_zoo", "draw_zoo"]

BINS = 25
"""Of the histogram."""


def draw_zoo(zoo: Zoo, path: str | os.PathLike[str]) -> Path:
    """Draw a histogram of the test accuracies, and test accuracy over the learning rate by optimizer.

    Networks that failed are left out, and counted in the title.

    Args:
        zoo: With the columns that `build_zoo` makes.
        path: File to write; its ending decides the form.

    Raises:
        ValueError: If the zoo lacks one of the columns, or has no network that is finite.
    """
    good = zoo.finite()
    missing = {"test_accuracy", "learning_rate", "optimizer"} - zoo.table.keys()
    if missing or not len(good):
        lack = f"the columns {', '.join(sorted(missing))}" if missing else "networks that are finite"
        raise ValueError(f"{zoo!r} has not {lack}; there is nothing to draw")
    from matplotlib.figure import Figure  # takes a second, so not at import

    accuracy, rate = (_numbers(good, name) for name in ("test_accuracy", "learning_rate"))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    activations = np.asarray(good.table["activation"])
    kinds = sorted(set(activations.tolist()))
    left.hist(
        [accuracy[activations == kind] for kind in kinds], bins=BINS, range=(0, 1), stacked=True, label=kinds
    )
    left.set(xlabel="test accuracy", ylabel="networks", xlim=(0, 1))
    left.legend(title="activation")
    optimizers = np.asarray(good.table["optimizer"])
    for number, kind in enumerate(sorted(set(optimizers.tolist()))):
        chosen, color = optimizers == kind, f"C{len(kinds) + number}"
        right.scatter(rate[chosen], accuracy[chosen], s=10, alpha=0.7, linewidths=0, color=color, label=kind)
    right.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", ylim=(0, 1))
    _few_ticks(right)
    right.legend(title="optimizer", loc="upper left", bbox_to_anchor=(1, 1))
    title = f"{len(good):,} networks of {zoo.architecture.parameters:,} parameters"
    figure.suptitle(title + (f"; {good.left_out} not finite, left out" if good.left_out else ""))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def _numbers(zoo: Zoo | VariedZoo, name: str) -> np.ndarray:
    column = zoo.table[name]
    if not isinstance(column, Tensor):
        raise ValueError(f"the column {name!r} must have numbers, got words such as {column[0]!r}")
    return column.numpy()


def draw_varied_zoo(zoo: VariedZoo, path: str | os.PathLike[str]) -> Path:
    """Draw a histogram of the test accuracies, and test accuracy over the size of the networks by depth.

    Args:
        zoo: With the columns that `build_varied_zoo` makes.
        path: File to write; its ending decides the form.

    Raises:
        ValueError: If the zoo lacks one of the columns, or has no network that is finite.
    """
    good = zoo.finite()
    missing = {"test_accuracy", "parameters", "depth"} - zoo.table.keys()
    if missing or not len(good):
        lack = f"the columns {', '.join(sorted(missing))}" if missing else "networks that are finite"
        raise ValueError(f"{zoo!r} has not {lack}; there is nothing to draw")
    from matplotlib.figure import Figure  # takes a second, so not at import

    accuracy, sizes, depth = (_numbers(good, name) for name in ("test_accuracy", "parameters", "depth"))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = sorted(set(depth.tolist()))
    left.hist([accuracy[depth == kind] for kind in kinds], bins=BINS, range=(0, 1), stacked=True, label=kinds)
    left.set(xlabel="test accuracy", ylabel="networks", xlim=(0, 1))
    for kind in kinds:
        chosen = depth == kind
        right.scatter(sizes[chosen], accuracy[chosen], s=10, alpha=0.7, linewidths=0, label=kind)
    right.set(xscale="log", xlabel="parameters", ylabel="test accuracy", ylim=(0, 1))
    right.legend(title="convolutions", loc="upper left", bbox_to_anchor=(1, 1))
    title = f"{len(good):,} CNNs of {len(good.members):,} architectures"
    figure.suptitle(title + (f"; {good.left_out} left out" if good.left_out else ""))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def draw_adders_zoo(zoo: Zoo, path: str | os.PathLike[str]) -> Path:
    """Draw a histogram of the success rates, and success over the learning rate, coloured by the number of steps.

    Args:
        zoo: With the columns that `nfn_opt.data.zoos.adding.build_adder_zoo` makes.
        path: File to write; its ending decides the form.

    Raises:
        ValueError: If the zoo lacks one of the columns, or has no network that is finite.
    """
    good = zoo.finite()
    missing = {"test_success", "learning_rate", "steps"} - zoo.table.keys()
    if missing or not len(good):
        lack = f"the columns {', '.join(sorted(missing))}" if missing else "networks that are finite"
        raise ValueError(f"{zoo!r} has not {lack}; there is nothing to draw")
    from matplotlib.figure import Figure  # takes a second, so not at import

    success, rate, steps = (_numbers(good, name) for name in ("test_success", "learning_rate", "steps"))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(success, bins=BINS, range=(0, 1))
    left.set(xlabel="sums without a mistake", ylabel="networks", xlim=(0, 1))
    points = right.scatter(rate, success, s=10, c=steps, linewidths=0)
    right.set(xscale="log", xlabel="learning rate", ylabel="sums without a mistake", ylim=(0, 1))
    _few_ticks(right)
    figure.colorbar(points, ax=right, label="steps")
    title = f"{len(good):,} x {good.architecture.summary}"
    figure.suptitle(title + (f"; {good.left_out} not finite, left out" if good.left_out else ""))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def _few_ticks(axes: Any) -> None:
    """Ticks of a logarithmic axis that cannot lie on each other, however short it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8, rotation=30)
