"""Which matrices a weight consists of, for making an update orthogonal as Celo2 does (arXiv:2602.19142, step 7)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from nfn_opt.optim.orthogonal import orthogonalise

Matrices = Literal["positions", "flat"]
"""A convolution (outputs, inputs, *positions): one matrix for each position, as in the published rules, whose last
two axes are inputs and outputs; or a single one (outputs, inputs * positions), as in Muon."""

NORM_EPS = 1e-8


def orthogonal_update(x: Tensor, matrices: Matrices) -> Tensor:
    """Make the matrices of one tensor orthogonal, in the tensor's own precision.

    Args:
        x: Shape ``(outputs, inputs, *positions)``, at least two axes.
        matrices: See :data:`Matrices`; the same for a tensor of two axes.

    Returns:
        The same shape.

    Example:
        >>> import torch
        >>> x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> values = torch.linalg.svdvals(orthogonal_update(x, "positions").permute(2, 3, 0, 1))
        >>> bool(((values > 0.6) & (values < 1.3)).all())
        True
    """
    if x.dim() == 2:
        return orthogonalise(x, eps=NORM_EPS, floor="add")
    if matrices == "flat":
        return orthogonalise(x.reshape(x.shape[0], -1), eps=NORM_EPS, floor="add").reshape(x.shape)
    each = x.reshape(*x.shape[:2], math.prod(x.shape[2:])).permute(2, 0, 1)
    return orthogonalise(each, eps=NORM_EPS, floor="add").permute(1, 2, 0).reshape(x.shape)
