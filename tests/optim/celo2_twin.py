"""Celo2-base and Celo2, written out literally one tensor at a time: the oracle for the fast code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

DECAYS = (0.9, 0.99, 0.999)


def to_reference(x: Tensor) -> Tensor:
    """From (outputs, inputs, *positions) to (*positions, inputs, outputs)."""
    return x if x.dim() < 2 else x.permute(*range(2, x.dim()), 1, 0)


def from_reference(x: Tensor) -> Tensor:
    """The inverse of :func:`to_reference`."""
    return x if x.dim() < 2 else x.permute(-1, -2, *range(x.dim() - 2))


def new_state(p: Tensor) -> dict[str, Any]:
    """Accumulators of zero for one tensor in the reference's layout."""
    state: dict[str, Any] = {"m": [torch.zeros_like(p)] * 3, "v": torch.zeros_like(p)}
    if p.dim() < 2:
        state["r"] = [torch.zeros_like(p)] * 3
    else:
        d1, d0 = np.argsort(p.shape, kind="stable")[-2:]
        state["r"], state["c"] = (
            [torch.zeros_like(p.mean(int(d0)))] * 3,
            [torch.zeros_like(p.mean(int(d1)))] * 3,
        )
    return state


def features(p: Tensor, b: Tensor, state: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """The normalised channels in order, 30 for a matrix and 15 for a vector, and the new state."""
    g = b.clamp(-1000, 1000)
    m = [d * m + (1 - d) * g for d, m in zip(DECAYS, state["m"], strict=True)]
    v = 0.95 * state["v"] + 0.05 * g**2
    root = (v + 1e-8).rsqrt()
    new = {"m": m, "v": v}
    if p.dim() < 2:
        r = [d * r + (1 - d) * (g**2 + 1e-30) for d, r in zip(DECAYS, state["r"], strict=True)]
        factored = [g * (r_k + 1e-9).clamp(min=1e-9).rsqrt() for r_k in r]
        rest, new = [], {**new, "r": r}
    else:
        d1, d0 = (int(d) for d in np.argsort(p.shape, kind="stable")[-2:])
        r = [d * r + (1 - d) * (g**2 + 1e-30).mean(d0) for d, r in zip(DECAYS, state["r"], strict=True)]
        c = [d * c + (1 - d) * (g**2 + 1e-30).mean(d1) for d, c in zip(DECAYS, state["c"], strict=True)]
        d1_in_r = d1 - 1 if d1 > d0 else d1
        R = [
            (r_k / (r_k.mean(d1_in_r, keepdim=True) + 1e-9)).clamp(min=1e-9).rsqrt().unsqueeze(d0)
            for r_k in r
        ]
        C = [c_k.clamp(min=1e-9).rsqrt().unsqueeze(d1) for c_k in c]
        factored = [g * R_k * C_k for R_k, C_k in zip(R, C, strict=True)]
        rows = [r_k.unsqueeze(d0).expand_as(p) for r_k in r]
        columns = [c_k.unsqueeze(d1).expand_as(p) for c_k in c]
        rest = [*rows, *columns, *((x + 1e-8).rsqrt() for x in (*rows, *columns))]
        rest += [m_k * R_k * C_k for m_k, R_k, C_k in zip(m, R, C, strict=True)]
        new = {**new, "r": r, "c": c}
    channels = [g, g.clamp(-0.1, 0.1), p, *m, v, *(m_k * root for m_k in m), root, *factored, g * root, *rest]
    return [normalised(x) for x in channels], new


def normalised(x: Tensor) -> Tensor:
    """Divided by the root mean square over the last two axes of the reference's layout."""
    axes = tuple(range(x.dim()))[-2:]
    return x * (1e-9 + (x**2).mean(axes, keepdim=True)).rsqrt()


def orthogonal(x: Tensor) -> Tensor:
    """Newton and Schulz's iteration on the last two axes of the reference's layout."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.transpose(-1, -2) if tall else x
    x = x / ((x**2).sum((-1, -2), keepdim=True).sqrt() + 1e-8)
    for _ in range(5):
        A = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * A + 2.0315 * A @ A) @ x
    return x.transpose(-1, -2) if tall else x


def adam(p: Tensor, b: Tensor, state: dict[str, Any], lr: float) -> tuple[Tensor, dict[str, Any]]:
    """The update of a vector in Celo2, and the new state."""
    m, v = 0.9 * state["m"][0] + 0.1 * b, 0.95 * state["v"] + 0.05 * b**2
    return -20 * lr * m * (v + 1e-8).rsqrt(), {**state, "m": [m], "v": v}


def step(
    p: Tensor,
    b: Tensor,
    state: dict[str, Any],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lr: float,
    base: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """The update of one tensor in the reference's layout, and the new state."""
    if not base and p.dim() < 2:
        return adam(p, b, state, lr)
    channels, state = features(p, b, state)
    x = torch.stack(channels, -1) @ weights[0][:, : len(channels)].T + biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = x.relu() @ weight.T + bias
    direction = x[..., 0] if base else orthogonal(x[..., 0])
    return -lr * normalised(direction), state


def run(
    params: Mapping[str, Tensor],
    gradients: Sequence[Mapping[str, Tensor]],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lr: float,
    base: bool = True,
) -> dict[str, Tensor]:
    """Parameters (outputs first) after one update for each gradient, by Celo2-base or by Celo2."""
    after = {}
    for name, stored in params.items():
        p = to_reference(stored)
        state = new_state(p)
        for grads in gradients:
            update, state = step(p, to_reference(grads[name]), state, weights, biases, lr, base)
            p = p + update
        after[name] = from_reference(p)
    return after
