"""What all kinds of zoos have in common on the command line."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch

from nfn_opt.meta.processes import Processes

__all__ = ["ZooReport", "ZooRun", "quantile_line"]

Built = TypeVar("Built")

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the scores that a report tells."""


@dataclasses.dataclass(frozen=True)
class ZooReport:
    """What is said of a zoo that is complete.

    Attributes:
        lines: The first names the zoo; the time that it took is added to it.
        files: All files that were written.
    """

    lines: Sequence[str]
    files: Sequence[Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZooRun(abc.ABC, Generic[Built]):
    """A zoo to build. Each kind adds its own options; what ``Attributes`` says of them is their help.

    Attributes:
        out: File of the zoo to write, .safetensors if it has no other ending; refused if it exists.
        count: Number of networks.
        threads: CPU threads; PyTorch's choice if not given. Two processes are faster than two threads.
        resume: Go on with the zoo in this file that was stopped; all other options as at its start.
    """

    out: Path
    count: int = 2000
    threads: int | None = None
    resume: bool = False

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.out if self.out.suffix else self.out.with_suffix(".safetensors")

    @abc.abstractmethod
    def build(self, command: str, processes: Processes) -> Built:
        """Make the zoo, in all processes, and return it.

        Args:
            command: The command line, to be kept with the zoo.
            processes: The processes that ``torchrun`` started.

        Raises:
            OSError, ValueError, TypeError, RuntimeError: They end the run with their message, as status 2.
        """

    @abc.abstractmethod
    def report(self, zoo: Built) -> ZooReport:
        """Draw the pictures and say how good the networks are; in the main process only."""


def quantile_line(name: str, values: torch.Tensor) -> str:
    """Quantiles of a score as a line.

    Args:
        name: What the score is.
        values: Shape (N,), finite, N at least 1.

    Example:
        >>> quantile_line("return", torch.arange(101.0))
        'return at 5, 25, 50, 75, 95 %: 5.000, 25.000, 50.000, 75.000, 95.000'
    """
    points = torch.quantile(values, torch.tensor(QUANTILES, dtype=values.dtype))
    shares = ", ".join(f"{100 * share:g}" for share in QUANTILES)
    return f"{name} at {shares} %: " + ", ".join(f"{point:.3f}" for point in points.tolist())
