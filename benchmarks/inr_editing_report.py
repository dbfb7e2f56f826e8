"""Table and figure of :mod:`benchmarks.inr_editing`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.inr_editing_records import Trained


def table(found: Mapping[str, Sequence[Trained]], no_edit: float) -> str:
    """Rows of a Markdown table: mean and standard deviation over seeds."""
    lines = [
        "| editor | parameters | steps | seconds | held-out error | share of no edit |",
        "|---|---|---|---|---|---|",
        f"| no edit | | | | {no_edit:.4f} | 1 |",
    ]
    for name, some in found.items():
        errors = [one.error for one in some]
        spread = f" ± {statistics.stdev(errors):.4f}" if len(errors) > 1 else ""
        mean, seconds = statistics.mean(errors), statistics.mean(one.seconds for one in some)
        lines.append(
            f"| {name} | {some[0].parameters:,} | {some[0].steps:,} | {seconds:.0f} | {mean:.4f}{spread} | "
            f"{mean / no_edit:.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(
    path: Path,
    found: Mapping[str, Sequence[Trained]],
    refitted: Mapping[int, tuple[float, float]],
    no_edit: float,
    edit_ms: float,
) -> None:
    """Errors of all editors, and the editor's beside refitting, against the time for each INR."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(found)
    means = [statistics.mean(one.error for one in found[name]) / no_edit for name in names]
    left.barh(names[::-1], means[::-1], color=[_color(name) for name in names[::-1]])
    for place, mean in enumerate(means[::-1]):
        left.text(mean, place, f" {mean:.3f}", va="center", fontsize=8)
    left.set(xlabel="held-out error, share of no edit", title="Editors")
    left.set_xlim(0, max(1.0, *means) * 1.12)
    times = [ms for _, ms in refitted.values()]
    right.loglog(
        times, [error for error, _ in refitted.values()], "o-", color="C7", label="refit on the edited image"
    )
    for (error, ms), steps in zip(refitted.values(), refitted, strict=True):
        right.annotate(f"{steps}", (ms, error), textcoords="offset points", xytext=(4, 4), fontsize=7)
    default = [name for name in names if name.startswith("default")][-1]
    right.plot(
        edit_ms, statistics.mean(one.error for one in found[default]), "*", ms=14, label="default editor"
    )
    right.axhline(no_edit, color="k", ls=":", lw=1, label="no edit")
    right.set(
        xlabel="ms for one INR, in batches",
        ylabel="held-out error",
        title="One edit beside refitting (numbers: steps)",
    )
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _color(name: str) -> str:
    """Blue for default editors, gray for the peer's, light for all that read weights only."""
    if name.startswith("default"):
        return "C0"
    return "C7" if name.startswith(("nfn", "weights only")) else "C9"
