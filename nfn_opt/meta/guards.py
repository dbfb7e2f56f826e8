"""What ends a run that goes nowhere."""

from __future__ import annotations


class DivergenceError(RuntimeError):
    """Meta-training has diverged: the message says how, and which checkpoint is good."""
