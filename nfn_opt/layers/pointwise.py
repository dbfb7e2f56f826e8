"""Layers that treat every entry of the weight features alike, and the learned scale of each parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Features, WeightSpace
from nfn_opt.weight_space.checks import check_features


class Pointwise(nn.Module):
    """Apply a module to the features of every parameter.

    Args:
        module: Any map from ``(..., C_in)`` to ``(..., C_out)`` that treats the leading axes alike: an activation,
            ``nn.Linear``, ``nn.LayerNorm(channels)``, ``nn.Dropout``, or a ``Sequential`` of these.

    Example:
        >>> layer = Pointwise(nn.Sequential(nn.Linear(1, 4), nn.ReLU()))
        >>> layer({"w": torch.zeros(2, 3, 5, 1)})["w"].shape
        torch.Size([2, 3, 5, 4])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, C_in)}`` to ``{name: (B, *axes, C_out)}``."""
        return {name: self.module(tensor) for name, tensor in features.items()}


class ChannelNorm(Pointwise):
    """Layer norm over the channels of every entry, with a learned scale and shift for each channel.

    Args:
        channels: Number of channels.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(nn.LayerNorm(channels, eps=eps))


class LearnedScale(nn.Module):
    """Multiply the features of every parameter by a learned number of its own.

    Args:
        space: The weight space.
        initial: Value at initialisation; small (0.01) where the features are added to weights as a change.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 2)})
        >>> LearnedScale(space, 0.5)({"w": torch.ones(1, 2, 2, 1)})["w"].sum().item()
        2.0
    """

    def __init__(self, space: WeightSpace, initial: float = 0.01) -> None:
        super().__init__()
        self.space = space
        self.scale = nn.Parameter(torch.full((len(space.names),), initial))

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, C)}`` to the same shapes."""
        check_features(self.space, features)
        return {name: features[name] * self.scale[i] for i, name in enumerate(self.space.names)}

    def extra_repr(self) -> str:
        """Number of parameters of the space."""
        return f"{len(self.space.names)} parameters"
