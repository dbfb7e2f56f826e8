"""Weights of the ``nfn`` package's attention layer (0.1.2) as weights of ours."""

from __future__ import annotations

from typing import Any

import torch
from nfn.common import network_spec_from_wsfeat
from nfn.layers import NPAttention
from torch import Tensor

from nfn_opt.layers.attention import NFAttention
from nfn_opt.weight_space import Features, WeightSpace
from tests.layers.nfn_weights import to_nfn


def make_nfn_attention(space: WeightSpace, features: Features, heads: int, shared: bool) -> Any:
    """The package's layer for a space whose parameters are weights and biases by turns."""
    example = to_nfn(features)
    channels = example.weights[0].shape[1]
    return NPAttention(network_spec_from_wsfeat(example), channels, heads, share_projections=shared)


def from_nfn_attention(theirs: Any, space: WeightSpace) -> NFAttention:
    """Our layer with the weights of the package's.

    Theirs orders the rows of the projections by head and then query, key, value, has a bias of the keys where it
    changes nothing, maps weights but not biases back, and adds that map's bias once for each of three terms.
    """
    channels, heads = theirs.ch * theirs.nh, theirs.nh
    shared = theirs.share_projections
    ours = NFAttention(space, channels, heads, sharing="shared" if shared else "per_parameter")
    ours = ours.to(next(theirs.parameters()).dtype)
    order = torch.arange(3 * channels).view(heads, 3, -1).transpose(0, 1).flatten()

    def copy_qkv(index: int, module: Any, fold: int) -> None:
        weight = module.linear.weight.data[order]
        ours.qkv[index].data = _kernel_last(weight, channels, fold)
        query, key, value = module.linear.bias.data[order].chunk(3)
        ours.query_bias.data[index], ours.value_bias.data[index] = query, value
        if ours.key_bias is not None:
            ours.key_bias.data[index] = key

    if shared:
        copy_qkv(0, theirs.to_qkv, 1)
        return ours
    for layer in range(len(theirs.unproject_weight)):
        weight, bias = 2 * layer, 2 * layer + 1
        back = theirs.unproject_weight[layer].linear
        fold = back.weight.shape[0] // channels
        copy_qkv(weight, theirs.weight_to_qkv[layer], fold)
        copy_qkv(bias, theirs.bias_to_qkv[layer], 1)
        ours.out[weight].data = _kernel_last(back.weight.data.mT, channels, fold).mT.contiguous()
        ours.out_bias[weight].data = 3 * _kernel_last(back.bias.data[None], channels, fold)[0]
        ours.out[bias].data = torch.eye(channels, dtype=back.weight.dtype)
    return ours


def _kernel_last(matrix: Tensor, channels: int, fold: int) -> Tensor:
    """Columns over ``(C, *kernel)`` in our order ``(*kernel, C)``."""
    return matrix.reshape(len(matrix), channels, fold).transpose(1, 2).reshape(len(matrix), -1)
