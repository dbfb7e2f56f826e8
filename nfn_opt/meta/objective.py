"""What the losses of an inner problem count for in the meta-loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import torch
from torch import Tensor

Measure = Literal["loss", "relative", "log"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    r"""How the losses of one inner problem become one number, so that problems of all scales can be averaged.

    .. math:: \frac{1}{K} \sum_t (q + 1) (t / T)^q \, f(\ell_t)

    Attributes:
        measure: :math:`f`: the loss itself; the loss relative to the one before training; or the logarithm of
            the latter, in which a tenth of the loss counts the same wherever it starts.
        cap: Losses of more than this many times the loss before training count as that many: a problem that
            diverges does not outweigh all others.
        floor: Added to relative losses before the logarithm is taken: smaller ones are as good as this.
        emphasis: :math:`q`; 0 counts all updates alike, larger values the late ones more.

    Example:
        >>> losses = torch.tensor([[2.0], [1.0], [100.0]])
        >>> objective = Objective(measure="relative", cap=1.5)
        >>> objective(losses, torch.tensor([2.0]), torch.tensor([[0.1], [0.5], [1.0]]))
        tensor([1.])
    """

    measure: Measure = "relative"
    cap: float = 1.5
    floor: float = 1e-13
    emphasis: float = 0.0

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ValueError(f"measure is {self.measure!r}, expected one of {get_args(Measure)}")
        if not self.cap > 0 or not self.emphasis >= 0:
            raise ValueError(
                f"cap is {self.cap} and emphasis {self.emphasis}, expected a positive number and at least 0"
            )
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor is {self.floor}, expected a positive number")

    def __call__(self, losses: Tensor, initial: Tensor, progress: Tensor) -> Tensor:
        """One number for each inner problem, shape (n,).

        Args:
            losses: Shape (steps, n).
            initial: Loss of each before training, shape (n,).
            progress: Share of the training done, t / T in [0, 1], shape (steps, n).
        """
        values = torch.minimum(losses, self.cap * initial.abs())
        if self.measure != "loss":
            values = values / initial.abs()
        if self.measure == "log":
            values = torch.log(values.clamp(min=0) + self.floor)
        weights = (self.emphasis + 1) * progress**self.emphasis
        return (weights * values).mean(0)
