"""Blocks of the NF-Transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.layers.attention import AttentionSharing, NFAttention, check_dropout
from nfn_opt.layers.checks import check_input
from nfn_opt.weight_space import Features, WeightSpace

_BRANCH = 0.25
"""Initial size of what attention and MLP add at most: several blocks then keep the variance."""


class NFTransformerBlock(nn.Module):
    r"""Attention along neuron axes, then an MLP over channels, each behind a layer norm and added to its input.

    .. math:: Z = X + \mathrm{attention}(\mathrm{norm}(X)), \qquad Y = Z + \mathrm{MLP}(\mathrm{norm}(Z))

    (Sec. 3.4 of arXiv:2305.13546, pre-norm, GELU.) With ``sharing="shared"`` the block applies to any other space.

    Args:
        space: The weight space.
        channels: Channels in and out.
        heads: Number of heads; divides ``channels``.
        expansion: Hidden channels of the MLP for each channel.
        sharing: Sharing of the attention's projections, as in :class:`NFAttention`.
        dropout: Probability that an attention between tokens, or a channel that the MLP adds, is dropped in training.
        generator: Source of the initial weights.

    Shapes:
        in and out: ``{name: (B, *axes, channels)}``.

    Raises:
        ValueError: If ``heads`` does not divide ``channels``, or an option is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> block = NFTransformerBlock(space, 8, 2)
        >>> block({spec.name: torch.zeros(3, *spec.view_shape, 8) for spec in space.parameters})["0.bias"].shape
        torch.Size([3, 4, 8])
    """

    def __init__(
        self,
        space: WeightSpace,
        channels: int,
        heads: int = 8,
        *,
        expansion: int = 4,
        sharing: AttentionSharing = "shared",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        if expansion < 1:
            raise ValueError(f"expansion is {expansion}, expected at least 1 hidden channel for each channel")
        self.attention = NFAttention(
            space, channels, heads, sharing=sharing, dropout=dropout, gain=_BRANCH, generator=generator
        )
        self.attention_norm = nn.LayerNorm(channels)
        self.mlp_norm = nn.LayerNorm(channels)
        self.widen = _linear(channels, expansion * channels, math.sqrt(2.0), generator)
        self.narrow = _linear(expansion * channels, channels, _BRANCH, generator)
        self.dropout = dropout

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map weight features of ``space``, by default the one given at construction."""
        check_input(space or self.attention.space, features, self.attention.channels, self.narrow.weight)
        normed = {name: self.attention_norm(tensor) for name, tensor in features.items()}
        attended = self.attention(normed, space)
        return {name: self._mlp(tensor + attended[name]) for name, tensor in features.items()}

    def _mlp(self, tensor: Tensor) -> Tensor:
        """The second half for one parameter."""
        added = self.narrow(F.gelu(self.widen(self.mlp_norm(tensor))))
        return tensor + F.dropout(added, self.dropout, self.training)


def _linear(rows: int, columns: int, gain: float, generator: torch.Generator | None) -> nn.Linear:
    """A linear map with normal weights that multiplies the variance by ``gain ** 2``, and zero bias."""
    layer = nn.Linear(rows, columns)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(columns, rows, generator=generator) * (gain / math.sqrt(rows)))
        layer.bias.zero_()
    return layer
