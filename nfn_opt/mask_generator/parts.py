"""What encoder and decoder of a mask generator read, and the frequencies they start from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nfn_opt.data.tickets.architecture import (
    Architecture,
    MlpArchitecture,
    example_images,
    make_module,
    prunable,
)
from nfn_opt.functionals import BodyConfig
from nfn_opt.mask_generator.config import MaskGeneratorConfig
from nfn_opt.weight_space import Features, WeightSpace

__all__ = ["BaseLogits", "Neurons", "WeightReader", "body_options", "space_of", "unit_scale"]

SMOOTHING = 1.0
"""Networks of the mean frequency that are added to those counted, so that no frequency is 0 or 1."""


def space_of(architecture: Architecture, config: MaskGeneratorConfig | None = None) -> WeightSpace:
    """The weight space in the symmetry of a body, by default that of hidden neurons."""
    symmetry = "hidden" if config is None or config.body == "hnp" else "all"
    return WeightSpace.from_module(
        make_module(architecture),
        example_images(architecture),
        symmetry=symmetry,  # type: ignore[arg-type]
    )


def body_options(config: MaskGeneratorConfig, in_channels: int) -> BodyConfig:
    """The options that encoder and decoder share."""
    return BodyConfig(
        in_channels=in_channels,
        hidden_channels=config.hidden_channels,
        hidden_layers=config.hidden_layers,
        fourier_frequencies=0,
        position_bands=0 if config.body == "hnp" else config.position_bands,
        mixing="pointwise" if config.body == "pointwise" else "linear",
    )


def unit_scale(values: Tensor) -> Tensor:
    """One tensor of each of B networks, shape (B, *shape), divided by its root mean square; zeros stay zero.

    Example:
        >>> unit_scale(torch.tensor([[3.0, -3.0], [0.0, 0.0]])).tolist()
        [[1.0, -1.0], [0.0, 0.0]]
    """
    scale = values.flatten(1).square().mean(1).sqrt().clamp_min(1e-8)
    return values / scale.view(-1, *(1,) * (values.ndim - 1))


class Neurons:
    """The hidden neurons of an architecture, and which weights are theirs.

    Args:
        space: The weight space, in the symmetry of hidden neurons.
    """

    def __init__(self, space: WeightSpace) -> None:
        self.space = space
        self.count = sum(space.groups.values())

    def pool(self, features: Mapping[str, Tensor]) -> Tensor:
        """Sum over the parameters of each neuron's mean: ``{name: (B, *axes, C)}`` to (B, count, C)."""
        found: dict[str, list[Tensor]] = {group: [] for group in self.space.groups}
        for spec in self.space.parameters:
            for place, axis in enumerate(spec.axes):
                if axis.permutable:
                    others = [1 + other for other in range(len(spec.axes)) if other != place]
                    value = features[spec.name]
                    found[axis.name].append(value.mean(others) if others else value)
        return torch.cat([torch.stack(values).sum(0) for values in found.values()], 1)

    def spread(self, values: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values (B, count, C) to each weight: of the neuron that it leads to, and of that it comes from.

        Returns:
            For each parameter shape (B, *axes, 2 * C), with the axes of the features `like`; zeros where there is none.
        """
        groups = self.space.groups
        parts = dict(zip(groups, values.split(list(groups.values()), 1), strict=True))
        spread = {}
        for spec in self.space.parameters:
            shape = (*like[spec.name].shape[:-1], values.shape[-1])
            ends = {"out": values.new_zeros(()), "in": values.new_zeros(())}
            for place, axis in enumerate(spec.axes):
                if axis.permutable:
                    sizes = [axis.size if other == place else 1 for other in range(len(spec.axes))]
                    ends[axis.role] = parts[axis.name].reshape(len(values), *sizes, -1)
            spread[spec.name] = torch.cat([end.expand(shape) for end in ends.values()], -1)
        return spread


class WeightReader(nn.Module):
    """Initial parameters to features: value and magnitude, in standard deviations of their tensor, and pixel places.

    Args:
        space: The weight space.
        architecture: What the networks are.
        bands: Bands of the encoding of a pixel's row and column, for MLPs; 0 leaves it out.
    """

    def __init__(self, space: WeightSpace, architecture: Architecture, bands: int) -> None:
        super().__init__()
        self.space = space
        mlp = isinstance(architecture, MlpArchitecture)
        pixels = pixel_encoding(architecture, bands) if isinstance(architecture, MlpArchitecture) else None
        self.channels = 2 + (4 * bands if mlp else 0)
        self.register_buffer("pixels", pixels if bands else None, persistent=False)

    def forward(self, params: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *shape)}`` to ``{name: (B, *axes, channels)}``."""
        values = {name: unit_scale(params[name]) for name in self.space.names}
        features = self.space.as_features(values, {name: value.abs() for name, value in values.items()})
        if self.pixels is None:
            return features
        first = self.space.names[0]
        return {
            name: torch.cat([value, self._places(value, name == first)], -1)
            for name, value in features.items()
        }

    def _places(self, value: Tensor, is_first: bool) -> Tensor:
        """The encoding beside the first layer's weights, zeros beside all others."""
        assert isinstance(self.pixels, Tensor)
        places = self.pixels.to(value.dtype) if is_first else value.new_zeros(self.pixels.shape[1])
        return places.expand(*value.shape[:-1], -1)


def pixel_encoding(architecture: MlpArchitecture, bands: int) -> Tensor:
    """Sines and cosines of row and column of each input, shape (inputs, 4 * bands); 1, 2, 3... half cycles a side."""
    place = torch.linspace(-1, 1, architecture.side)
    phase = math.pi / 2 * place[:, None] * torch.arange(1, bands + 1)
    waves = torch.cat([phase.sin(), phase.cos()], 1)
    rows, columns = (
        waves[:, None].expand(-1, architecture.side, -1),
        waves.expand(architecture.side, -1, -1),
    )
    return torch.cat([rows, columns], 2).flatten(0, 1).repeat(architecture.in_channels, 1)


class BaseLogits(nn.Module):
    """A learned logit for each weight that is the same for all hidden neurons: for each input, output, kernel entry.

    Args:
        architecture: What the networks are.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.space = space_of(architecture)
        self.names = tuple(prunable(architecture))
        self.logits = nn.ParameterList([torch.zeros(self._shape(name)) for name in self.names])

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(1 if axis.permutable else axis.size for axis in self.space[name].axes)

    def fit(self, masks: Mapping[str, Tensor]) -> None:
        """Start from the logarithms of the odds with which weights are kept in masks of shape (N, *shape)."""
        for name, logit in zip(self.names, self.logits, strict=True):
            kept = self.space[name].view(masks[name].float(), batch_dims=1)
            axes = [place + 1 for place, axis in enumerate(self.space[name].axes) if axis.permutable]
            kept = kept.mean([0, *axes], keepdim=True)[0]
            count = masks[name].numel() / kept.numel()
            share = (count * kept + SMOOTHING * kept.mean()) / (count + SMOOTHING)
            with torch.no_grad():
                logit.copy_(torch.logit(share.clamp(1e-6, 1 - 1e-6)))

    def forward(self) -> dict[str, Tensor]:
        """For each weight a tensor that broadcasts to its features' (B, *axes)."""
        return dict(zip(self.names, self.logits, strict=True))
