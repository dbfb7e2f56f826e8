"""The networks of the task families, on the meta device: shapes without memory or random numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from nfn_opt.meta.classification import Activation
from nfn_opt.meta.classification import _activation as activation_module
from nfn_opt.meta.families.modules import Residual, Sine

Norm = Literal["none", "layer", "group"]


def normed_mlp(
    widths: Sequence[int], activation: Activation = "relu", norm: Norm = "none", *, bias: bool = True
) -> nn.Sequential:
    """A fully connected network, with layer normalisation before each activation if asked.

    Args:
        widths: Of all layers, inputs and outputs included.
        activation: Of the hidden layers.
        norm: ``"none"`` or ``"layer"``.
        bias: Whether the linear layers have one.

    Raises:
        ValueError: If there are fewer than two widths, or the normalisation is another.

    Example:
        >>> [type(layer).__name__ for layer in normed_mlp((8, 4, 2), "tanh", "layer")]
        ['Linear', 'LayerNorm', 'Tanh', 'Linear']
    """
    if len(widths) < 2 or norm not in ("none", "layer"):
        raise ValueError(
            f"got widths {tuple(widths)} and norm {norm!r}, expected two widths or more and 'none' or 'layer'"
        )
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for n_in, n_out in itertools.pairwise(widths):
            layers.append(nn.Linear(n_in, n_out, bias=bias))
            layers += [nn.LayerNorm(n_out)] * (norm == "layer") + [activation_module(activation)]
    return nn.Sequential(*layers[: -2 if norm == "layer" else -1])


def conv_net(
    channels: Sequence[int], classes: int, activation: Activation = "relu", norm: Norm = "none"
) -> nn.Sequential:
    """3x3 convolutions of stride 2, a mean over positions and a linear layer.

    Args:
        channels: Of all convolutions, those of the image included.
        classes: Number of outputs.
        activation: After each convolution.
        norm: Group normalisation (two groups), layer normalisation (one) or none after each convolution.
    """
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for n_in, n_out in itertools.pairwise(channels):
            layers.append(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1))
            layers += [*_norm(norm, n_out), activation_module(activation)]
        head = nn.Linear(channels[-1], classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def residual_net(
    channels: Sequence[int], classes: int, activation: Activation = "relu", norm: Norm = "group"
) -> nn.Sequential:
    """A stem convolution, one residual block a width (the first keeps the size, others halve it), linear head.

    A block is normalisation, activation, convolution, twice, beside the identity or a 1x1 convolution (form of
    arXiv:1603.05027).

    Args:
        channels: Of the image, the stem and the blocks.
        classes: Number of outputs.
        activation: Activation.
        norm: Group normalisation (two groups), layer normalisation (one), or none.
    """
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Conv2d(channels[0], channels[1], 3, padding=1)]
        for n_in, n_out in itertools.pairwise(channels[1:]):
            stride = 1 if n_in == n_out else 2
            body = nn.Sequential(
                *_norm(norm, n_in),
                activation_module(activation),
                nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1),
                *_norm(norm, n_out),
                activation_module(activation),
                nn.Conv2d(n_out, n_out, 3, padding=1),
            )
            layers.append(Residual(body, None if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride=stride)))
        layers += [*_norm(norm, channels[-1]), activation_module(activation)]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes)]
    return nn.Sequential(*layers)


def conv_autoencoder(channels: Sequence[int], activation: Activation = "relu") -> nn.Sequential:
    """Convolutions of stride 2 down to a code, then upsampling and convolutions back to the image.

    Args:
        channels: Of the image and of each level; a level halves the height and the width.
        activation: After every convolution but the last.
    """
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for n_in, n_out in itertools.pairwise(channels):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), activation_module(activation)]
        for n_in, n_out in itertools.pairwise(reversed(channels)):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(n_in, n_out, 3, padding=1)]
            layers.append(activation_module(activation))
    return nn.Sequential(*layers[:-1])


def siren(width: int, hidden_layers: int, channels: int, omega: float) -> nn.Sequential:
    """The network of arXiv:2006.09661: linear layers with ``sin(omega x)`` between them.

    Example:
        >>> [tuple(p.shape) for p in siren(32, 2, 1, 20.0).parameters()][::2]
        [(32, 2), (32, 32), (1, 32)]
    """
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for n_in, n_out in itertools.pairwise((2, *[width] * hidden_layers)):
            layers += [nn.Linear(n_in, n_out), Sine(omega)]
        layers.append(nn.Linear(width, channels))
    return nn.Sequential(*layers)


def _norm(norm: Norm, channels: int) -> list[nn.Module]:
    if norm == "none":
        return []
    return [nn.GroupNorm(2 if norm == "group" and channels % 2 == 0 else 1, channels)]
