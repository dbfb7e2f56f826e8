"""The learned step size: a base value, and a schedule that is a small function of the time features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfn_opt.optim.features import TIMESCALES
from nfn_opt.optim.scalars import positive


class StepSize(nn.Module):
    r"""Step size of each kind of tensor at a time.

    .. math:: \alpha_k(t) = \alpha_0 \exp(\omega_k + w_k \cdot \phi(t))

    with the time features :math:`\phi`. All offsets and weights start at zero, so that the step size starts
    constant. With ``by_kind`` there is one schedule for tensors of two or more axes and one for the others, whose
    steps are ``vector_factor`` times as large.

    Args:
        start: :math:`\alpha_0`.
        schedule: Whether there are weights :math:`w`; without, the step size is constant in time.
        by_kind: Whether the two kinds of tensors have their own.
        learned: Whether there are offsets :math:`\omega`; without, and without a schedule, nothing is learned.
        vector_factor: What the step sizes of vectors are multiplied by.

    Example:
        >>> StepSize(0.5, schedule=True, by_kind=True)(torch.zeros(11)).tolist()
        [0.5, 0.5]
    """

    def __init__(
        self,
        start: float,
        *,
        schedule: bool,
        by_kind: bool,
        learned: bool = True,
        vector_factor: float = 1.0,
    ) -> None:
        super().__init__()
        kinds = 2 if by_kind else 1
        self.start, self.vector_factor = start, vector_factor
        self.log_lr = nn.Parameter(torch.zeros(kinds)) if learned else None
        self.schedule = nn.Parameter(torch.zeros(kinds, len(TIMESCALES))) if schedule else None

    def forward(self, time: Tensor) -> Tensor:
        """Step sizes of matrices and of vectors, shape ``(2,)``, from the time features ``(11,)``."""
        offset = time.new_zeros(2) if self.log_lr is None else self.log_lr
        if self.schedule is not None:
            offset = offset + self.schedule @ time
        sizes = positive(self.start, offset).expand(2)
        if self.vector_factor == 1:
            return sizes
        return sizes * torch.tensor([1.0, self.vector_factor], dtype=sizes.dtype, device=sizes.device)
