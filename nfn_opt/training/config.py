"""How a model is trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

__all__ = ["TrainingConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: AdamW with a warm-up, clipped gradients, and a choice of the best weights.

    Attributes:
        steps: Number of optimizer steps, at most.
        batch_size: Examples a step.
        lr: Highest learning rate of AdamW; it warms up linearly and follows the schedule.
        schedule: "cosine", which falls to zero at the last step, or "constant".
        warmup: Steps of the warm-up.
        weight_decay: Decoupled weight decay.
        max_norm: Gradients are clipped to this norm; infinity never clips.
        validate_every: Steps between two measurements on the validation examples.
        patience: End after so many measurements in a row without a better one; None makes all steps.
        give_up_after: A step whose loss or gradient is not finite changes nothing; end after so many in a row.
        seed: Seed of the order of the examples, and of all that is drawn in a step.

    Example:
        >>> config = TrainingConfig(steps=100, lr=0.1, warmup=4, schedule="constant")
        >>> [round(config.learning_rate(step), 3) for step in (0, 3, 99)]
        [0.025, 0.1, 0.1]
    """

    steps: int = 2000
    batch_size: int = 32
    lr: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 100
    weight_decay: float = 0.0
    max_norm: float = 1.0
    validate_every: int = 200
    patience: int | None = None
    give_up_after: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "patience", "give_up_after"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name in ("lr", "max_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")
        for name in ("warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}, expected 'cosine' or 'constant'")

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = self.lr * min(1.0, (step + 1) / max(self.warmup, 1))
        if self.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
