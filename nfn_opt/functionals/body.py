"""What functionals have in common: encodings, then hidden NF-Layers with norms, activations and residual blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from nfn_opt.layers import (
    ChannelLinear,
    ChannelNorm,
    GaussianFourierFeatures,
    NFLinear,
    NFTransformerBlock,
    Pointwise,
    PositionEncoding,
    ResidualBlock,
    Sharing,
)
from nfn_opt.weight_space import WeightSpace

Mixing = Literal["linear", "attention", "pointwise"]
"""How the entries of weight features hear each other."""

MEAN_SQUARE_BEHIND_RELU = 0.5
"""Of a standard normal variable; that of a sine or cosine of random phase is the same."""


@dataclass(frozen=True, kw_only=True)
class BodyConfig:
    """Shape of the hidden part of a functional.

    Attributes:
        in_channels: Channels that come in.
        hidden_channels: Channels of every hidden NF-Layer.
        hidden_layers: Number of hidden NF-Layers.
        sharing: Weight sharing of the NF-Layers. ``"by_relation"``: the functional has no weights of a particular
            space at all, and runs on any.
        fourier_frequencies: Random Fourier frequencies of the values; 0 leaves the encoding out.
        fourier_scale: Standard deviation of these frequencies, in cycles per unit.
        position_bands: Bands of the position encoding; 0 leaves it out.
        norm: Whether a channel norm stands before every activation.
        residual: Whether all hidden layers but the first are residual blocks, each with its activation first.
        mixing: ``"linear"``: NF-Layers (arXiv:2302.14040). ``"attention"``: all hidden layers but the first are
            NF-Transformer blocks (arXiv:2305.13546), which have norms and residuals of their own. ``"pointwise"``: no
            entry hears another, a baseline.
        heads: Heads of the attention.
    """

    in_channels: int = 1
    hidden_channels: int = 64
    hidden_layers: int = 3
    sharing: Sharing = "per_parameter"
    fourier_frequencies: int = 64
    fourier_scale: float = 3.0
    position_bands: int = 6
    norm: bool = False
    residual: bool = False
    mixing: Mixing = "linear"
    heads: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, 1, "in_channels", "hidden_channels", "hidden_layers")
        check_at_least(self, 1, "heads")
        check_at_least(self, 0, "fourier_frequencies", "position_bands")
        if self.mixing not in get_args(Mixing):
            raise ValueError(f"mixing is {self.mixing!r}, expected one of {', '.join(get_args(Mixing))}")
        if self.mixing == "attention" and self.hidden_channels % self.heads:
            raise ValueError(
                f"hidden_channels is {self.hidden_channels}, expected a multiple of heads, {self.heads}, with attention"
            )
        if self.mixing == "attention" and (self.norm or self.residual):
            raise ValueError(
                f"norm is {self.norm} and residual {self.residual}, expected neither with attention: its blocks "
                "have their own"
            )
        if self.sharing not in ("per_parameter", "by_relation"):
            raise ValueError(f"sharing is {self.sharing!r}, expected 'per_parameter' or 'by_relation'")


def check_at_least(config: object, minimum: int, *names: str) -> None:
    """Refuse options below a minimum."""
    for name in names:
        if getattr(config, name) < minimum:
            none = " (none)" if minimum == 0 else ""
            raise ValueError(f"{name} is {getattr(config, name)}, expected {minimum}{none} or more")


def body(
    space: WeightSpace, config: BodyConfig, generator: torch.Generator | None
) -> tuple[list[nn.Module], int]:
    """The layers before a functional's last, and how many channels they give."""
    layers, channels = _encodings(space, config, generator)
    hidden = config.hidden_channels
    moment = MEAN_SQUARE_BEHIND_RELU if config.fourier_frequencies else 1.0
    layers.append(scaled_linear(space, channels, hidden, config, generator, moment))
    if config.mixing == "attention":
        sharing = "shared" if config.sharing == "by_relation" else config.sharing
        count = config.hidden_layers - 1
        blocks = [
            NFTransformerBlock(space, hidden, config.heads, sharing=sharing, generator=generator)
            for _ in range(count)
        ]
        return [*layers, *blocks, Pointwise(nn.LayerNorm(hidden)), *_activation(config)], hidden
    for _ in range(config.hidden_layers - 1):
        linear = scaled_linear(space, hidden, hidden, config, generator)
        before = _activation(config)
        layers += [ResidualBlock(*before, linear)] if config.residual else [*before, linear]
    return [*layers, *_activation(config)], hidden


def _activation(config: BodyConfig) -> list[nn.Module]:
    norm: list[nn.Module] = [ChannelNorm(config.hidden_channels)] if config.norm else []
    return [*norm, Pointwise(nn.ReLU())]


def _encodings(
    space: WeightSpace, config: BodyConfig, generator: torch.Generator | None
) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    channels = config.in_channels
    if config.fourier_frequencies:
        fourier = GaussianFourierFeatures(
            channels, config.fourier_frequencies, config.fourier_scale, generator=generator
        )
        layers.append(fourier)
        channels = fourier.out_channels
    if config.position_bands:
        encoding = PositionEncoding(space, config.position_bands)
        layers.append(encoding)
        channels += encoding.extra_channels
    return layers, channels


def scaled_linear(
    space: WeightSpace,
    in_channels: int,
    out_channels: int,
    config: BodyConfig,
    generator: torch.Generator | None,
    mean_square: float = MEAN_SQUARE_BEHIND_RELU,
) -> nn.Module:
    """A layer whose initial weights make up for inputs of that mean square: an NF-Layer, unless mixing is pointwise."""
    kind = ChannelLinear if config.mixing == "pointwise" else NFLinear
    linear = kind(space, in_channels, out_channels, sharing=config.sharing, generator=generator)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.mul_(1 / math.sqrt(mean_square))
    return linear


def check_space(own: WeightSpace, given: WeightSpace, sharing: Sharing) -> None:
    """Refuse another weight space where there are weights for each parameter of one space.

    Raises:
        ValueError: If the space differs; the message says how.
    """
    if sharing == "by_relation" or given is own:
        return
    comparison = own.compare(given)
    if comparison.verdict != "equal":
        raise ValueError(
            "the functional has weights for each parameter of its own weight space, and the one given is "
            f"{comparison.verdict}: {comparison.reasons[0]}. Expected an equal one; make the functional with "
            "sharing='by_relation' to run it on other spaces"
        )
