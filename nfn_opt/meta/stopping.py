"""Stopping a long run at a point from which it can go on."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Turns an interrupt (Ctrl-C) or a termination signal into a request, while the context lasts.

    The run looks at :attr:`signal` between two steps. A second interrupt is not held back any more and raises
    :class:`KeyboardInterrupt`. Outside the main thread, where Python allows no handlers, nothing is caught.

    Attributes:
        signal: Number of the signal received, ``None`` so far.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(stop.signal == signal.SIGINT)
        True
    """

    def __init__(self) -> None:
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
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
