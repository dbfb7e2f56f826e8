r"""Dividing by the root mean square: what features go through before the network, and its output after it.

.. math:: x \mapsto x \, (\operatorname{mean}(x^2) + \epsilon)^{-1/2}

The mean is over the whole tensor, or over its first two axes. torch stores weights as (outputs, inputs,
*positions), the published rules as (*positions, inputs, outputs): *their* last two axes are the first two here, and
a convolution's kernel is normalised for each position on its own. For tensors of up to two axes both are the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Over = Literal["tensor", "matrix"]


def inverse_rms(x: Tensor, eps: float, over: Over = "tensor") -> Tensor:
    """``(mean(x^2) + eps)^(-1/2)`` for each channel.

    Args:
        x: Shape ``(channels, *shape)``.
        eps: Added under the root.
        over: ``"tensor"``, or ``"matrix"`` for the mean over the first two axes of ``shape`` only.

    Returns:
        ``(channels, *ones)``; ``(channels, 1, 1, *positions)`` for the matrices of a larger tensor.

    Example:
        >>> inverse_rms(torch.full((1, 2, 3, 5), 2.0), 0.0, "matrix").shape
        torch.Size([1, 1, 1, 5])
    """
    if several_matrices(x.dim() - 1, over):
        return torch.rsqrt((x * x).mean((1, 2), keepdim=True) + eps)
    norm = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
    count = x[0].numel()
    return torch.rsqrt(norm * norm / count + eps).reshape(-1, *[1] * (x.dim() - 1))


def several_matrices(axes: int, over: Over) -> bool:
    """Whether a tensor with so many axes is normalised in more than one piece."""
    return over == "matrix" and axes > 2
