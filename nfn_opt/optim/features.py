r"""What a learned rule sees of each weight, and the first layer that reads it.

With the running means of :mod:`nfn_opt.optim.accumulators`, the weight :math:`p`, its clipped gradient
:math:`g`, and the factors

.. math::
    R_k = \max(r_k / (\operatorname{mean}_{a_1} r_k + 10^{-9}), 10^{-9})^{-1/2} \qquad
    C_k = \max(c_k, 10^{-9})^{-1/2}

(for a tensor with fewer than two axes :math:`R_k C_k` is replaced by :math:`(r_k + 10^{-9})^{-1/2}`), the
features are

======================== ========================================= ==========
name                     formula                                   channels
======================== ========================================= ==========
``gradient``             :math:`g`                                 1
``clipped_gradient``     :math:`g` cut to [-0.1, 0.1]              1
``parameter``            :math:`p`                                 1
``momentum``             :math:`m_k`                               M
``second_moment``        :math:`v`                                 1
``scaled_momentum``      :math:`m_k (v + 10^{-8})^{-1/2}`          M
``inverse_root``         :math:`(v + 10^{-8})^{-1/2}`              1
``factored_gradient``    :math:`g R_k C_k`                         K
``scaled_gradient``      :math:`g (v + 10^{-8})^{-1/2}`            1
``row``                  :math:`r_k`, constant along :math:`a_0`   K
``column``               :math:`c_k`, constant along :math:`a_1`   K
``inverse_root_row``     :math:`(r_k + 10^{-8})^{-1/2}`            K
``inverse_root_column``  :math:`(c_k + 10^{-8})^{-1/2}`            K
``factored_momentum``    :math:`m_k R_k C_k`                       K
======================== ========================================= ==========

in the order of Celo2 (arXiv:2602.19142). For a tensor with fewer than two axes the last five are zero, or, as in
the rule of Metz et al. (arXiv:2203.11860), repeat its :math:`r_k`:

======================== ==================================================================
``row``, ``column``      :math:`r_k`
``inverse_root_...``     :math:`(r_k + 10^{-8})^{-1/2}`
``factored_momentum``    :math:`m_k (r_k + \epsilon)^{-1/2}`, :math:`\epsilon` as beside :math:`v`
======================== ==================================================================

The :math:`10^{-8}` beside :math:`v` is an option. Every channel is then divided by its root mean square,
:math:`x (\operatorname{mean}(x^2) + 10^{-9})^{-1/2}`; see :mod:`nfn_opt.optim.normalise`.

Time features, the same for all weights: :math:`\tanh(t / \tau - 1)` for the timescales 1, 3, 10, 30, ...,
100000.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from nfn_opt.optim.accumulators import Accumulated
from nfn_opt.optim.layout import Layout, flat

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Timescales of the time features, in steps."""

EPS, ROOT_EPS, FACTOR_EPS = 1e-9, 1e-8, 1e-9


def time_features(step: Tensor, dtype: torch.dtype) -> Tensor:
    r""":math:`\tanh(t / \tau - 1)` for every timescale.

    Args:
        step: Number of updates made, shape ``()``.
        dtype: Type of the result.

    Returns:
        Shape ``(11,)``, values in (-0.77, 1].

    Example:
        >>> time_features(torch.tensor(10), torch.float64)[2].item()
        0.0
    """
    timescales = torch.tensor(TIMESCALES, dtype=dtype, device=step.device)
    return torch.tanh(step.to(dtype) / timescales - 1)


class Inputs:
    """What the features are computed from, flat; quantities that several features share are computed once.

    Args:
        parameter: ``(N,)``.
        gradient: The clipped gradient, ``(N,)``.
        means: The running means after this gradient was taken in.
        root_eps: Added to the second moment under the root.
    """

    def __init__(
        self, parameter: Tensor, gradient: Tensor, means: Accumulated, root_eps: float = ROOT_EPS
    ) -> None:
        self.parameter, self.gradient, self.means, self.root_eps = parameter, gradient, means, root_eps
        self.momentum = means.momentum

    @property
    def second_moment(self) -> Tensor:
        """``v``, shape ``(N,)``."""
        assert self.means.second_moment is not None
        return self.means.second_moment

    @property
    def layout(self) -> Layout:
        """Where each tensor lies."""
        return self.means.layout

    @functools.cached_property
    def inverse_root(self) -> Tensor:
        """``(v + eps)^(-1/2)``, shape ``(N,)``."""
        return torch.rsqrt(self.second_moment + self.root_eps)

    @functools.cached_property
    def factor(self) -> Tensor:
        """``R_k C_k``, shape ``(K, N)``."""
        factors = []
        for segment, row, column in zip(
            self.layout.segments, self.means.rows, self.means.columns, strict=True
        ):
            if segment.factored is None or column is None:
                factors.append(flat(torch.rsqrt(row + FACTOR_EPS)))
                continue
            relative = row / (row.mean(1 + segment.factored[1], keepdim=True) + FACTOR_EPS)
            R, C = (torch.rsqrt(torch.clamp(x, min=FACTOR_EPS)) for x in (relative, column))
            factors.append(flat(R * C))
        return torch.cat(factors, dim=1)


ENTRY: dict[str, Callable[[Inputs], Tensor]] = {
    "gradient": lambda x: x.gradient,
    "clipped_gradient": lambda x: torch.clamp(x.gradient, -0.1, 0.1),
    "parameter": lambda x: x.parameter,
    "momentum": lambda x: x.momentum,
    "second_moment": lambda x: x.second_moment,
    "scaled_momentum": lambda x: x.momentum * x.inverse_root,
    "inverse_root": lambda x: x.inverse_root,
    "factored_gradient": lambda x: x.gradient * x.factor,
    "scaled_gradient": lambda x: x.gradient * x.inverse_root,
    "factored_momentum": lambda x: x.momentum * x.factor,
}
"""Features with a value for each weight: from the inputs to ``(N,)`` or ``(channels, N)``."""

FACTOR: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "row": (0, lambda r: r),
    "column": (1, lambda c: c),
    "inverse_root_row": (0, lambda r: torch.rsqrt(r + ROOT_EPS)),
    "inverse_root_column": (1, lambda c: torch.rsqrt(c + ROOT_EPS)),
}
"""Features with a value for each row (0) or column (1), and the function of the factored second moment."""


def repeated(feature: str, momentum: Tensor, row: Tensor, root_eps: float) -> Tensor:
    """A feature of matrices for a tensor with fewer than two axes, from its ``m_k`` and ``r_k``, ``(K, n)`` each."""
    if feature == "factored_momentum":
        return momentum * torch.rsqrt(row + root_eps)
    return FACTOR[feature][1](row)


MATRIX_ONLY = frozenset({*FACTOR, "factored_momentum"})
"""Features that are zero for a tensor with fewer than two axes, or :func:`repeated`."""

FEATURES = (
    *(
        "gradient",
        "clipped_gradient",
        "parameter",
        "momentum",
        "second_moment",
        "scaled_momentum",
        "inverse_root",
    ),
    *("factored_gradient", "scaled_gradient", "row", "column", "inverse_root_row", "inverse_root_column"),
    "factored_momentum",
)
"""All features in the order of Celo2."""

USES_FACTORS = frozenset({*MATRIX_ONLY, "factored_gradient"})
"""Features that need the factored second moments."""

USES_SECOND_MOMENT = frozenset({"second_moment", "scaled_momentum", "inverse_root", "scaled_gradient"})
"""Features that need the second moment."""


def channels(feature: str, momenta: int, factors: int) -> int:
    """How many channels a feature has with ``M`` momenta and ``K`` factored second moments."""
    if feature in USES_FACTORS:
        return factors
    return momenta if feature in ("momentum", "scaled_momentum") else 1
