"""Stopping a long run at a point from which it can go on, and what else is due after an outer step."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch

from nfn_opt.meta.processes import Processes


class Timetable(Protocol):
    """What a run tells of when things are due; ``None`` for times that it leaves out."""

    @property
    def steps(self) -> int:
        """All steps of the run."""

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""

    @property
    def evaluate_minutes(self) -> float | None:
        """Minutes between two evaluations."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints."""

    @property
    def checkpoint_minutes(self) -> float | None:
        """Minutes between two checkpoints."""

    @property
    def minutes(self) -> float | None:
        """Minutes of one sitting."""


class StopRequest:
    """Turns an interrupt (Ctrl-C) or a termination signal into a request, while the context lasts.

    The run looks at :attr:`signal` between two steps. A second interrupt is not held back any more and raises
    :class:`KeyboardInterrupt`. Outside the main thread, where Python allows no handlers, nothing is caught.

    Args:
        patient: Hold further interrupts back, too: ``torchrun`` sends one where the terminal has sent one already,
            and kills a process that does not end in time.

    Attributes:
        signal: Number of the signal received, ``None`` so far.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(stop.signal == signal.SIGINT)
        True
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.patient = patient
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and not self.patient:
            raise KeyboardInterrupt
        self.signal = number


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done after an outer step, the same in all processes.

    Attributes:
        evaluate: Evaluate on held-out tasks.
        checkpoint: Write a checkpoint.
        signal: Number of the signal that asks to stop, ``None`` for none.
        time_over: The time of this sitting is over.
    """

    evaluate: bool
    checkpoint: bool
    signal: int | None
    time_over: bool

    @property
    def stop(self) -> bool:
        """Whether to stop."""
        return self.time_over or self.signal is not None


class Agenda:
    """Decides what is due, by counting outer steps and by the clock of the main process.

    Args:
        config: The run.
        processes: Those that share it; they call :meth:`after` together.
        stop: Requests to stop this process; one to any process stops all.
        clock: Seconds since some time.
    """

    def __init__(
        self,
        config: Timetable,
        processes: Processes,
        stop: StopRequest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._processes, self._stop, self._clock = config, processes, stop, clock
        self._start = self._evaluated = self._saved = clock()

    def after(self, step: int) -> Due:
        """What is due after so many outer steps."""
        config, now = self._config, self._clock()
        last = step == config.steps
        flags = torch.zeros(self._processes.size, 4, dtype=torch.int64)
        flags[self._processes.rank] = torch.tensor(
            [
                last
                or step % config.evaluate_every == 0
                or _over(now - self._evaluated, config.evaluate_minutes),
                last
                or step % config.checkpoint_every == 0
                or _over(now - self._saved, config.checkpoint_minutes),
                _over(now - self._start, config.minutes),
                self._stop.signal or 0,
            ]
        )
        flags = self._processes.sum(flags)
        evaluate, checkpoint, time_over, _ = flags[0].tolist()
        signals = int(flags[:, 3].max())
        due = Due(bool(evaluate), bool(checkpoint or time_over or signals), signals or None, bool(time_over))
        if due.evaluate:
            self._evaluated = now
        if due.checkpoint:
            self._saved = now
        return due


def _over(seconds: float, minutes: float | None) -> bool:
    return minutes is not None and seconds >= 60 * minutes
