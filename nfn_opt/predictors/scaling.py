"""Weights as a predictor sees them: of sizes around 1, with the sizes of the training networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from nfn_opt.layers.kinds import KINDS, kind_of
from nfn_opt.weight_space import Features, TensorSpec, WeightSpace

__all__ = ["WeightScaling", "relative"]

VALUES_AT_MOST = 4_000_000
"""Numbers that the usual size of a tensor's entries is taken from."""


class WeightScaling(nn.Module):
    r"""Standardise weights, tensor by tensor, after ``asinh`` has made large ones small.

    .. math:: x = \bigl(\operatorname{asinh}(w / s) - \mu\bigr) / \sigma

    with the usual size :math:`s` (median of :math:`|w|`), mean and standard deviation of each parameter tensor over
    the training networks. Without ``compress``, :math:`x = (w - \mu) / \sigma`. One number for a whole tensor commutes
    with every permutation.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        shared: Whether all vectors have the same numbers, and all matrices, which are first multiplied by the root of
            their fan-in; so the layer serves every architecture.
        compress: Whether ``asinh`` is taken.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(4)})
        >>> scaling = WeightScaling(space, shared=False, compress=False)
        >>> scaling.fit([(space, {"w": torch.tensor([[0.0, 2.0, 4.0, 6.0]])})])
        >>> scaling({"w": torch.tensor([[3.0, 3.0, 3.0, 3.0]])})["w"].squeeze().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """

    size: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, space: WeightSpace, *, shared: bool, compress: bool) -> None:
        super().__init__()
        self.space, self.shared, self.compress = space, shared, compress
        self._keys: tuple[str, ...] = KINDS if shared else space.names
        for name, start in (("size", 1.0), ("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.full((len(self._keys),), start))

    def forward(self, params: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map weights ``{name: (B, *shape)}`` of ``space`` to features ``{name: (B, *axes, 1)}``."""
        space = space or self.space
        scaled = {}
        for spec in space.parameters:
            index = self._index(spec)
            value = self._squeezed(relative(params[spec.name], spec, self.shared), index)
            scaled[spec.name] = (value - self.mean[index]) / self.std[index]
        return space.as_features(scaled)

    @torch.no_grad()
    def fit(self, groups: Sequence[tuple[WeightSpace, Mapping[str, Tensor]]]) -> None:
        """Take sizes, means and standard deviations from the training networks, given group by group."""
        for index, key in enumerate(self._keys):
            values = self._values(groups, key)
            if not values.numel():
                continue
            size = values.abs().median()
            # More than half may be zero: biases that were never trained.
            size = size if size > 0 else values.square().mean().sqrt()
            self.size[index] = size.clamp_min(1e-8)
            values = self._squeezed(values.to(self.size), index)
            self.mean[index] = values.mean()
            self.std[index] = values.std(correction=0).clamp_min(1e-6)

    def _values(self, groups: Sequence[tuple[WeightSpace, Mapping[str, Tensor]]], key: str) -> Tensor:
        """All numbers that share one size, or evenly many of each tensor if they are very many."""
        found = [
            relative(params[spec.name], spec, self.shared).flatten()
            for space, params in groups
            for spec in space.parameters
            if (kind_of(spec) if self.shared else spec.name) == key
        ]
        stride = max(1, math.ceil(sum(value.numel() for value in found) / VALUES_AT_MOST))
        return torch.cat([value[::stride] for value in found]) if found else torch.empty(0)

    def _squeezed(self, value: Tensor, index: int) -> Tensor:
        return torch.asinh(value / self.size[index]) if self.compress else value

    def _index(self, spec: TensorSpec) -> int:
        return self._keys.index(kind_of(spec) if self.shared else spec.name)

    def extra_repr(self) -> str:
        """The options."""
        return f"shared={self.shared}, compress={self.compress}"


def relative(weights: Tensor, spec: TensorSpec, shared: bool) -> Tensor:
    """Weights; in units of one over the root of their fan-in, where architectures share them.

    Args:
        weights: Shape (B, *shape).
        spec: What they are.
        shared: Whether architectures share them.
    """
    if not shared or kind_of(spec) == "vector":
        return weights
    return weights * math.sqrt(prod(axis.size for axis in spec.axes if axis.role != "out"))
