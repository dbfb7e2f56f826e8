"""The nearest orthogonal matrix, roughly and fast: the Newton-Schulz iteration of Muon and Celo2."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Those of Muon: steepest at zero, so that five iterations bring all singular values to about 0.7 to 1.2."""

WIDE, LARGE = 2, 128
"""From this ratio of sides and this length of the shorter on, several iterations are made of the small Gram matrix."""

TOGETHER = 3
"""How many: more would be faster, and lose digits of small singular values in float32."""


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

    Tall matrices are transposed on the way, so that :math:`A` is small. A matrix of zeros stays one. Where :math:`X` is
    large and much wider than high, three iterations are made of :math:`A` alone and then applied to :math:`X` at once,
    which is the same to rounding and takes about half the time.

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
    wide = x.shape[-1] >= WIDE * x.shape[-2] and x.shape[-2] >= LARGE and x.dtype.itemsize >= 4
    together = TOGETHER if wide else 1
    for done in range(0, iterations, together):
        x = _iterate(x, min(together, iterations - done), coefficients)
    return (x.mT if tall else x).to(matrix.dtype).reshape(matrix.shape)


def _iterate(x: Tensor, times: int, coefficients: tuple[float, float, float]) -> Tensor:
    """Some iterations of matrices (n, a, b) at once: the product of their polynomials in ``x @ x.mT``, times ``x``."""
    a, b, c = coefficients
    gram = x @ x.mT
    if times == 1:
        return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    scaled = a * torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    product = factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + scaled
    for _ in range(times - 1):
        gram = factor @ (gram @ factor)  # all of them commute
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + scaled
        product = factor @ product
    return product @ x
