"""Recurrent, attention and residual layers for :func:`~nfn_opt.meta.families.stacked.run_stacked`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nfn_opt.meta.families.modules import (
    CausalSelfAttention,
    CharRecurrent,
    CharTransformer,
    Residual,
    causal_attention,
)
from nfn_opt.meta.families.stacked import run_stacked

Params = Mapping[str, Tensor]


@run_stacked.register
def _residual(module: Residual, x: Tensor, params: Params, prefix: str = "") -> Tensor:
    shortcut = run_stacked(module.shortcut, x, params, f"{prefix}shortcut.")
    return shortcut + run_stacked(module.body, x, params, f"{prefix}body.")


@run_stacked.register
def _attention(module: CausalSelfAttention, x: Tensor, params: Params, prefix: str = "") -> Tensor:
    mixed = causal_attention(run_stacked(module.qkv, x, params, f"{prefix}qkv."), module.heads)
    return run_stacked(module.out, mixed, params, f"{prefix}out.")


@run_stacked.register
def _char_transformer(module: CharTransformer, x: Tensor, params: Params, prefix: str = "") -> Tensor:
    position = params[f"{prefix}position.weight"][:, : x.shape[-1]]
    y = run_stacked(module.token, x, params, f"{prefix}token.") + position.unsqueeze(1)
    for name in ("blocks", "head"):
        y = run_stacked(getattr(module, name), y, params, f"{prefix}{name}.")
    return y


@run_stacked.register
def _char_recurrent(module: CharRecurrent, x: Tensor, params: Params, prefix: str = "") -> Tensor:
    """Time comes before the batch from the embedding on, so that a step reads one block of memory."""
    y = run_stacked(module.embedding, x.transpose(1, 2), params, f"{prefix}embedding.")
    y = _over_time(module.recurrent, y, params, f"{prefix}recurrent.")
    return run_stacked(module.head, y, params, f"{prefix}head.").transpose(1, 2)


def _over_time(module: nn.RNNBase, x: Tensor, params: Params, prefix: str) -> Tensor:
    """States of one recurrent layer at all times, shape (n, T, B, H), from inputs of shape (n, T, B, D)."""
    n, length, size, _ = x.shape
    bias_x, bias_h = (params[f"{prefix}bias_{part}_l0"].unsqueeze(1) for part in ("ih", "hh"))
    if not isinstance(module, nn.GRU):  # only the GRU multiplies between the two
        bias_x = bias_x + bias_h
    weight_x, weight_h = (params[f"{prefix}weight_{part}_l0"].transpose(1, 2) for part in ("ih", "hh"))
    inputs = torch.baddbmm(bias_x, x.flatten(1, 2), weight_x).view(n, length, size, -1)
    step = _STEPS[type(module)]
    state: States = tuple(x.new_zeros(n, size, module.hidden_size) for _ in range(2))
    outputs = []
    for current in inputs.unbind(1):
        state = step(module, current, state, weight_h, bias_h)
        outputs.append(state[0])
    return torch.stack(outputs, 1)


States = tuple[Tensor, ...]


def _simple(module: nn.RNNBase, x: Tensor, state: States, weight: Tensor, bias: Tensor) -> States:
    h = torch.baddbmm(x, state[0], weight)
    return (h.tanh() if module.mode == "RNN_TANH" else h.relu(),)


def _gru(module: nn.RNNBase, x: Tensor, state: States, weight: Tensor, bias: Tensor) -> States:
    (h,), width = state[:1], module.hidden_size
    recurrent = torch.baddbmm(bias, h, weight)
    gates_x, new_x = x.split((2 * width, width), -1)
    gates_h, new_h = recurrent.split((2 * width, width), -1)
    reset, update = torch.sigmoid(gates_x + gates_h).split(width, -1)
    new = torch.tanh(torch.addcmul(new_x, reset, new_h))
    return (torch.lerp(new, h, update),)


def _lstm(module: nn.RNNBase, x: Tensor, state: States, weight: Tensor, bias: Tensor) -> States:
    (h, c), width = state, module.hidden_size
    gates = torch.baddbmm(x, h, weight)
    in_forget, new, out = gates.split((2 * width, width, width), -1)
    enter, forget = torch.sigmoid(in_forget).split(width, -1)
    c = torch.addcmul(forget * c, enter, torch.tanh(new))
    return torch.sigmoid(out) * torch.tanh(c), c


_STEPS = {nn.RNN: _simple, nn.GRU: _gru, nn.LSTM: _lstm}
