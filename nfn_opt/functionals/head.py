"""The plain network behind an invariant vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn


def check_dropout(name: str, p: float) -> None:
    """Refuse an option that is no probability of being dropped."""
    if not 0 <= p < 1:
        raise ValueError(f"{name} is {p}, expected at least 0 and less than 1; it is a probability")


def mlp(sizes: Sequence[int], dropout: float, generator: torch.Generator | None) -> nn.Sequential:
    """Linear layers with ReLU and dropout between them.

    Args:
        sizes: Numbers of features: in, hidden ones, out.
        dropout: Probability that a hidden neuron is dropped in training, by torch's global generator.
        generator: Source of the initial weights (normal, He et al.); biases start at zero.

    Example:
        >>> mlp([3, 8, 2], 0.1, None)
        Sequential(
          (0): Linear(in_features=3, out_features=8, bias=True)
          (1): ReLU()
          (2): Dropout(p=0.1, inplace=False)
          (3): Linear(in_features=8, out_features=2, bias=True)
        )
    """
    *hidden, last = pairwise(sizes)
    layers: list[nn.Module] = []
    for n_in, n_out in hidden:
        layers += [linear(n_in, n_out, "relu", generator), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, linear(*last, "linear", generator))


def linear(
    n_in: int, n_out: int, then: Literal["relu", "linear"], generator: torch.Generator | None
) -> nn.Linear:
    """A linear layer with normal weights of He et al. for what comes after it, and zero bias."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out)
    nn.init.kaiming_normal_(layer.weight, nonlinearity=then, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
