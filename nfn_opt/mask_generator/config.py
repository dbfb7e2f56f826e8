"""Options of a mask generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Body", "Latent", "MaskGeneratorConfig"]

Body = Literal["np", "hnp", "pointwise"]
"""How the entries hear each other: NF-Layers with inputs and outputs permuted too, or hidden neurons alone, or not."""

Latent = Literal["neuron", "network", "weight", "none"]
"""What has a latent vector: each hidden neuron, each network, each weight, or nothing (no variational model then)."""


@dataclass(frozen=True, kw_only=True)
class MaskGeneratorConfig:
    """Shape of a `MaskGenerator`.

    Attributes:
        body: Kind of the layers. "np" and "pointwise" are told the positions of inputs, outputs and kernel
            entries by encodings; "hnp" has weights for each, whose number grows with the square of the inputs, so
            that ``hidden_channels`` must be small for images.
        hidden_channels: Channels of the hidden layers, of encoder and decoder.
        hidden_layers: Hidden layers of the decoder; the encoder has one.
        latent: What has a latent vector. Weights read those of the neurons that they connect: masks of pruning keep
            many weights of some neurons and none of others, which no latent vector of the whole network can say.
        latent_channels: Its length.
        kl_weight: Factor of the Kullback-Leibler divergence in the loss; 1 is the evidence lower bound.
        position_bands: Bands of the position encoding; 0 leaves it out. Not used by "hnp".
        pixel_bands: Bands of an encoding of row and column of the pixels that an MLP reads. Not used by "hnp".
    """

    body: Body = "np"
    hidden_channels: int = 16
    hidden_layers: int = 2
    latent: Latent = "neuron"
    latent_channels: int = 4
    kl_weight: float = 1.0
    position_bands: int = 3
    pixel_bands: int = 3

    def __post_init__(self) -> None:
        if self.body not in get_args(Body):
            raise ValueError(f"body is {self.body!r}, expected one of {', '.join(get_args(Body))}")
        if self.latent not in get_args(Latent):
            raise ValueError(f"latent is {self.latent!r}, expected one of {', '.join(get_args(Latent))}")
        for name in ("hidden_channels", "hidden_layers", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("kl_weight", "position_bands", "pixel_bands"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
