"""Scores, tables and pictures of the learned-optimizer benchmark, from the records of its trainings."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.learned_optimizers_runs import BASELINE, Record
from nfn_opt.artifacts import atomic_write
from nfn_opt.meta.scores import Interval, bootstrap, iqm, progress, smoothed, speed_up, win_rate

Records = Mapping[tuple[str, str], Record]
"""Results by task and optimizer, of one horizon."""

NAMES = {
    "adam": "Adam",
    "sgd": "SGD momentum",
    "adamw": "AdamW",
    "nadam": "NAdam",
    "lion": "Lion",
    "muon": "Muon",
}

STRONG = ("tab:blue", "tab:red", "tab:green", "tab:purple", "tab:brown", "tab:pink")
PALE = {"sgd": "#c8a165", "adamw": "#999999", "nadam": "#6fae7d", "lion": "#7fb3d5", "muon": "#c77dd1"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """How an optimizer compares with tuned Adam over all tasks.

    Attributes:
        wins: Tasks with a lower mean final loss than the baseline's; a failed run counts as infinite.
        tasks: Number of tasks.
        failures: Runs that failed, of all.
        runs: Number of runs.
        win_rate: Share of tasks won.
        speed_up: Interquartile mean of the baseline's steps over its steps to the baseline's final loss.
        speed_up_others: The same with the interval over other tasks like these.
        progress: Interquartile mean of how far the loss fell over how far it fell with the baseline.
        reached: Share of runs that reached the baseline's final loss.
    """

    wins: int
    tasks: int
    failures: int
    runs: int
    win_rate: Interval
    speed_up: Interval
    speed_up_others: Interval
    progress: Interval
    reached: float


def speed_ups(records: Records, tasks: Sequence[str], optimizer: str) -> NDArray[np.float64]:
    """Speed-up over the baseline, shape (tasks, seeds); 0 where it failed or never reached the baseline."""
    rows = [(records[task, optimizer], records[task, BASELINE]) for task in tasks]
    return np.stack([speed_up(one.losses, adam.losses, one.failed) for one, adam in rows])


def summarise(records: Records, tasks: Sequence[str], optimizer: str, other: str = BASELINE) -> Summary:
    """Compare an optimizer with another one, the baseline if not said otherwise."""
    one = [records[task, optimizer] for task in tasks]
    two = [records[task, other] for task in tasks]
    finals = np.stack([np.stack([a.final, b.final], -1) for a, b in zip(one, two, strict=True)])
    fast = np.stack([speed_up(a.losses, b.losses, a.failed) for a, b in zip(one, two, strict=True)])
    far = np.stack([progress(a.final, a.initial, b.final) for a, b in zip(one, two, strict=True)])
    means = finals.mean(1)
    failures = sum(int(a.failed.sum()) for a in one)

    def interval(statistic: Any, values: NDArray[np.float64], tasks: bool = False) -> Interval:
        return bootstrap(statistic, values, np.random.default_rng(0), tasks=tasks)

    return Summary(
        wins=int((means[:, 0] < means[:, 1]).sum()),
        tasks=len(tasks),
        failures=failures,
        runs=finals[..., 0].size,
        win_rate=interval(win_rate, finals),
        speed_up=interval(iqm, fast),
        speed_up_others=interval(iqm, fast, tasks=True),
        progress=interval(iqm, far),
        reached=float((fast > 0).mean()),
    )


def summary_table(
    records: Records,
    tasks: Sequence[str],
    optimizers: Sequence[str],
    times: Mapping[str, Mapping[str, float]],
) -> str:
    """One row for each optimizer, compared with tuned Adam."""
    lines = [
        "| optimizer | lower final loss than Adam | win rate | IQM speed-up in steps | (over tasks, too) "
        "| reaches Adam's loss | IQM progress | median speed-up in time | failed runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in optimizers:
        s = summarise(records, tasks, name)
        clock = (
            np.median([wall_speed_up(records, task, name, times) for task in tasks]) if times else math.nan
        )
        lines.append(
            f"| {title(name)} | {s.wins} of {s.tasks} | {s.win_rate} | {s.speed_up} | {s.speed_up_others} "
            f"| {s.reached:.0%} | {s.progress} | {clock:.2f} | {s.failures} of {s.runs} |"
        )
    return "\n".join(lines)


def wall_speed_up(
    records: Records, task: str, optimizer: str, times: Mapping[str, Mapping[str, float]]
) -> float:
    """Mean speed-up in steps, times the baseline's time for a step over this one's."""
    in_steps = float(speed_ups(records, [task], optimizer).mean())
    return in_steps * times[task][BASELINE] / times[task][optimizer]


def loss_table(records: Records, tasks: Sequence[str], optimizers: Sequence[str]) -> str:
    """Mean final loss and its deviation over seeds; the lowest of a task in bold."""
    head = f"| task | {' | '.join(title(name) for name in optimizers)} | Adam's setting |"
    lines = [head, "|---" * (len(optimizers) + 2) + "|"]
    for task in tasks:
        found = [records[task, name] for name in optimizers]
        best = min(record.final.mean() for record in found)
        cells = [_loss_cell(record, record.final.mean() == best) for record in found]
        adam = records[task, BASELINE]
        lines.append(f"| {task} | {' | '.join(cells)} | {adam.setting}{' (edge)' if adam.at_edge else ''} |")
    return "\n".join(lines)


def _loss_cell(record: Record, best: bool) -> str:
    if record.failed.any():
        return f"failed ({record.failed.sum()} of {record.failed.size})"
    spread = record.final.std(ddof=1) if record.final.size > 1 else 0.0
    text = f"{record.final.mean():.4g} ± {spread:.1g}"
    return f"**{text}**" if best else text


def speed_table(
    records: Records,
    tasks: Sequence[str],
    optimizers: Sequence[str],
    times: Mapping[str, Mapping[str, float]],
) -> str:
    """Mean speed-up over seeds in steps, and time of a step, of each optimizer on each task."""
    lines = [
        f"| task | {' | '.join(title(name) for name in optimizers)} |",
        "|---" * (len(optimizers) + 1) + "|",
    ]
    for task in tasks:
        cells = []
        for name in optimizers:
            scores = speed_ups(records, [task], name)[0]
            missed = f" ({(scores == 0).sum()} never)" if (scores == 0).any() else ""
            clock = f", {times[task][name]:.2f} ms" if task in times else ""
            cells.append(f"{scores.mean():.2f}{missed}{clock}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def horizon_table(by_factor: Mapping[int, Records], rules: Sequence[str]) -> str:
    """Learned rules and Adam, tuned anew at each horizon, on the tasks that were trained for longer."""
    tasks = sorted({task for factor, records in by_factor.items() if factor > 1 for task, _ in records})
    lines = ["| task | horizon | Adam | " + " | ".join(f"{r} | speed-up" for r in rules) + " |"]
    lines.append("|---" * (3 + 2 * len(rules)) + "|")
    for task, (factor, records) in itertools.product(tasks, by_factor.items()):
        if (task, BASELINE) not in records:
            continue
        adam = records[task, BASELINE]
        cells = [f"{task} | {factor}x", f"{_loss_cell(adam, False)} ({adam.setting})"]
        for rule in rules:
            record = records[task, rule]
            better = bool(record.final.mean() < adam.final.mean())
            cells += [_loss_cell(record, better), f"{speed_ups(records, [task], rule).mean():.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pair_table(records: Records, tasks: Sequence[str], rules: Sequence[str]) -> str:
    """Every pair of learned rules; the second takes the baseline's place. Intervals are over tasks and seeds."""
    lines = [
        "| rule | against | lower final loss | win rate | IQM speed-up | IQM progress |",
        "|---|---|---|---|---|---|",
    ]
    for one, two in itertools.permutations(rules, 2):
        s, lower = summarise(records, tasks, one, two), pair_intervals(records, tasks, one, two)
        lines.append(
            f"| {one} | {two} | {s.wins} of {s.tasks} | {lower['win_rate']} | {lower['speed_up']} "
            f"| {lower['progress']} |"
        )
    return "\n".join(lines)


def pair_intervals(records: Records, tasks: Sequence[str], one: str, two: str) -> dict[str, Interval]:
    """Comparison of two optimizers, with intervals that draw tasks and seeds anew."""
    a, b = ([records[task, name] for task in tasks] for name in (one, two))
    finals = np.stack([np.stack([x.final, y.final], -1) for x, y in zip(a, b, strict=True)])
    fast = np.stack([speed_up(x.losses, y.losses, x.failed) for x, y in zip(a, b, strict=True)])
    far = np.stack([progress(x.final, x.initial, y.final) for x, y in zip(a, b, strict=True)])
    measures = {"win_rate": (win_rate, finals), "speed_up": (iqm, fast), "progress": (iqm, far)}
    return {
        name: bootstrap(statistic, values, np.random.default_rng(0), tasks=True)
        for name, (statistic, values) in measures.items()
    }


def metrics(
    records: Records, tasks: Sequence[str], optimizers: Sequence[str], rules: Sequence[str]
) -> dict[str, Any]:
    """Flat numbers for the result file."""
    found: dict[str, Any] = {}
    for name in optimizers:
        summary = summarise(records, tasks, name)
        for field in dataclasses.fields(Summary):
            value = getattr(summary, field.name)
            if isinstance(value, Interval):
                found |= {
                    f"{name}/{field.name}{e}": v for e, v in zip(("", "_low", "_high"), value, strict=True)
                }
            else:
                found[f"{name}/{field.name}"] = value
        for task in tasks:
            final = float(records[task, name].final.mean())
            found[f"{name}/{task}/final_loss"] = final if math.isfinite(final) else None
            found[f"{name}/{task}/speed_up"] = float(speed_ups(records, [task], name).mean())
    for one, two in itertools.permutations(rules, 2):
        for measure, value in pair_intervals(records, tasks, one, two).items():
            found[f"{one} against {two}/{measure}"] = list(value)
    return found


def title(name: str) -> str:
    """Name of an optimizer for readers."""
    return NAMES.get(name, f"`{name}`")


def draw(
    path: Path,
    records: Records,
    tasks: Sequence[str],
    optimizers: Sequence[str],
    times: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """One panel for each task: smoothed minibatch loss, mean over seeds, against steps or time.

    Args:
        path: PNG file to write.
        records: Results.
        tasks: Tasks, in order.
        optimizers: Optimizers.
        times: Milliseconds of a step, by task and optimizer; the axis is then in seconds.
    """
    columns = min(4, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    strong = dict(zip([n for n in optimizers if n not in NAMES], itertools.cycle(STRONG), strict=False))
    for ax, task in zip(axes, tasks, strict=False):
        for name in optimizers:
            clock = times[task][name] if times else None
            _draw_curve(ax, records[task, name], name, strong.get(name), clock)
        _limit(ax, [records[task, name] for name in optimizers])
        ax.set_title(task, fontsize=9)
        ax.tick_params(which="both", labelsize=7)
        ax.grid(alpha=0.3)
    for ax in axes[len(tasks) :]:
        ax.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2 * columns, fontsize=8)
    unit = "time of one network's training (s)" if times else "step"
    figure.supxlabel(unit, fontsize=9)
    figure.supylabel("training loss, smoothed", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_curve(ax: Axes, record: Record, name: str, color: str | None, clock: float | None) -> None:
    curve = smoothed(record.losses).mean(0)
    x = np.arange(1, len(curve) + 1) * (1 if clock is None else clock / 1e3)
    if name == BASELINE:
        style: dict[str, Any] = {"color": "black", "linewidth": 1.4, "zorder": 3}
    elif color is None:
        style = {"color": PALE[name], "linewidth": 1.1, "zorder": 2, "linestyle": "--"}
    else:
        style = {"color": color, "linewidth": 1.8, "zorder": 4}
    ax.plot(x, curve, label=NAMES.get(name, name), **style)


def _limit(ax: Axes, records: Sequence[Record]) -> None:
    """From the lowest loss to the starting one, on a logarithmic axis where they are far apart."""
    curves = [smoothed(record.losses).mean(0) for record in records]
    finite = [curve[np.isfinite(curve)] for curve in curves]
    low = min(float(curve.min()) for curve in finite if curve.size)
    high = max(float(curve[0]) for curve in finite if curve.size)
    if 0 < low < 0.2 * high:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.15, high * 1.15)
    else:
        margin = 0.05 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)
