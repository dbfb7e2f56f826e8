r"""Guides: networks that look at what an INR shows and say, through its gradient, how its weights might follow.

For an INR :math:`f_W` and points :math:`x` of a grid, a guide makes of the picture :math:`f_W(x)` a change of the
picture :math:`u(x)`, and pulls it back to the weights by the INR's Jacobian,

.. math::
    g = \sum_x u(x)^\top \, \partial f_W(x) / \partial W.

This is what one back-propagation through the INR gives. It is a tensor for each parameter that is permuted as the
parameter is, so that a functional may take it as one more channel of its features. (Gradients of the INR at sampled
coordinates as features: arXiv:2507.01649, there one channel for each point.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from editors.conditioning import Modulation
from editors.siren import COORDINATES, SirenConfig, coordinates

__all__ = ["Guide", "GuideConfig", "Rendering", "pull_back", "render_for_gradient"]

KERNEL = 3
"""Sides of the convolutions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """Sizes of a guide.

    Attributes:
        channels: Channels of the convolutions; 0 stands for no guide, an editor that reads weights only.
        layers: Number of 3 x 3 convolutions, the last of which gives the change of the picture.
    """

    channels: int = 16
    layers: int = 3

    def __post_init__(self) -> None:
        if self.channels < 0 or self.layers < 1:
            raise ValueError(
                f"guide has {self.channels} channels and {self.layers} layers, expected 0 (no guide) or more and "
                "at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Rendering:
    """What SIRENs show at points, and what is needed for gradients.

    Attributes:
        inputs: What each layer, the linear one included, is given: (B, n_in, P) each.
        slopes: For each hidden layer the derivative of its output by ``w h + b``, (B, n, P) each.
        values: Values in [-1, 1], not clamped, (B, C, P).
    """

    inputs: list[Tensor]
    slopes: list[Tensor]
    values: Tensor


def render_for_gradient(params: Mapping[str, Tensor], coords: Tensor, config: SirenConfig) -> Rendering:
    """Evaluate a batch of SIRENs, differentiably, and keep what :func:`pull_back` needs.

    Args:
        params: ``{name: (B, *shape)}``.
        coords: (row, column) in [-1, 1], shape (P, 2).
        config: Architecture.
    """
    omega, hidden = config.omega_0, coords.t().expand(len(params["layers.0.bias"]), -1, -1)
    inputs, slopes = [hidden], []
    for layer in range(config.hidden_layers):
        weight, bias = (omega * params[f"layers.{layer}.{part}"] for part in ("weight", "bias"))
        phase = torch.baddbmm(bias.unsqueeze(-1), weight, hidden)
        hidden = phase.sin()
        inputs.append(hidden)
        slopes.append(omega * phase.cos())
    weight, bias = (params[f"layers.{config.hidden_layers}.{part}"] for part in ("weight", "bias"))
    return Rendering(inputs, slopes, torch.baddbmm(bias.unsqueeze(-1), weight, hidden))


def pull_back(params: Mapping[str, Tensor], rendering: Rendering, change: Tensor) -> dict[str, Tensor]:
    """Gradient by the parameters of the sum of all values times a change, differentiable in all three.

    Args:
        params: ``{name: (B, *shape)}``.
        rendering: What the SIRENs of these parameters show.
        change: A number for each value, (B, C, P).

    Returns:
        ``{name: (B, *shape)}``.

    Example:
        >>> from editors.siren import initial_parameters, siren_apply
        >>> config, grid = SirenConfig(hidden_width=4), coordinates(3, 3)
        >>> params = initial_parameters(config, 1, torch.Generator().manual_seed(0))
        >>> bias = params["layers.0.bias"].requires_grad_()
        >>> found = pull_back(params, render_for_gradient(params, grid, config), torch.ones(1, 1, 9))
        >>> (exact,) = torch.autograd.grad(siren_apply(params, grid, config).sum(), bias)
        >>> torch.allclose(found["layers.0.bias"], exact, rtol=1e-3)
        True
    """
    gradient, delta = {}, change
    for layer in reversed(range(len(rendering.inputs))):
        gradient[f"layers.{layer}.weight"] = torch.bmm(delta, rendering.inputs[layer].mT)
        gradient[f"layers.{layer}.bias"] = delta.sum(-1)
        if layer:
            delta = torch.bmm(params[f"layers.{layer}.weight"].mT, delta) * rendering.slopes[layer - 1]
    return gradient


class Guide(nn.Module):
    """A small convolutional network from what an INR shows to how that might change.

    It is given the picture as it is, the picture before any change, and the coordinates. Behind each convolution
    but the last every pixel also hears the mean of all (not at initialisation). One that is told which edit is meant
    has the channels that each convolution gives scaled and shifted by that.

    Args:
        config: Sizes.
        siren: Architecture of the INRs.
        image_size: (height, width) of the grid.
        told: Whether it is told which edit is meant.
        generator: Source of the initial weights.

    Shapes:
        in: pictures now and before, (B, C, height * width) each, values in [-1, 1], and, if it is told, embeddings
        (B, EMBEDDING) of :mod:`editors.conditioning`; out: as the pictures.
    """

    coords: Tensor

    def __init__(
        self,
        config: GuideConfig,
        siren: SirenConfig,
        image_size: tuple[int, int],
        *,
        told: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("coords", coordinates(*image_size), persistent=False)
        widths = [
            2 * siren.out_channels + COORDINATES,
            *[config.channels] * (config.layers - 1),
            siren.out_channels,
        ]
        self.convolutions = nn.ModuleList(
            _convolution(into, out, generator) for into, out in itertools.pairwise(widths)
        )
        self.contexts = nn.ModuleList(_silent(width) for width in widths[1:-1])
        self.modulations = nn.ModuleList(
            Modulation(width, generator=generator) for width in (widths[1:] if told else [])
        )

    def forward(self, now: Tensor, before: Tensor, told: Tensor | None = None) -> Tensor:
        """See the class."""
        places = self.coords.t().expand(len(now), -1, -1)
        hidden = torch.cat([now, before, places], 1).unflatten(2, self.image_size)
        for layer, context in enumerate(self.contexts):
            hidden = torch.relu(self._convolve(layer, hidden, told))
            hidden = hidden + context(hidden.mean((2, 3)))[..., None, None]
        return self._convolve(len(self.contexts), hidden, told).flatten(2)

    def _convolve(self, layer: int, hidden: Tensor, told: Tensor | None) -> Tensor:
        hidden = self.convolutions[layer](hidden)
        return hidden if told is None else self.modulations[layer](hidden, told)


def _convolution(into: int, out: int, generator: torch.Generator | None) -> nn.Conv2d:
    """A convolution that keeps the size, with PyTorch's initial distribution from a generator of our own."""
    convolution = nn.utils.skip_init(
        nn.Conv2d, into, out, KERNEL, padding=KERNEL // 2, padding_mode="replicate"
    )
    bound = 1 / math.sqrt(into * KERNEL**2)
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return convolution


def _silent(width: int) -> nn.Linear:
    """A linear layer that gives zeros until it is trained."""
    linear = nn.utils.skip_init(nn.Linear, width, width)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear
