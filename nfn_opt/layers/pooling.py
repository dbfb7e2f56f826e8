"""Invariant pooling: weight features to one vector a network."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from nfn_opt.layers.checks import check_input
from nfn_opt.layers.kinds import KINDS, kind_of
from nfn_opt.weight_space import TensorSpec, WeightSpace

Reduction = Literal["mean", "sum", "max"]


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "max"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'max'")


def _reduce(tensor: Tensor, dims: list[int], reduction: Reduction) -> Tensor:
    if not dims:
        return tensor
    if reduction == "max":
        return tensor.amax(dims)
    return tensor.mean(dims) if reduction == "mean" else tensor.sum(dims)


def _kept(space: WeightSpace) -> list[int]:
    """For every cell, the number of entries of its fixed axes."""
    return [prod(a.size for a in spec.axes if not a.permutable) for spec in space.cells.space.parameters]


class InvariantPool(nn.Module):
    """Reduce every parameter over its permutable axes and concatenate the results.

    Fixed axes are kept apart, so that with ``symmetry="hidden"`` every input and output neuron has its own entries
    (HNP pooling of arXiv:2302.14040), and with ``symmetry="all"`` there is one vector a parameter (NP pooling). So
    are the parts of an axis that is made of several groups.

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
        _check_reduction(reduction)
        self.space, self.reduction = space, reduction

    def out_features(self, channels: int) -> int:
        """Length of the vector for features with so many channels."""
        return channels * sum(_kept(self.space))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, C)}`` to ``(B, out_features(C))``."""
        check_input(self.space, features)
        cells = self.space.cells.split(features)
        vectors = []
        for spec in self.space.cells.space.parameters:
            dims = [1 + i for i, axis in enumerate(spec.axes) if axis.permutable]
            vectors.append(_reduce(cells[spec.name], dims, self.reduction).flatten(1))
        return torch.cat(vectors, dim=1)

    def extra_repr(self) -> str:
        """The reduction."""
        return self.reduction


class AttentionPool(nn.Module):
    r"""Reduce every parameter over its permutable axes by attention, and concatenate the results.

    In place of the mean of :class:`InvariantPool` stands a weighted mean whose weights are computed from the features:
    :math:`\sum_i \mathrm{softmax}_i(q^\top x_i / \sqrt{C})\, x_i`, with a learned query :math:`q` for each parameter
    and head. Each head gives its share of the channels. Fixed axes are kept apart.

    Args:
        space: The weight space.
        channels: Number of channels.
        heads: Number of heads; divides the channels.
        generator: Source of the initial queries (standard normal).

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(5, 3)})
        >>> pool = AttentionPool(space, 4, heads=2)
        >>> pool({"w": torch.ones(2, 5, 3, 4)}).tolist() == torch.ones(2, 4).tolist()
        True
    """

    def __init__(
        self, space: WeightSpace, channels: int, heads: int = 1, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if heads < 1 or channels < 1 or channels % heads:
            raise ValueError(
                f"channels is {channels} and heads {heads}, expected positive numbers, heads a divisor of channels"
            )
        self.space, self.channels, self.heads = space, channels, heads
        count = len(space.cells.space.parameters)
        self.queries = nn.Parameter(torch.randn(count, channels, heads, generator=generator))

    def out_features(self, channels: int) -> int:
        """Length of the vector for features with so many channels."""
        return channels * sum(_kept(self.space))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, channels)}`` to ``(B, out_features(channels))``."""
        check_input(self.space, features, self.channels, self.queries)
        cells = self.space.cells.split(features)
        specs = self.space.cells.space.parameters
        pooled = [
            self._pool(_entries(spec, cells[spec.name]), query)
            for spec, query in zip(specs, self.queries, strict=True)
        ]
        return torch.cat(pooled, dim=1)

    def _pool(self, entries: Tensor, query: Tensor) -> Tensor:
        """The weighted means of entries ``(B, kept, entries, C)``, flattened: ``(B, kept * C)``."""
        weights = (entries @ query / self.channels**0.5).softmax(dim=2)
        values = entries.unflatten(-1, (self.heads, -1))
        return torch.einsum("bkeh,bkehc->bkhc", weights, values).flatten(1)

    def extra_repr(self) -> str:
        """Channels and heads."""
        return f"{self.channels}, heads={self.heads}"


def _entries(spec: TensorSpec, tensor: Tensor) -> Tensor:
    """Features ``(B, *axes, C)`` as ``(B, fixed axes, permutable axes, C)``."""
    fixed = [1 + i for i, axis in enumerate(spec.axes) if not axis.permutable]
    moved = tensor.movedim(fixed, list(range(1, 1 + len(fixed))))
    count = prod([tensor.shape[i] for i in fixed])
    return moved.reshape(tensor.shape[0], count, spec.numel // count, tensor.shape[-1])


class SharedPool(nn.Module):
    """Reduce every tensor over all of its axes, average over the tensors of a kind, and concatenate the two kinds.

    The vector has the same length for every architecture: one part for vectors (biases, scales of norms), one for
    matrices. Inputs, outputs and kernel positions are not told apart; encode their positions before where it matters.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        reduction: ``"mean"``, ``"sum"`` or ``"max"`` over the entries of a tensor.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(1, 2), "v": torch.zeros(1, 3), "b": torch.zeros(2)})
        >>> features = {"w": torch.full((1, 1, 2, 1), 2.0), "v": torch.ones(1, 1, 3, 1), "b": torch.ones(1, 2, 1)}
        >>> SharedPool(space)(features).tolist()
        [[1.0, 1.5]]
    """

    def __init__(self, space: WeightSpace, reduction: Reduction = "mean") -> None:
        super().__init__()
        _check_reduction(reduction)
        self.space, self.reduction = space, reduction

    def out_features(self, channels: int) -> int:
        """Length of the vector for features with so many channels."""
        return len(KINDS) * channels

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """Map ``{name: (B, *axes, C)}`` of ``space`` to ``(B, 2 * C)``; a kind that does not occur gives zeros."""
        space = space or self.space
        check_input(space, features)
        parts = []
        for kind in KINDS:
            tensors = [features[spec.name] for spec in space.parameters if kind_of(spec) == kind]
            reduced = [_reduce(t, list(range(1, t.dim() - 1)), self.reduction) for t in tensors]
            like = features[space.names[0]]
            absent = like.new_zeros(like.shape[0], like.shape[-1])
            parts.append(torch.stack(reduced).mean(0) if reduced else absent)
        return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        """The reduction."""
        return self.reduction
