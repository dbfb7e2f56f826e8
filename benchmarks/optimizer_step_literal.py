"""Celo2-base as its formulas read, one tensor and one feature at a time: what the library's step is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.optim import MLPRule

DECAYS = (0.9, 0.99, 0.999)


class LiteralCelo2Base(torch.optim.Optimizer):
    """Celo2-base (arXiv:2602.19142) in plain eager PyTorch; makes the updates of the library's rule.

    Args:
        params: Parameters.
        rule: An :class:`MLPRule` of the configuration ``MLPConfig.celo2_base()``, whose weights are used.
    """

    def __init__(self, params: Iterable[nn.Parameter], rule: MLPRule) -> None:
        super().__init__(params, {"lr": rule.config.lr})
        self.layers = [(rule.first.weight.detach(), rule.first.bias.detach())]
        for weight, bias in zip(rule.rest.weights, rule.rest.biases, strict=True):
            self.layers.append((weight.detach(), bias.detach()))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter with a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(self._direction(p, p.grad, self.state[p]), alpha=-group["lr"])

    def _direction(self, p: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        features = torch.stack([_normalised(x) for x in _features(p, gradient, state)], dim=-1)
        (weight, bias), *rest = self.layers
        hidden = features @ weight[:, : features.shape[-1]].T + bias
        for weight, bias in rest:
            hidden = torch.relu(hidden) @ weight.T + bias
        return _normalised(hidden.squeeze(-1))


def _normalised(x: Tensor) -> Tensor:
    """Divide by the root mean square over the first two axes."""
    axes = list(range(min(x.dim(), 2)))
    return x * torch.rsqrt(1e-9 + (x**2).mean(axes, keepdim=True))


def _features(p: Tensor, gradient: Tensor, state: dict[str, Any]) -> list[Tensor]:
    """The 30 features of a tensor with two or more axes, or the 15 of a vector, after updating its state."""
    g = gradient.clamp(-1000, 1000)
    if not state:
        state.update(m=[torch.zeros_like(p)] * 3, v=torch.zeros_like(p), r=[0.0] * 3, c=[0.0] * 3)
    state["m"] = m = [d * m + (1 - d) * g for d, m in zip(DECAYS, state["m"], strict=True)]
    state["v"] = v = 0.95 * state["v"] + 0.05 * g**2
    root = torch.rsqrt(v + 1e-8)
    first = [g, g.clamp(-0.1, 0.1), p, *m, v, *(m_k * root for m_k in m), root]
    if p.dim() < 2:
        state["r"] = r = [d * r + (1 - d) * (g**2 + 1e-30) for d, r in zip(DECAYS, state["r"], strict=True)]
        return [*first, *(g * torch.rsqrt((r_k + 1e-9).clamp(min=1e-9)) for r_k in r), g * root]
    second, largest = _axes(p.shape)
    for key, axis in (("r", largest), ("c", second)):
        mean = (g**2 + 1e-30).mean(axis, keepdim=True)
        state[key] = [d * old + (1 - d) * mean for d, old in zip(DECAYS, state[key], strict=True)]
    r, c = state["r"], state["c"]
    R = [torch.rsqrt((r_k / (r_k.mean(second, keepdim=True) + 1e-9)).clamp(min=1e-9)) for r_k in r]
    C = [torch.rsqrt(c_k.clamp(min=1e-9)) for c_k in c]
    sides = [x.expand_as(p) for x in (*r, *c)]
    return [
        *first,
        *(g * R_k * C_k for R_k, C_k in zip(R, C, strict=True)),
        g * root,
        *sides,
        *(torch.rsqrt(x + 1e-8) for x in sides),
        *(m_k * R_k * C_k for m_k, R_k, C_k in zip(m, R, C, strict=True)),
    ]


def _axes(shape: torch.Size) -> tuple[int, int]:
    """The second largest and the largest axis, ties as for weights stored as (positions, inputs, outputs)."""
    stored = (*range(2, len(shape)), 1, 0)
    second, largest = sorted(stored, key=lambda axis: shape[axis])[-2:]
    return second, largest
