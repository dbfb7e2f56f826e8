"""Small networks applied to every weight, channels first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nfn_opt.optim.first_layer import affine, initial_weight


class PointwiseMLP(nn.Module):
    """Alternate ReLU and linear map, ReLU first: the layers of an MLP after its first; none for a single width.

    Args:
        widths: Channels that come in, of each hidden layer, and that go out.
        output_scale: Scale of the last layer's initial weights; the others have scale one.
        generator: Source of the initial weights.

    Example:
        >>> mlp = PointwiseMLP((4, 4, 1), 1.0, torch.Generator().manual_seed(0))
        >>> mlp(torch.ones(4, 10)).shape
        torch.Size([1, 10])
    """

    def __init__(self, widths: Sequence[int], output_scale: float, generator: torch.Generator) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        scales = [output_scale if i == len(pairs) - 1 else 1.0 for i in range(len(pairs))]
        self.weights = nn.ParameterList(
            initial_weight(n_out, n_in, generator, scale)
            for (n_in, n_out), scale in zip(pairs, scales, strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n_out)) for _, n_out in pairs)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(widths[0], m)`` to ``(widths[-1], m)``; overwrites what comes in."""
        return self.readout(self.before_last(hidden)) if len(self.weights) else hidden

    def before_last(self, hidden: Tensor) -> Tensor:
        """All layers but the last: from ``(widths[0], m)`` to ``(widths[-2], m)``; overwrites what comes in."""
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[:-1]:
            hidden = affine(weight, torch.relu_(hidden), bias)
        return hidden

    def readout(self, hidden: Tensor) -> Tensor:
        """The last layer, from ``(widths[-2], m)`` to ``(widths[-1], m)``; overwrites what comes in."""
        return affine(self.weights[-1], torch.relu_(hidden), self.biases[-1])
