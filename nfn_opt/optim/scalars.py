"""Learned scalars that start exactly at a constant: a parameter that starts at zero moves them from it."""

from __future__ import annotations

import torch
from torch import Tensor


def positive(start: float, offset: Tensor) -> Tensor:
    """A learned positive number, ``start * exp(offset)``."""
    return start * torch.exp(offset)


def decay(start: float, offset: Tensor) -> Tensor:
    r"""A learned decay in (0, 1): :math:`1 - d` is the :func:`rate` of ``1 - start``.

    Example:
        >>> float(decay(0.9, torch.zeros((), dtype=torch.float64)))
        0.9
    """
    return 1.0 - rate(1.0 - start, offset)


def rate(start: float | Tensor, offset: Tensor) -> Tensor:
    r"""A learned rate in (0, 1): :math:`c e^o / (1 - c + c e^o)` with :math:`c = \text{start}`.

    The offset adds to the logit, so that a step moves the time scale by a factor.
    """
    scaled = start * torch.exp(offset)
    return scaled / (1.0 - start + scaled)


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root of ``x >= 0`` whose derivative at 0 is 0 instead of infinite."""
    positive_part = x > 0
    return torch.where(positive_part, torch.sqrt(torch.where(positive_part, x, 1.0)), 0.0)
