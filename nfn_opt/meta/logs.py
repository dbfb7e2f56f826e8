"""Logs of a run: CSV files that can be continued, and TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nfn_opt.artifacts import atomic_write

TRAIN_COLUMNS = (
    "step",
    "meta_loss",
    "gradient_norm",
    "lr",
    "finished",
    "dropped",
    "left_out",
    "skipped",
    "seconds",
)
TASK_COLUMNS = ("step", "task", "meta_loss")
EVALUATION_COLUMNS = ("step", "task", "final_loss", "final_loss_std", "failed")


class CsvLog:
    """A CSV file that rows are appended to; the first column is the outer step.

    Args:
        path: The file.
        columns: Its header.
        after: Continue the file after this outer step: later rows, and a last row that was not written whole,
            are taken out. ``None`` starts a new file.
    """

    def __init__(self, path: Path, columns: Sequence[str], after: int | None = None) -> None:
        kept = [] if after is None or not path.exists() else _rows(path, columns, after)
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *kept])
        self._columns = columns
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; numbers are written so that reading them gives the same numbers."""
        self._writer.writerow([row[column] for column in self._columns])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _rows(path: Path, columns: Sequence[str], last: int) -> list[list[str]]:
    with path.open(newline="") as file:
        rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(columns)]
    return [row for row in rows if row[0].isdigit() and int(row[0]) <= last]


class RunLog:
    """All logs of a meta-training run; a context manager that closes them.

    Args:
        train: File of the rows of outer steps.
        tasks: File of the rows of single tasks.
        evaluation: File of the rows of evaluations.
        tensorboard: Folder for TensorBoard, or ``None`` for none.
        after: Continue after this outer step; ``None`` starts anew.

    Raises:
        ModuleNotFoundError: If TensorBoard is asked for and not installed.
    """

    def __init__(
        self, train: Path, tasks: Path, evaluation: Path, tensorboard: Path | None, after: int | None
    ) -> None:
        self._board = (
            None if tensorboard is None else summary_writer()(tensorboard, purge_step=(after or 0) + 1)
        )
        self._train = CsvLog(train, TRAIN_COLUMNS, after)
        self._tasks = CsvLog(tasks, TASK_COLUMNS, after)
        self._evaluation = CsvLog(evaluation, EVALUATION_COLUMNS, after)

    def train(self, row: Mapping[str, Any]) -> None:
        """Log an outer step; keys are :data:`TRAIN_COLUMNS`."""
        self._train.write(row)
        self._scalars("train", row)

    def tasks(self, step: int, losses: Mapping[str, float]) -> None:
        """Log the meta-loss of every task of an outer step."""
        for name, loss in losses.items():
            row = {"step": step, "task": name, "meta_loss": loss}
            self._tasks.write(row)
            self._scalars(f"task/{name}", row)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Log an evaluation; keys are :data:`EVALUATION_COLUMNS`."""
        self._evaluation.write(row)
        self._scalars(f"held_out/{row['task']}", row)

    def _scalars(self, prefix: str, row: Mapping[str, Any]) -> None:
        if self._board is not None:
            for key, value in row.items():
                if key not in ("step", "task"):
                    self._board.add_scalar(f"{prefix}/{key}", value, row["step"])

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._train.close()
        self._tasks.close()
        self._evaluation.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard() -> None:
    """Fail early where TensorBoard is asked for and not installed.

    Raises:
        ModuleNotFoundError: With the command that installs it.
    """
    summary_writer()


def summary_writer() -> Any:
    """TensorBoard's writer of a folder.

    Raises:
        ModuleNotFoundError: With the command that installs it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "logging for TensorBoard was asked for, but the package tensorboard is not installed; install it with "
            "pip install 'nfn-opt[log]', or turn tensorboard off"
        ) from error
    return SummaryWriter
