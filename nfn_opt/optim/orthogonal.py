"""The nearest orthogonal matrix, roughly and fast: the Newton-Schulz iteration of Muon and Celo2."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Those of Muon: steepest at zero, so that five iterations bring all singular values to about 0.7 to 1.2."""


def orthogonalise(
    matrix: Tensor,
    iterations: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    *,
    floor: Literal["clamp", "add"] = "clamp",
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Bring all singular values of a matrix to about 1, and keep its singular vectors.

    .. math:: X_0 = M / \|M\|_F \qquad X_{k+1} = a X_k + (b A_k + c A_k^2) X_k \qquad A_k = X_k X_k^\top

    Tall matrices are transposed on the way, so that :math:`A` is small. A matrix of zeros stays one.

    Source: https://kellerjordan.github.io/posts/muon, as in :class:`torch.optim.Muon`.

    Args:
        matrix: Matrices, shape (..., m, n).
        iterations: How often the polynomial is applied.
        coefficients: :math:`a, b, c`.
        eps: Keeps the division finite.
        floor: Divide by ``max(norm, eps)``, as torch does, or by ``norm + eps``, as Celo2 does.
        dtype: Type of the arithmetic, that of ``matrix`` if ``None``; torch takes ``torch.bfloat16``.

    Returns:
        Shape and type of ``matrix``.

    Raises:
        ValueError: If there are fewer than two axes.

    Example:
        >>> x = orthogonalise(torch.diag(torch.tensor([5.0, 1.0, 0.5])))
        >>> bool(((x.diagonal() > 0.6) & (x.diagonal() < 1.3)).all())
        True
    """
    if matrix.dim() < 2:
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)}, expected at least two axes; leave vectors as they are"
        )
    x = matrix.reshape(-1, *matrix.shape[-2:]).to(matrix.dtype if dtype is None else dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / (norm.clamp(min=eps) if floor == "clamp" else norm + eps)
    a, b, c = coefficients
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype).reshape(matrix.shape)
