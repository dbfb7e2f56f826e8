"""The linear layer of Deep Sets on the weights of each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nfn_opt.optim.first_layer import Preactivation, affine, initial_weight
from nfn_opt.weight_space import WeightSpace


class DeepSetsLinear(nn.Module):
    r"""A linear map of each weight and of the mean over its tensor (arXiv:1703.06114).

    .. math:: y_i = A x_i + B \operatorname{mean}_j x_j + b

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        mean: Whether there is the second term; without, the map is of each weight alone.
        generator: Source of the initial weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, mean: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.own = initial_weight(out_channels, in_channels, generator)
        self.mean = initial_weight(out_channels, in_channels, generator) if mean else None
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(
        self, first: Sequence[Preactivation], hidden: Sequence[Tensor], space: WeightSpace
    ) -> list[Tensor]:
        """Map ``(in_channels, n)`` of each tensor to ``(out_channels, n)``."""
        return [affine(self.own, x, self._bias(x)) for x in hidden]

    def _bias(self, x: Tensor) -> Tensor:
        return self.bias if self.mean is None else self.bias + self.mean @ x.mean(1)
