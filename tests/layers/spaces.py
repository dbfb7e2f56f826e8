"""Small networks and their weight spaces, used across the tests of the layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from nfn_opt.testing import NetworkKind, random_network
from nfn_opt.weight_space import Axis, Symmetry, TensorSpec, WeightSpace
from nfn_opt.weight_space.spec import Role

SYMMETRIES: tuple[Symmetry, ...] = ("all", "hidden")
KINDS: tuple[NetworkKind, ...] = get_args(NetworkKind)


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


def hand_made(tensors: Sequence[Sequence[str]], **sizes: int) -> WeightSpace:
    """A space of tensors given by the groups of their axes: ``"."`` is a fixed axis of 2, ``"a+b"`` two groups in one.

    The last axis of a tensor with several counts as its input, all others as outputs.
    """
    specs = []
    for i, groups in enumerate(tensors):
        axes = []
        for j, group in enumerate(groups):
            role: Role = "in" if j and j == len(groups) - 1 else "out"
            if group == ".":
                axes.append(Axis(f"fixed {i}.{j}", 2, False, "space"))
            elif "+" in group:
                axes.append(Axis.concatenated([(Axis(g, sizes[g]),) for g in group.split("+")], role))
            else:
                axes.append(Axis(group, sizes[group], role=role))
        specs.append(TensorSpec(f"t{i}", tuple(axis.size for axis in axes), tuple(axes)))
    return WeightSpace(tuple(specs))
