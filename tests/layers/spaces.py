"""Small networks and their weight spaces, used across the tests of the layers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from nfn_opt.testing import NetworkKind, random_network
from nfn_opt.weight_space import Symmetry, WeightSpace

SYMMETRIES: tuple[Symmetry, ...] = ("all", "hidden")
KINDS: tuple[NetworkKind, ...] = ("mlp", "residual", "conv1d", "conv2d")


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def cnn(*channels: int, kernel: int = 3, pooled: bool = True) -> nn.Sequential:
    """Convolutions with ReLU between them, a global pooling or a flatten of 2 x 2 pixels, and a linear layer."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(channels[:-1]):
        layers += [nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1 if pooled else 2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels[-2] * (1 if pooled else 4), channels[-1]))


class Residual(nn.Module):
    """A hidden layer whose inputs are added to its outputs, so that one group acts on its weight twice."""

    def __init__(self, n_in: int, width: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, width, bias=bias)
        self.square = nn.Linear(width, width, bias=bias)
        self.last = nn.Linear(width, n_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        x = self.first(x).tanh()
        out: Tensor = self.last(x + self.square(x).tanh())
        return out


def space_of(model: nn.Module, *shape: int, symmetry: Symmetry = "hidden") -> WeightSpace:
    """The weight space of a model for inputs of a shape without the batch."""
    return WeightSpace.from_module(model, torch.zeros(2, *shape), symmetry=symmetry)


def drawn_space(seed: int, kind: NetworkKind, symmetry: Symmetry) -> WeightSpace:
    """The weight space of a random network of a kind."""
    model, inputs = random_network(torch.Generator().manual_seed(seed), kind)
    return WeightSpace.from_module(model, inputs, symmetry=symmetry)
