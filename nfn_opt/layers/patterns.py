"""Index patterns: how an equivariant linear map reads a tensor and how it writes one.

An equivariant linear map from tensor ``p`` to tensor ``q`` is a sum over the partitions of their axes in which
axes of one block run over the same group (arXiv:2302.14040, arXiv:2402.05232). A block with axes of both tensors
is *connected*; a block with axes of one tensor alone is *free*: its index is averaged over in ``p`` and broadcast
over in ``q``. So a partition splits into a pattern of ``p``, a pattern of ``q`` and a matching of their connected
blocks, and every map is: read, mix channels, write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, permutations, product
from math import prod

import torch
from torch import Tensor

from nfn_opt.weight_space import TensorSpec

Block = tuple[int, ...]


@dataclass(frozen=True)
class Pattern:
    """A reading or writing of one tensor.

    Attributes:
        spec: The tensor.
        connected: Blocks of axis positions whose index is kept, in the order of the signature.
        free: Blocks whose index is averaged over (reading) or broadcast over (writing).
        folded: Positions of fixed axes, treated as channels.
        signature: The groups that the connected blocks run over.
        fold: How many channels the fixed axes make of one.
        full: Whether every entry of the tensor is kept apart.
        diagonal: Whether one index runs over several axes.
        ordered: Whether it is full and ``(B, *connected, fold * C)`` has the order of ``(B, *axes, C)``.
        layout: All blocks and fixed axes by their first axis: the tensor's own axes unless ``diagonal``.
        free_dims: Where ``(B, *layout, C)`` has a free index.
        count: How many entries are averaged over.
    """

    spec: TensorSpec
    connected: tuple[Block, ...]
    free: tuple[Block, ...]
    folded: tuple[int, ...] = ()
    signature: tuple[str, ...] = field(init=False, compare=False, repr=False)
    fold: int = field(init=False, compare=False, repr=False)
    full: bool = field(init=False, compare=False, repr=False)
    diagonal: bool = field(init=False, compare=False, repr=False)
    ordered: bool = field(init=False, compare=False, repr=False)
    layout: tuple[Block, ...] = field(init=False, compare=False, repr=False)
    free_dims: tuple[int, ...] = field(init=False, compare=False, repr=False)
    count: int = field(init=False, compare=False, repr=False)
    _order: tuple[int, ...] | None = field(init=False, compare=False, repr=False)
    _inverse: tuple[int, ...] | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        axes = self.spec.axes
        diagonal = any(len(block) > 1 for block in (*self.connected, *self.free))
        full = not self.free and not diagonal
        order = (*(block[0] for block in self.connected), *self.folded)
        layout = tuple(sorted((*self.connected, *self.free, *((i,) for i in self.folded))))
        ranks = [sorted(order).index(i) for i in order]
        moved = (0, *(1 + r for r in ranks), len(ranks) + 1)
        inverse = tuple(sorted(range(len(moved)), key=moved.__getitem__))
        derived = {
            "signature": tuple(axes[block[0]].name for block in self.connected),
            "fold": prod(axes[i].size for i in self.folded),
            "full": full,
            "diagonal": diagonal,
            "ordered": full and order == tuple(range(len(axes))),
            "layout": layout,
            "free_dims": tuple(1 + i for i, block in enumerate(layout) if block in self.free),
            "count": prod(axes[block[0]].size for block in self.free),
            "_order": moved if moved != tuple(range(len(moved))) else None,
            "_inverse": inverse if inverse != tuple(range(len(inverse))) else None,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.spec.name

    def arranged(self, signature: tuple[str, ...]) -> list[Pattern]:
        """The pattern with its connected blocks in every order that runs over the groups of a signature."""
        orders = [
            order
            for order in permutations(self.connected)
            if tuple(self.spec.axes[block[0]].name for block in order) == signature
        ]
        return [replace(self, connected=order) for order in orders]

    def read(self, features: Tensor) -> Tensor:
        """Average over the free indices: ``(B, *axes, C)`` to ``(B, *connected, fold * C)``."""
        return self.gather(average(self.restrict(features), self.free_dims))

    def restrict(self, features: Tensor) -> Tensor:
        """The entries at which the axes of every block have equal indices, as a view ``(B, *layout, C)``."""
        if not self.diagonal:
            return features
        done: list[int] = []
        for block in self.layout:
            for axis in block[1:]:
                first, second = (1 + i - sum(gone < i for gone in done) for i in (block[0], axis))
                features = features.diagonal(0, first, second).movedim(-1, first)
                done.append(axis)
        return features

    def gather(self, pooled: Tensor) -> Tensor:
        """``(B, *layout, C)`` with size 1 where an index is free to ``(B, *connected, fold * C)``."""
        if self.free_dims:
            pooled = pooled.squeeze(self.free_dims)
        pooled = self.arrange(pooled)
        if self.folded:
            pooled = pooled.reshape(*pooled.shape[: 1 + len(self.connected)], self.fold * pooled.shape[-1])
        return pooled

    def arrange(self, features: Tensor) -> Tensor:
        """``(B, *layout, C)`` without free indices as a view ``(B, *connected, *folded, C)``."""
        return features if self._order is None else features.permute(self._order)

    def place(self, mixed: Tensor) -> Tensor:
        """The way back of :meth:`gather`: ``(B, *connected, fold * C)`` to ``(B, *layout, C)``."""
        if self.folded:
            folded = [self.spec.axes[i].size for i in self.folded]
            mixed = mixed.reshape(
                *mixed.shape[: 1 + len(self.connected)], *folded, mixed.shape[-1] // self.fold
            )
        if self._inverse is not None:
            mixed = mixed.permute(self._inverse)
        for dim in self.free_dims:
            mixed = mixed.unsqueeze(dim)
        return mixed

    def widen(self, placed: Tensor) -> Tensor:
        """``(B, *layout, C)`` as it broadcasts against ``(B, *axes, C)``; counts where :meth:`mask` is one."""
        for axis in sorted(axis for block in self.layout for axis in block[1:]):
            placed = placed.unsqueeze(1 + axis)
        return placed

    def mask(self, like: Tensor) -> Tensor:
        """One where the axes of every block have equal indices, else zero: broadcasts against ``(*axes, C)``."""
        mask = like.new_ones(())
        for block in self.layout:
            for axis in block[1:]:
                shape = [a.size if i in (block[0], axis) else 1 for i, a in enumerate(self.spec.axes)]
                size = self.spec.axes[axis].size
                mask = mask * torch.eye(size, dtype=like.dtype, device=like.device).reshape(*shape, 1)
        return mask


def average(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean over some dimensions, which stay with size 1."""
    if not dims:
        return tensor
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return tensor.mean(dims, keepdim=True)
    # The gradient of a sum is a view, that of ``mean`` a new large tensor.
    return tensor.sum(dims, keepdim=True) * (1.0 / prod([tensor.shape[i] for i in dims]))


def set_partitions(items: Sequence[int]) -> Iterator[tuple[Block, ...]]:
    """All partitions of a sequence into blocks.

    Example:
        >>> list(set_partitions([0, 1]))
        [((0, 1),), ((0,), (1,))]
    """
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for partition in set_partitions(rest):
        for i, block in enumerate(partition):
            yield (*partition[:i], (first, *block), *partition[i + 1 :])
        yield ((first,), *partition)


def all_patterns(spec: TensorSpec) -> list[Pattern]:
    """Every pattern of a tensor, fixed axes folded into channels, connected blocks in the order of the axes."""
    groups: dict[str, list[int]] = {}
    for position, axis in enumerate(spec.axes):
        if axis.permutable:
            groups.setdefault(axis.name, []).append(position)
    folded = tuple(i for i, axis in enumerate(spec.axes) if not axis.permutable)
    choices = [list(set_partitions(positions)) for _, positions in sorted(groups.items())]
    patterns = []
    for blocks in product(*choices):
        flat = sorted(block for partition in blocks for block in partition)
        for kept in chain.from_iterable(combinations(flat, k) for k in range(len(flat) + 1)):
            free = tuple(block for block in flat if block not in kept)
            patterns.append(Pattern(spec, kept, free, folded))
    return patterns
