"""The files of a training run: names, logs, pictures."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nfn_opt.artifacts import atomic_write
from nfn_opt.meta.curves import log_scale, smooth
from nfn_opt.meta.logs import CsvLog, read_csv, summary_writer
from nfn_opt.meta.run_folder import RunFolder

__all__ = ["EditorLog", "EditorRunFolder", "draw_training"]

TRAIN_COLUMNS = ("step", "error", "gradient_norm", "lr", "skipped", "seconds")
VALIDATION_COLUMNS = ("step", "train", "validation", "seconds")

TITLE_WIDTH = 64
"""Characters of a line of a figure's title."""


class EditorRunFolder(RunFolder):
    """Names of the files of a training run.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.editor = self.path / "editor.safetensors"
        self.validation_log = self.path / "validation.csv"
        self.samples = self.path / "samples.png"


class EditorLog:
    """All logs of a training run; a context manager that closes them.

    Args:
        folder: The run's files.
        tensorboard: Whether to log for TensorBoard as well.
        after: Continue after this step; ``None`` starts anew.
    """

    def __init__(self, folder: EditorRunFolder, *, tensorboard: bool, after: int | None) -> None:
        self._board = (
            summary_writer()(folder.tensorboard, purge_step=(after or 0) + 1) if tensorboard else None
        )
        self._train = CsvLog(folder.train_log, TRAIN_COLUMNS, after)
        self._validation = CsvLog(folder.validation_log, VALIDATION_COLUMNS, after)

    def train(self, row: Mapping[str, Any]) -> None:
        """Log a step; keys are :data:`TRAIN_COLUMNS`."""
        self._train.write(row)
        self._scalars("train", row)

    def validation(self, record: Mapping[str, Any]) -> None:
        """Log a validation; keys are :data:`VALIDATION_COLUMNS`."""
        row = {**record, "step": int(record["step"])}
        self._validation.write(row)
        self._scalars("validation", row)

    def _scalars(self, prefix: str, row: Mapping[str, Any]) -> None:
        if self._board is not None:
            for key, value in row.items():
                if key != "step":
                    self._board.add_scalar(f"{prefix}/{key}", value, row["step"])

    def __enter__(self) -> EditorLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._train.close()
        self._validation.close()
        if self._board is not None:
            self._board.close()


def draw_training(folder: EditorRunFolder, *, edit: str, no_edit: float) -> None:
    """Draw the errors that the logs hold.

    Args:
        folder: The run's files; writes ``curves.png``.
        edit: Name of the edit, for the title.
        no_edit: Error of no edit on the validation INRs.
    """
    steps = _points(read_csv(folder.train_log), "error")
    validation = _points(read_csv(folder.validation_log), "validation")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    ax.axhline(no_edit, color="tab:gray", linestyle="--", label=f"no edit, validation {no_edit:.4f}")
    if steps:
        window = max(1, len(steps) // 50)
        ax.plot(*zip(*steps, strict=True), color="tab:blue", alpha=0.25, linewidth=0.6)
        mean = f"training, mean of {window} steps" if window > 1 else "training"
        ax.plot(*zip(*smooth(steps, window), strict=True), color="tab:blue", label=mean)
    if validation:
        best = min(validation, key=lambda point: point[1])
        ax.plot(
            *zip(*validation, strict=True), "o-", color="tab:orange", markersize=3, label="validation INRs"
        )
        ax.plot(*best, "*", color="tab:red", markersize=11, label=f"best, {best[1]:.4f} at step {best[0]}")
    log_scale(ax)
    title = textwrap.fill(f"Editor for {edit!r}", TITLE_WIDTH)
    ax.set(xlabel="step", ylabel="mean squared error, values in [-1, 1]", title=title)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    with atomic_write(folder.curves) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _points(rows: list[dict[str, str]], column: str) -> list[tuple[int, float]]:
    points = [(int(row["step"]), float(row[column])) for row in rows]
    return [(step, value) for step, value in points if math.isfinite(value)]
