"""Transformers on arrays: what classifies networks once each is a fixed grid of latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.functionals.body import check_at_least
from nfn_opt.functionals.head import check_dropout, linear

BRANCH = 0.25
"""Initial size of what attention and MLP add, beside a layer of unit gain."""


class ArrayBlock(nn.Module):
    r"""Attention between the places of an array, then an MLP, each behind a layer norm and added to its input.

    The pre-norm block of arXiv:2002.04745 with GELU.

    Args:
        width: Channels in and out.
        heads: Number of heads; divides the width.
        expansion: Hidden channels of the MLP for each channel.
        dropout: Probability that a channel of what is added is dropped in training, by torch's global generator.
        generator: Source of the initial weights.

    Shapes:
        in and out: ``(B, places, width)``.

    Raises:
        ValueError: If ``heads`` does not divide ``width``, or an option is out of range.
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        *,
        expansion: int = 4,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_dropout("dropout", dropout)
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"width is {width} and heads {heads}, expected heads to divide the width")
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = linear(width, 3 * width, "linear", generator)
        self.out = linear(width, width, "linear", generator)
        self.widen = linear(width, expansion * width, "relu", generator)
        self.narrow = linear(expansion * width, width, "linear", generator)
        with torch.no_grad():
            self.out.weight.mul_(BRANCH)
            self.narrow.weight.mul_(BRANCH)

    def forward(self, array: Tensor) -> Tensor:
        """Map an array to one of the same shape."""
        packed = self.queries_keys_values(self.attention_norm(array))
        query, key, value = packed.unflatten(-1, (3, self.heads, -1)).movedim(2, 0).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        array = array + self.dropout(self.out(mixed))
        return array + self.dropout(self.narrow(F.gelu(self.widen(self.mlp_norm(array)))))


@dataclass(frozen=True, kw_only=True)
class ArrayClassifierConfig:
    """Shape of an :class:`ArrayClassifier`; the paper's (arXiv:2305.13546) has width 512 and 12 layers.

    Attributes:
        places: Latents of an array.
        latent_channels: Channels of each.
        classes: Number of classes.
        width: Channels of the Transformer.
        layers: Number of blocks.
        heads: Heads of the attention.
        dropout: Probability that a channel is dropped in training.
        input_dropout: The same for the channels of the array itself.
    """

    places: int = 16
    latent_channels: int = 64
    classes: int = 10
    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    input_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "places", "latent_channels", "width", "layers", "heads")
        check_at_least(self, 2, "classes")
        check_dropout("dropout", self.dropout)
        check_dropout("input_dropout", self.input_dropout)


class ArrayClassifier(nn.Module):
    """A Transformer on the normed latents of an array, the mean over its places, a linear layer to the classes.

    Args:
        config: Sizes.
        generator: Source of the initial weights.

    Shapes:
        in: ``(B, places, latent_channels)``; out: logits ``(B, classes)``.

    Example:
        >>> classifier = ArrayClassifier(ArrayClassifierConfig(places=4, latent_channels=8, width=16))
        >>> classifier(torch.zeros(3, 4, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self, config: ArrayClassifierConfig | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config = config or ArrayClassifierConfig()
        self.input_norm, self.input_dropout = (
            nn.LayerNorm(config.latent_channels),
            nn.Dropout(config.input_dropout),
        )
        self.embed = linear(config.latent_channels, config.width, "linear", generator)
        self.positions = nn.Parameter(torch.randn(config.places, config.width, generator=generator) / 2)
        self.blocks = nn.Sequential(
            *(
                ArrayBlock(config.width, config.heads, dropout=config.dropout, generator=generator)
                for _ in range(config.layers)
            )
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = linear(config.width, config.classes, "linear", generator)

    def forward(self, array: Tensor) -> Tensor:
        """Logits of the classes.

        Raises:
            ValueError: If the array has another shape.
        """
        expected = (self.config.places, self.config.latent_channels)
        if array.dim() != 3 or array.shape[1:] != expected:
            raise ValueError(
                f"array has shape {tuple(array.shape)}, expected (B, {expected[0]}, {expected[1]}): the latents that "
                "the classifier was made for"
            )
        hidden = self.blocks(self.embed(self.input_dropout(self.input_norm(array))) + self.positions)
        return self.head(self.norm(hidden).mean(1))
