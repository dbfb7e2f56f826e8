"""Invariant pooling: weight features to one vector a network."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import WeightSpace
from nfn_opt.weight_space.checks import check_features

Reduction = Literal["mean", "sum", "max"]


class InvariantPool(nn.Module):
    """Reduce every parameter over its permutable axes and concatenate the results.

    Fixed axes are kept apart, so that with ``symmetry="hidden"`` every input and output neuron has its own entries
    (HNP pooling of arXiv:2302.14040), and with ``symmetry="all"`` there is one vector a parameter (NP pooling).

    Args:
        space: The weight space.
        reduction: ``"mean"``, ``"sum"`` or ``"max"``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> pool = InvariantPool(space)
        >>> pool.out_features(4)
        20
        >>> pool({spec.name: torch.zeros(7, *spec.view_shape, 4) for spec in space.parameters}).shape
        torch.Size([7, 20])
    """

    def __init__(self, space: WeightSpace, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "max"):
            raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'max'")
        self.space, self.reduction = space, reduction

    def out_features(self, channels: int) -> int:
        """Length of the vector for features with so many channels."""
        kept = [prod(a.size for a in spec.axes if not a.permutable) for spec in self.space.parameters]
        return channels * sum(kept)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, C)}`` to ``(B, out_features(C))``."""
        check_features(self.space, features)
        reduce = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[self.reduction]
        vectors = []
        for spec in self.space.parameters:
            tensor = features[spec.name]
            dims = [1 + i for i, axis in enumerate(spec.axes) if axis.permutable]
            vectors.append((reduce(tensor, dims) if dims else tensor).flatten(1))  # type: ignore[operator]
        return torch.cat(vectors, dim=1)

    def extra_repr(self) -> str:
        """The reduction."""
        return self.reduction
