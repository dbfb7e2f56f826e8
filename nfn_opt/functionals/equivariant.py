"""Equivariant functionals: weight features in, weight features out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfn_opt.layers import (
    ChannelNorm,
    GaussianFourierFeatures,
    LearnedScale,
    NFLinear,
    Pointwise,
    PositionEncoding,
    Sharing,
)
from nfn_opt.weight_space import Features, WeightSpace


@dataclass(frozen=True, kw_only=True)
class EquivariantConfig:
    """Shape of an :class:`EquivariantFunctional`.

    Attributes:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        hidden_channels: Channels of every hidden NF-Layer.
        hidden_layers: Number of hidden NF-Layers.
        sharing: Weight sharing of the NF-Layers.
        fourier_frequencies: Random Fourier frequencies of the values; 0 leaves the encoding out.
        fourier_scale: Standard deviation of these frequencies, in cycles per unit.
        position_bands: Bands of the position encoding; 0 leaves it out.
        norm: Whether a channel norm stands before every activation.
        out_scale: Initial size of the learned scale of each parameter's output.
    """

    in_channels: int = 1
    out_channels: int = 1
    hidden_channels: int = 64
    hidden_layers: int = 3
    sharing: Sharing = "per_parameter"
    fourier_frequencies: int = 64
    fourier_scale: float = 3.0
    position_bands: int = 6
    norm: bool = False
    out_scale: float = 0.01

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "hidden_channels", "hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("fourier_frequencies", "position_bands"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 (none) or more")


class EquivariantFunctional(nn.Module):
    """Encodings, hidden NF-Layers with ReLU, an NF-Layer to the output channels, a learned scale a parameter.

    The editor network of arXiv:2302.14040 (App. C.2) for any weight space.

    Args:
        space: The weight space.
        config: Sizes and options.
        generator: Source of the initial weights.

    Shapes:
        in: ``{name: (B, *axes, in_channels)}``; out: ``{name: (B, *axes, out_channels)}``.
    """

    def __init__(
        self, space: WeightSpace, config: EquivariantConfig, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.space, self.config = space, config
        layers: list[nn.Module] = []
        channels = config.in_channels
        if config.fourier_frequencies:
            fourier = GaussianFourierFeatures(
                channels, config.fourier_frequencies, config.fourier_scale, generator=generator
            )
            layers.append(fourier)
            channels = fourier.out_channels
        if config.position_bands:
            layers.append(PositionEncoding(space, config.position_bands))
            channels += 2 * config.position_bands + 1
        for _ in range(config.hidden_layers):
            layers.append(
                NFLinear(space, channels, config.hidden_channels, sharing=config.sharing, generator=generator)
            )
            channels = config.hidden_channels
            layers += [ChannelNorm(channels)] if config.norm else []
            layers.append(Pointwise(nn.ReLU()))
        layers.append(
            NFLinear(space, channels, config.out_channels, sharing=config.sharing, generator=generator)
        )
        layers.append(LearnedScale(space, config.out_scale))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, in_channels)}`` to ``{name: (B, *axes, out_channels)}``."""
        return self.layers(features)
