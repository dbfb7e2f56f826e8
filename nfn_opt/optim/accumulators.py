r"""Running means of the gradient that learned rules read: momenta, second moment and factored second moments.

All start at zero and are corrected for that only where a rule says so. With the clipped gradient :math:`g`
of one tensor, decays :math:`d_k, d_v, f_k`, and the largest and second largest axis :math:`a_0, a_1` of the
tensor (arXiv:2602.19142, and Adafactor, arXiv:1804.04235):

.. math::
    m_k &\leftarrow d_k m_k + (1 - d_k) g \qquad
    v \leftarrow d_v v + (1 - d_v) g^2 \\
    r_k &\leftarrow f_k r_k + (1 - f_k) \operatorname{mean}_{a_0} g^2 \qquad
    c_k \leftarrow f_k c_k + (1 - f_k) \operatorname{mean}_{a_1} g^2

A tensor with fewer than two axes has no :math:`c_k`, and its :math:`r_k` is not averaged over any axis.
(The papers add :math:`10^{-30}` to :math:`g^2`, which is lost beside the :math:`10^{-9}` of every use.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from nfn_opt.optim.layout import Layout
from nfn_opt.optim.rule import Tensors
from nfn_opt.optim.scalars import rate

TensorStates = dict[str, dict[str, Tensor]]


@dataclasses.dataclass(frozen=True)
class Accumulated:
    """The running means after a gradient was taken in.

    Attributes:
        layout: Where each tensor lies in the flat vectors.
        step: Number of gradients taken in by each tensor, a list of int64 tensors of shape ``()``.
        momentum: ``(M, N)``.
        second_moment: ``(N,)``; ``None`` where not kept.
        rows: For each tensor ``(K, *shape)`` with the largest axis averaged to 1; empty where not kept.
        columns: Likewise with the second largest axis averaged; ``None`` for a tensor of fewer than two axes.
    """

    layout: Layout
    step: list[Tensor]
    momentum: Tensor
    second_moment: Tensor | None
    rows: list[Tensor]
    columns: list[Tensor | None]

    def state(self) -> TensorStates:
        """What to remember for each tensor, shapes as stored where nothing is averaged."""
        momenta = self.layout.split(self.momentum)
        squares = None if self.second_moment is None else self.layout.split(self.second_moment)
        states = {}
        for i, segment in enumerate(self.layout.segments):
            shape = segment.spec.shape
            state = {"step": self.step[i], "momentum": momenta[i].reshape(len(self.momentum), *shape)}
            if squares is not None:
                state["second_moment"] = squares[i].reshape(shape)
            if self.rows:
                state["row"] = self.rows[i]
                column = self.columns[i]
                if column is not None:
                    state["column"] = column
            states[segment.name] = state
        return states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulators:
    """The running means that a rule keeps; see the module for their formulas.

    Attributes:
        momentum_decays: :math:`d_k`.
        second_moment_decay: :math:`d_v`; ``None`` if no second moment is kept.
        factor_decays: :math:`f_k`; empty if no factored second moments are kept.
    """

    momentum_decays: tuple[float, ...]
    second_moment_decay: float | None
    factor_decays: tuple[float, ...]

    def init(self, layout: Layout, params: Tensors) -> TensorStates:
        """States of zero, with the dtype and device of the parameters."""
        states: TensorStates = {}
        for segment in layout.segments:
            p = params[segment.name]
            states[segment.name] = {
                "step": torch.zeros((), dtype=torch.int64, device=p.device),
                "momentum": p.new_zeros(len(self.momentum_decays), *segment.spec.shape),
            }
            if self.second_moment_decay is not None:
                states[segment.name]["second_moment"] = p.new_zeros(segment.spec.shape)
            for which, key in enumerate(("row", "column")):
                if self.factor_decays and (segment.factored is not None or key == "row"):
                    shape = segment.shape if segment.factored is None else segment.averaged_shape(which)
                    states[segment.name][key] = p.new_zeros(len(self.factor_decays), *shape)
        return states

    def update(
        self,
        layout: Layout,
        gradient: Tensor,
        states: TensorStates,
        offsets: Mapping[str, Tensor] | None = None,
    ) -> Accumulated:
        """Take in a flat gradient ``(N,)``.

        Args:
            layout: Where each tensor lies in it.
            gradient: The gradient.
            states: The means before, as from :meth:`init` or :meth:`Accumulated.state`.
            offsets: What moves the decays from their values, see :func:`nfn_opt.optim.scalars.decay`:
                ``"momentum"``, ``"second_moment"`` and ``"factor"``, one number for each decay.
        """
        offsets = {} if offsets is None else offsets
        old, square = layout.gather(states, "momentum"), gradient * gradient
        rates = _rates(self.momentum_decays, gradient, offsets.get("momentum"))
        rows, columns = self._factors(layout, square, states, offsets.get("factor"))
        return Accumulated(
            layout=layout,
            step=[states[segment.name]["step"] + 1 for segment in layout.segments],
            momentum=_mix(old, gradient, rates),
            second_moment=self._second_moment(layout, square, states, offsets.get("second_moment")),
            rows=rows,
            columns=columns,
        )

    def _second_moment(
        self, layout: Layout, square: Tensor, states: TensorStates, offset: Tensor | None
    ) -> Tensor | None:
        if self.second_moment_decay is None:
            return None
        old = torch.cat([states[s.name]["second_moment"].reshape(-1) for s in layout.segments])
        if offset is None:
            return torch.lerp(old, square, 1 - self.second_moment_decay)
        return torch.lerp(old, square, rate(1 - self.second_moment_decay, offset))

    def _factors(
        self, layout: Layout, square: Tensor, states: TensorStates, offset: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        rows: list[Tensor] = []
        columns: list[Tensor | None] = []
        if not self.factor_decays:
            return rows, columns
        rates = _rates(self.factor_decays, square, offset)
        for segment, flat in zip(layout.segments, layout.split(square), strict=True):
            viewed, state = flat.reshape(segment.shape), states[segment.name]
            if segment.factored is None:
                rows.append(_mix(state["row"], viewed, rates))
                columns.append(None)
                continue
            means = [viewed.mean(axis, keepdim=True) for axis in segment.factored]
            rows.append(_mix(state["row"], means[0], rates))
            columns.append(_mix(state["column"], means[1], rates))
        return rows, columns


def _mix(old: Tensor, new: Tensor, rates: Tensor) -> Tensor:
    """``old_k + rate_k (new - old_k)`` for ``old`` of shape ``(K, *shape)`` and ``new`` of shape ``shape``."""
    return torch.lerp(old, new.expand_as(old), rates.reshape(-1, *[1] * new.dim()))


def _rates(decays: tuple[float, ...], like: Tensor, offset: Tensor | None) -> Tensor:
    rates = torch.tensor([1 - d for d in decays], dtype=like.dtype, device=like.device)
    return rates if offset is None else rate(rates, offset)
