"""Pieces of a matrix that fit a processor's cache, and the buffers that all pieces share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Where = tuple[torch.device, torch.dtype]

CPU_CHUNK = 16384
"""Weights worked on at once by each core: their features and hidden layers fit its second cache."""

DEVICE_CHUNK = 2**18
"""Weights worked on at once by an accelerator, where few large operations are what is fast."""

KEPT = 2**22
"""Buffers of more entries than this are not kept from one step to the next."""


def chunk_size(device: torch.device) -> int:
    """How many weights are worked on at once on a device."""
    if device.type != "cpu":
        return DEVICE_CHUNK
    return CPU_CHUNK * min(torch.get_num_threads(), 8)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A cut of matrices ``(a, b)`` into boxes: some consecutive rows each, or a part of one row.

    Attributes:
        rows: Number of rows, a.
        columns: Number of columns, b.
        row_step: Rows of a box, fewer in the last.
        column_step: Columns of a box, fewer in the last of each row; all if a box has more than one row.
    """

    rows: int
    columns: int
    row_step: int
    column_step: int

    @staticmethod
    def of(rows: int, columns: int, limit: int) -> Grid:
        """Boxes of at most ``limit`` entries and of nearly equal sizes.

        Example:
            >>> [tuple(box.shape) for box in Grid.of(5, 4, 8).split(torch.zeros(5, 4))]
            [(2, 4), (2, 4), (1, 4)]
            >>> [tuple(box.shape) for box in Grid.of(2, 9, 5).split(torch.zeros(2, 9))]
            [(1, 5), (1, 4), (1, 5), (1, 4)]
        """
        return Grid(rows, columns, _step(rows, max(1, limit // columns)), _step(columns, max(1, limit)))

    def __len__(self) -> int:
        return -(-self.rows // self.row_step) * -(-self.columns // self.column_step)

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts of ``(..., a, b)`` that belong to the boxes; axes of size 1 are kept."""
        many = self._cut(x, -2, self.rows, self.row_step)
        return [box for row in many for box in self._cut(row, -1, self.columns, self.column_step)]

    def _cut(self, x: Tensor, axis: int, size: int, step: int) -> Sequence[Tensor]:
        if step >= size:
            return (x,)
        return [x] * -(-size // step) if x.shape[axis] == 1 else x.split(step, axis)


def _step(size: int, limit: int) -> int:
    return -(-size // -(-size // limit))


def filled(order: Sequence[int], numels: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Consecutive tensors of at most ``limit`` weights in all, or one that has more.

    Args:
        order: Places of the tensors.
        numels: How many weights each has, by place.
        limit: Weights.

    Example:
        >>> list(filled(range(4), [2, 3, 9, 1], 5))
        [[0, 1], [2], [3]]
    """
    part: list[int] = []
    for place in order:
        if part and sum(numels[i] for i in (*part, place)) > limit:
            yield part
            part = []
        part.append(place)
    yield part


class Scratch:
    """Buffers by name, device and dtype, made when first asked for and then used again.

    Example:
        >>> scratch, where = Scratch(), (torch.device("cpu"), torch.float32)
        >>> a, b = scratch.take("features", where, 2, 3), scratch.take("features", where, 4)
        >>> a.shape, a.data_ptr() == b.data_ptr()
        (torch.Size([2, 3]), True)
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, Where], Tensor] = {}

    def take(self, name: str, where: Where, *shape: int) -> Tensor:
        """A contiguous tensor of a shape; what it held is lost, and so is it at the next call of its name."""
        numel, key = math.prod(shape), (name, where)
        held = self._buffers.get(key)
        if held is None or held.numel() < numel:
            self._buffers.pop(key, None)
            held = self._buffers[key] = torch.empty(numel, device=where[0], dtype=where[1])
        return held[:numel].view(shape)

    def take_like(self, name: str, where: Where, like: Tensor) -> Tensor:
        """A tensor of a shape whose axes lie in memory in the same order."""
        order = sorted(range(like.dim()), key=lambda axis: -like.stride()[axis])
        back = sorted(range(like.dim()), key=order.__getitem__)
        return self.take(name, where, *(like.shape[axis] for axis in order)).permute(back)

    def trim(self) -> None:
        """Give large buffers back."""
        for key in [key for key, held in self._buffers.items() if held.numel() > KEPT]:
            del self._buffers[key]
