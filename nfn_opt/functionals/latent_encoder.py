"""Encoders of networks to latent arrays: a body, cross-attention to latents, blocks on the array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nfn_opt.functionals.array_transformer import ArrayBlock
from nfn_opt.functionals.body import BodyConfig, body, check_at_least
from nfn_opt.functionals.head import linear
from nfn_opt.functionals.neuron_messages import NeuronMessages, NeuronMessagesConfig
from nfn_opt.layers import Chain, LatentPool, Pointwise
from nfn_opt.weight_space import WeightSpace


@dataclass(frozen=True, kw_only=True)
class LatentEncoderConfig:
    """Shape of a :class:`LatentEncoder`.

    The encoder of arXiv:2305.13546 has six NF-Transformer blocks of 256 channels, 16 latents of as many channels, one
    head, and no blocks behind: ``body=BodyConfig(mixing="attention", hidden_layers=7, hidden_channels=256)``.

    Attributes:
        body: What reads the weights: NF-Layers or NF-Transformer blocks, with a feature for each weight, or messages
            between neurons, with one for each neuron.
        read_channels: Channels to which what the body gives is widened before latents attend to it, entry by entry;
            not at all if not given. Latents that attend alike to all entries see no more than so many numbers.
        latents: Number of latents.
        latent_channels: Channels of each.
        heads: Heads of the cross-attention, and of the blocks on the array.
        blocks: Transformer blocks on the array behind the cross-attention.
    """

    body: BodyConfig | NeuronMessagesConfig = field(default_factory=NeuronMessagesConfig)
    read_channels: int | None = None
    latents: int = 16
    latent_channels: int = 64
    heads: int = 4
    blocks: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "latents", "latent_channels", "heads")
        check_at_least(self, 0, "blocks")
        if self.read_channels is not None:
            check_at_least(self, 1, "read_channels")
        if type(self.body) not in (BodyConfig, NeuronMessagesConfig):
            raise TypeError(
                f"body is a {type(self.body).__name__}, expected a BodyConfig or a NeuronMessagesConfig"
            )
        if self.latent_channels % self.heads:
            raise ValueError(
                f"latent_channels is {self.latent_channels}, expected a multiple of heads, {self.heads}"
            )


class LatentEncoder(nn.Module):
    """Encode a network as an array of latents, the same for all permutations of its hidden neurons.

    The encoder of Inr2Array (Sec. 3.5 of arXiv:2305.13546), with a choice of bodies.

    Args:
        space: The weight space.
        config: Sizes and options.
        generator: Source of the initial weights.

    Shapes:
        in: ``{name: (B, *axes, 1)}``; out: ``(B, latents, latent_channels)``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> encoder = LatentEncoder(space, LatentEncoderConfig(latents=4, latent_channels=8))
        >>> encoder(space.features([model, model])).shape
        torch.Size([2, 4, 8])
    """

    def __init__(
        self,
        space: WeightSpace,
        config: LatentEncoderConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space, self.config = space, config or LatentEncoderConfig()
        config = self.config
        if isinstance(config.body, NeuronMessagesConfig):
            self.body: nn.Module = NeuronMessages(space, config.body, generator=generator)
            read, channels = self.body.neurons, config.body.channels
        else:
            layers, channels = body(space, config.body, generator)
            self.body, read = Chain(*layers), space
        self.widen: nn.Module = nn.Identity()
        if config.read_channels is not None:
            widened = linear(channels, config.read_channels, "relu", generator)
            self.widen, channels = Pointwise(nn.Sequential(widened, nn.GELU())), config.read_channels
        self.pool = LatentPool(
            read, channels, config.latents, config.latent_channels, config.heads, generator=generator
        )
        self.blocks = nn.Sequential(
            *(
                ArrayBlock(config.latent_channels, config.heads, generator=generator)
                for _ in range(config.blocks)
            )
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map weight features of one channel to latents."""
        return self.blocks(self.pool(self.widen(self.body(features))))
