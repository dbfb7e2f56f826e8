"""How an editor of several edits is told which one is meant: an embedding of numbers, and where it enters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Features

__all__ = ["EMBEDDING", "ConditionEmbedding", "Modulation", "with_constants"]

EMBEDDING = 16
"""Channels of the embedding."""

INITIAL = 0.1
"""Initial standard deviation of the weights of a modulation."""


class ConditionEmbedding(nn.Module):
    """Numbers that say which edit is meant, as :meth:`~editors.edit_family.EditFamily.condition` gives them, embedded.

    Args:
        width: How many numbers.
        generator: Source of the initial weights, so large that different edits differ from the start.

    Shapes:
        in: (B, width); out: (B, EMBEDDING), in (-1, 1).
    """

    def __init__(self, width: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.linear = _normal(width, EMBEDDING, 1.0, generator)

    def forward(self, condition: Tensor) -> Tensor:
        """See the class."""
        return torch.tanh(self.linear(condition))


class Modulation(nn.Module):
    """Scale and shift the channels of pictures, as an embedding says: :math:`(1 + a) x + b`.

    Args:
        channels: Channels of the pictures.
        generator: Source of the initial weights.

    Shapes:
        in: pictures (B, channels, H, W) and embeddings (B, EMBEDDING); out: as the pictures.
    """

    def __init__(self, channels: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.linear = _normal(EMBEDDING, 2 * channels, INITIAL, generator)

    def forward(self, pictures: Tensor, told: Tensor) -> Tensor:
        """See the class."""
        scale, shift = self.linear(told)[..., None, None].chunk(2, 1)
        return torch.addcmul(pictures + shift, pictures, scale)


def with_constants(features: Features, told: Tensor) -> Features:
    """Weight features with an embedding as further channels, the same for all entries: no permutation moves it.

    Args:
        features: ``{name: (B, *axes, C)}``.
        told: (B, D).

    Returns:
        ``{name: (B, *axes, C + D)}``.

    Example:
        >>> with_constants({"w": torch.zeros(2, 3, 5, 1)}, torch.ones(2, 4))["w"].shape
        torch.Size([2, 3, 5, 5])
    """
    extended = {}
    for name, value in features.items():
        axes = value.shape[1:-1]
        constant = told.view(len(told), *[1] * len(axes), -1).expand(-1, *axes, -1)
        extended[name] = torch.cat([value, constant], -1)
    return extended


def _normal(into: int, out: int, std: float, generator: torch.Generator | None) -> nn.Linear:
    """A linear layer with normal weights, from a generator of our own, and no shift."""
    linear = nn.utils.skip_init(nn.Linear, into, out)
    nn.init.normal_(linear.weight, std=std, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear
