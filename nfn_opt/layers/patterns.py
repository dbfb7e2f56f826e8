"""Index patterns: how an equivariant linear map reads a tensor and how it writes one.

An equivariant linear map from tensor ``p`` to tensor ``q`` is a sum over the partitions of their axes in which
axes of one block run over the same group (arXiv:2302.14040, arXiv:2402.05232). A block with axes of both tensors
is *connected*; a block with axes of one tensor alone is *free*: its index is averaged over in ``p`` and broadcast
over in ``q``. So a partition splits into a pattern of ``p``, a pattern of ``q`` and a matching of their connected
blocks, and every map is: read, mix channels, write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, permutations, product
from math import prod

import torch
from torch import Tensor

from nfn_opt.weight_space import Axis, TensorSpec

Block = tuple[int, ...]


@dataclass(frozen=True)
class Pattern:
    """A reading or writing of one tensor.

    Attributes:
        spec: The tensor.
        connected: Blocks of axis positions whose index is kept, in the order of the signature.
        free: Blocks whose index is averaged over (reading) or broadcast over (writing).
        folded: Positions of fixed axes, treated as channels.
    """

    spec: TensorSpec
    connected: tuple[Block, ...]
    free: tuple[Block, ...]
    folded: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.spec.name

    @property
    def signature(self) -> tuple[str, ...]:
        """The groups that the connected blocks run over."""
        return tuple(self.spec.axes[block[0]].name for block in self.connected)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the connected indices."""
        return tuple(self.spec.axes[block[0]].size for block in self.connected)

    @property
    def fold(self) -> int:
        """How many channels the fixed axes make of one."""
        return prod(self.spec.axes[i].size for i in self.folded)

    @property
    def full(self) -> bool:
        """Whether every entry of the tensor is kept apart."""
        return not self.free and all(len(block) == 1 for block in self.connected)

    @property
    def diagonal(self) -> bool:
        """Whether one index runs over several axes."""
        return any(len(block) > 1 for block in (*self.connected, *self.free))

    def read(self, features: Tensor) -> Tensor:
        """Average over the free indices: ``(B, *axes, C)`` to ``(B, *connected, fold * C)``."""
        if self.diagonal:
            pooled = self._read_diagonals(features)
        else:
            order = [
                0,
                *(1 + b[0] for b in self.connected),
                *(1 + i for i in self.folded),
                features.dim() - 1,
            ]
            dims = [1 + block[0] for block in self.free]
            kept = [i for i in range(features.dim()) if i not in dims]
            pooled = features.mean(dims) if dims else features
            order = [kept.index(i) for i in order]
            pooled = pooled if order == sorted(order) else pooled.permute(order)
        if not self.folded:
            return pooled
        return pooled.reshape(*pooled.shape[: 1 + len(self.connected)], self.fold * features.shape[-1])

    def _read_diagonals(self, features: Tensor) -> Tensor:
        """The same where one index runs over several axes."""
        label = {axis: i for i, block in enumerate((*self.connected, *self.free)) for axis in block}
        label.update({axis: len(label) + i for i, axis in enumerate(self.folded)})
        batch, channel = len(self.spec.axes) + 1, len(self.spec.axes) + 2
        inputs = [batch, *(label[i] for i in range(len(self.spec.axes))), channel]
        outputs = [batch, *range(len(self.connected)), *(label[i] for i in self.folded), channel]
        count = prod(self.spec.axes[block[0]].size for block in self.free)
        return torch.einsum(features, inputs, outputs) / count

    def place(self, mixed: Tensor) -> Tensor:
        """Arrange ``(B, *connected, fold * C)`` so that it broadcasts against ``(B, *axes, C)``; no diagonals."""
        axes = self.spec.axes
        folded = [axes[i].size for i in self.folded]
        if len(folded):
            mixed = mixed.reshape(
                *mixed.shape[: 1 + len(self.connected)], *folded, mixed.shape[-1] // self.fold
            )
        positions = [*(b[0] for b in self.connected), *self.folded]
        order = [0, *(1 + positions.index(i) for i in sorted(positions)), mixed.dim() - 1]
        mixed = mixed if order == sorted(order) else mixed.permute(order)
        for i in sorted(block[0] for block in self.free):
            mixed = mixed.unsqueeze(1 + i)
        return mixed

    def add_to(self, out: Tensor, mixed: Tensor) -> Tensor:
        """Add the broadcast of ``(B, *connected, fold * C)`` to ``(B, *axes, C)``, in place."""
        if not self.diagonal:
            return out.add_(self.place(mixed))
        view, dims = (
            out,
            list(range(-1, len(self.spec.axes) + 1)),
        )  # what each dimension of the view is: axis or rest
        for block in (*self.connected, *self.free):
            for axis in block[1:]:
                view = view.diagonal(dim1=dims.index(block[0]), dim2=dims.index(axis))
                dims = [d for d in dims if d not in (block[0], axis)] + [block[0]]
        order = [
            -1,
            *(b[0] for b in self.connected),
            *self.folded,
            *(b[0] for b in self.free),
            len(self.spec.axes),
        ]
        view = view.permute([dims.index(d) for d in order])
        folded = [self.spec.axes[i].size for i in self.folded]
        shape = (*mixed.shape[: 1 + len(self.connected)], *folded, *[1] * len(self.free), out.shape[-1])
        view.add_(mixed.reshape(shape))
        return out


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


def all_patterns(spec: TensorSpec, *, orders: bool) -> list[Pattern]:
    """Every pattern of a tensor whose fixed axes are folded into channels.

    Args:
        spec: The tensor.
        orders: Whether connected blocks of one group are listed in every order (for reading) or in one (writing).
    """
    groups: dict[str, list[int]] = {}
    for position, axis in enumerate(spec.axes):
        if axis.permutable:
            groups.setdefault(axis.name, []).append(position)
    folded = tuple(i for i, axis in enumerate(spec.axes) if not axis.permutable)
    choices = [list(set_partitions(positions)) for _, positions in sorted(groups.items())]
    patterns = []
    for blocks in product(*choices):
        flat = [block for partition in blocks for block in sorted(partition)]
        for kept in chain.from_iterable(combinations(flat, k) for k in range(len(flat) + 1)):
            free = tuple(block for block in flat if block not in kept)
            for order in _orders(spec.axes, kept) if orders else [kept]:
                patterns.append(Pattern(spec, order, free, folded))
    return patterns


def _orders(axes: tuple[Axis, ...], blocks: tuple[Block, ...]) -> list[tuple[Block, ...]]:
    """All orders of the blocks that leave the sequence of their groups as it is."""
    names = [axes[block[0]].name for block in blocks]
    return [order for order in permutations(blocks) if [axes[b[0]].name for b in order] == names]
