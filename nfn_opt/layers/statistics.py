"""Statistics of the weights: mean, variance, quantiles and singular values of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from nfn_opt.layers.checks import check_input
from nfn_opt.weight_space import TensorSpec, WeightSpace

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Which quantiles are taken."""
SMALLEST = 1e-6
"""Added to singular values, so that they have logarithms."""
STATISTICS = 2 + len(QUANTILES)
"""Numbers for each tensor and channel: mean, variance, quantiles."""


class StatisticsFeatures(nn.Module):
    """Mean, variance and the 0, 25, 50, 75 and 100 % quantiles of every parameter and channel (StatNN's features).

    The statistics of arXiv:2002.11448, the baseline of the neural functional papers. They are invariant to every
    permutation within a tensor, and so to far more than the network's symmetry.

    Args:
        space: The weight space.
        keep_fixed: Whether axes that no group acts on are kept apart (each input, output and kernel position has its
            own statistics), or all entries of a tensor are taken together.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(5)})
        >>> StatisticsFeatures(space)({"w": torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])[None, :, None]}).tolist()
        [[4.0, 12.5, 1.0, 2.0, 3.0, 4.0, 10.0]]
    """

    def __init__(self, space: WeightSpace, *, keep_fixed: bool = False) -> None:
        super().__init__()
        self.space, self.keep_fixed = space, keep_fixed

    @property
    def _specs(self) -> tuple[TensorSpec, ...]:
        return self.space.cells.space.parameters if self.keep_fixed else self.space.parameters

    def out_features(self, channels: int) -> int:
        """Length of the vector for features with so many channels."""
        kept = [
            prod(a.size for a in spec.axes if not a.permutable) if self.keep_fixed else 1
            for spec in self._specs
        ]
        return STATISTICS * channels * sum(kept)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, C)}`` to ``(B, out_features(C))``: for each tensor (kept axes, C, statistics)."""
        check_input(self.space, features)
        cells = self.space.cells.split(features) if self.keep_fixed else features
        return torch.cat([self._of(spec, cells[spec.name]) for spec in self._specs], dim=1)

    def _of(self, spec: TensorSpec, tensor: Tensor) -> Tensor:
        """The statistics of one tensor in a row, ``(B, kept * C * STATISTICS)``."""
        if not self.keep_fixed:
            return statistics(as_entries(tensor)).flatten(1)
        kept = [1 + i for i, axis in enumerate(spec.axes) if not axis.permutable]
        moved = tensor.movedim(kept, list(range(1, 1 + len(kept))))
        count = prod([tensor.shape[i] for i in kept])
        return statistics(
            moved.reshape(tensor.shape[0], count, spec.numel // count, tensor.shape[-1])
        ).flatten(1)

    def extra_repr(self) -> str:
        """Whether fixed axes are kept apart."""
        return f"keep_fixed={self.keep_fixed}"


class SpectrumFeatures(nn.Module):
    """Logarithms of the largest singular values of every parameter and channel, as a matrix of first axis by others.

    Permuting neurons permutes rows and columns of these matrices and keeps their singular values, whatever the
    symmetry: like `StatisticsFeatures` they are invariant, but they see how the entries of a tensor lie to each other.

    Args:
        space: The weight space.
        count: Singular values of each tensor, at most; the largest. Biases and numbers have none.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 3), "b": torch.zeros(2)})
        >>> features = {"w": torch.tensor([[3.0, 0, 0], [0, 1, 0]])[None, ..., None], "b": torch.zeros(1, 2, 1)}
        >>> SpectrumFeatures(space)(features).exp().round(decimals=3).tolist()
        [[3.0, 1.0]]
    """

    def __init__(self, space: WeightSpace, *, count: int = 16) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count is {count}, expected at least 1")
        self.space, self.count = space, count

    def out_features(self, channels: int) -> int:
        """Length of the vector for features with so many channels."""
        return channels * sum(self._kept(spec) for spec in self.space.parameters)

    def _kept(self, spec: TensorSpec) -> int:
        if len(spec.view_shape) < 2:
            return 0
        return min(self.count, spec.view_shape[0], spec.numel // spec.view_shape[0])

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, C)}`` to ``(B, out_features(C))``: for each tensor (C, singular values)."""
        check_input(self.space, features)
        found = [next(iter(features.values())).flatten(1)[:, :0]]
        for spec in self.space.parameters:
            kept = self._kept(spec)
            if kept:
                matrices = features[spec.name].flatten(2, -2).movedim(-1, 1)
                found.append(torch.linalg.svdvals(matrices)[..., :kept].add(SMALLEST).log().flatten(1))
        return torch.cat(found, 1)

    def extra_repr(self) -> str:
        """How many singular values."""
        return f"count={self.count}"


def as_entries(tensor: Tensor) -> Tensor:
    """Features ``(B, *axes, C)`` as ``(B, entries, C)``; a number without axes is one entry."""
    return tensor.flatten(1, -2) if tensor.dim() > 2 else tensor[:, None]


def statistics(entries: Tensor) -> Tensor:
    """Mean, unbiased variance (0 for one entry) and quantiles over the last axis but one.

    Args:
        entries: Shape (..., entries, C), of any number of entries (``torch.quantile`` takes 16 million).

    Returns:
        Shape (..., C, 7).
    """
    count = entries.shape[-2]
    ordered = entries.sort(dim=-2).values
    at = torch.tensor(QUANTILES, dtype=torch.float64) * (count - 1)
    below = at.floor().long()
    above = at.ceil().long()
    between = (at - below).to(entries.device, entries.dtype)[:, None]
    low, high = (ordered.index_select(-2, i.to(entries.device)) for i in (below, above))
    mean = entries.mean(-2, keepdim=True)
    variance = (entries - mean).square().sum(-2, keepdim=True) / max(count - 1, 1)
    return torch.cat([mean, variance, torch.lerp(low, high, between)], dim=-2).transpose(-1, -2)
