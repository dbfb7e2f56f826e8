"""The rule of Metz et al., written out literally one tensor at a time, outputs last: the oracle for the fast code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.optim.celo2_twin import from_reference, new_state, to_reference

TIMESCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)


def run(
    params: Mapping[str, Tensor],
    gradients: Sequence[Mapping[str, Tensor]],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    decays: tuple[Sequence[float], float, Sequence[float]],
) -> dict[str, Tensor]:
    """Parameters (outputs first) after one update for each gradient, with decays of momenta, RMS and factors."""
    after = {}
    for name, stored in params.items():
        p = to_reference(stored)
        scalar = p.dim() == 0
        p = p.reshape(1) if scalar else p
        state = new_state(p)
        for t, grads in enumerate(gradients):
            g = to_reference(grads[name]).reshape(p.shape)
            channels = [x / (1e-5 + (x**2).mean()).sqrt() for x in features(p, g, state, decays)]
            channels += [torch.full_like(p, t / s - 1).tanh() for s in TIMESCALES]
            x = torch.stack(channels, -1) @ weights[0].T + biases[0]
            for weight, bias in zip(weights[1:], biases[1:], strict=True):
                x = x.relu() @ weight.T + bias
            p = p - x[..., 0] * (x[..., 1] * 0.001).exp() * 0.001
        after[name] = from_reference(p).reshape(stored.shape)
    return after


def features(
    p: Tensor,
    g: Tensor,
    state: dict[str, Any],
    decays: tuple[Sequence[float], float, Sequence[float]],
) -> list[Tensor]:
    """The 28 channels before they are normalised, in order; ``state`` is renewed."""
    momentum_decays, rms_decay, factor_decays = decays
    m = [d * m + (1 - d) * g for d, m in zip(momentum_decays, state["m"], strict=True)]
    v = rms_decay * state["v"] + (1 - rms_decay) * g**2
    root = (v + 1e-6).rsqrt()
    state.update(m=m, v=v)
    squares = g**2 + 1e-30
    if p.dim() < 2:
        r = [d * r + (1 - d) * squares for d, r in zip(factor_decays, state["r"], strict=True)]
        state.update(r=r)
        factored = [g * (r_k + 1e-9).rsqrt() for r_k in r]
        roots = [(r_k + 1e-8).rsqrt() for r_k in r]
        rest = [*r, *r, *roots, *roots, *(m_k * (r_k + 1e-6) ** -0.5 for m_k, r_k in zip(m, r, strict=True))]
    else:
        d1, d0 = (int(d) for d in np.argsort(p.shape, kind="stable")[-2:])
        r = [d * r + (1 - d) * squares.mean(d0) for d, r in zip(factor_decays, state["r"], strict=True)]
        c = [d * c + (1 - d) * squares.mean(d1) for d, c in zip(factor_decays, state["c"], strict=True)]
        state.update(r=r, c=c)
        rows = [r_k.unsqueeze(d0).expand_as(p) for r_k in r]
        columns = [c_k.unsqueeze(d1).expand_as(p) for c_k in c]
        means = [r_k.unsqueeze(d0).mean(d1, keepdim=True) for r_k in r]
        R = [(x / (mean + 1e-9)).clamp(min=1e-9).rsqrt() for x, mean in zip(rows, means, strict=True)]
        C = [x.clamp(min=1e-9).rsqrt() for x in columns]
        factored = [g * a * b for a, b in zip(R, C, strict=True)]
        rest = [*rows, *columns, *((x + 1e-8).rsqrt() for x in (*rows, *columns))]
        rest += [x * a * b for x, a, b in zip(m, R, C, strict=True)]
    return [g, p, *m, v, *(m_k * root for m_k in m), root, *factored, *rest]
