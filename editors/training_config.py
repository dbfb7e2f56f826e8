"""How an editor is trained."""

from __future__ import annotations

import dataclasses

from nfn_opt.training import TrainingConfig

__all__ = ["TrainEditorConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainEditorConfig(TrainingConfig):
    """How an editor is trained: the options of :class:`nfn_opt.training.TrainingConfig`, with defaults for editors.

    Attributes:
        steps: Number of optimizer steps, at most.
        lr: Highest learning rate of AdamW; it warms up linearly and follows the schedule.
        warmup: Steps of the warm-up.
        weight_decay: Decoupled weight decay.
        validate_every: Steps between two measurements on the validation INRs.

    Example:
        >>> TrainEditorConfig(steps=100).lr
        0.003
    """

    steps: int = 500
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 1e-2
    validate_every: int = 100
