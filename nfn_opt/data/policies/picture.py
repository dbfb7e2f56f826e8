"""A picture of a zoo of policies: how its returns spread, and how they grow over the training runs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from nfn_opt.artifacts import atomic_write
from nfn_opt.data.zoos.zoo import Zoo

__all__ = ["draw_policy_zoo"]

BINS = 30
"""Of the histogram."""

LINES = 30
"""Runs that are drawn."""


def draw_policy_zoo(zoo: Zoo, path: str | os.PathLike[str]) -> Path:
    """Draw a histogram of the mean returns, and mean return over the updates of some runs.

    Args:
        zoo: With the columns that `build_policy_zoo` makes.
        path: File to write; its ending decides the form.

    Raises:
        ValueError: If the zoo lacks one of the columns, or has no policy that is finite.
    """
    good = zoo.finite()
    columns = {name: zoo.table.get(name) for name in ("mean_return", "run", "step")}
    missing = [name for name, column in columns.items() if not isinstance(column, Tensor)]
    if missing or not len(good):
        lack = f"the columns {', '.join(missing)}" if missing else "policies that are finite"
        raise ValueError(f"{zoo!r} has not {lack}; there is nothing to draw")
    from matplotlib.figure import Figure  # takes a second, so not at import

    returns, runs, steps = (np.asarray(good.table[name]) for name in columns)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(returns, bins=BINS)
    left.set(xlabel="mean return", ylabel="policies")
    for run in np.unique(runs)[:LINES]:
        some = np.flatnonzero(runs == run)
        some = some[steps[some].argsort()]
        right.plot(steps[some], returns[some], marker=".", alpha=0.5, linewidth=0.8)
    right.set(xlabel=f"updates ({min(LINES, len(np.unique(runs)))} runs)", ylabel="mean return")
    name = (zoo.meta.get("run") or {}).get("options", {}).get("environment", "")
    figure.suptitle(f"{name}: {len(good):,} policies of {len(np.unique(runs)):,} runs".removeprefix(": "))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)
