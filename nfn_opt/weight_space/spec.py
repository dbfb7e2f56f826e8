"""The immutable records of a weight space: axes, tensors and permutations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor

Role = Literal["out", "in", "space"]
"""What an axis of a parameter does: produces neurons, consumes neurons, or runs over kernel positions."""


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor as viewed.

    Two axes with the same ``name`` run over the same things (the neurons of one layer, say), so one
    permutation acts on both.

    Attributes:
        name: Identity of what the axis runs over.
        size: Number of entries.
        permutable: Whether the symmetric group of that size acts on the axis. A fixed axis keeps its order.
        role: ``"out"``, ``"in"`` or ``"space"``; used to share weights between architectures.
        note: For a fixed axis, what fixed it.
    """

    name: str
    size: int
    permutable: bool = True
    role: Role = "out"
    note: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name}:{self.size}" if self.permutable else str(self.size)


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor, its stored shape, and the axes of the shape it is viewed as.

    The viewed shape splits or merges axes of the stored shape but never reorders entries: a linear layer after a
    flatten is stored as ``(out, channels * pixels)`` and viewed as ``(out, channels, pixels)``.

    Example:
        >>> spec = TensorSpec("fc.weight", (10, 32), (Axis("out", 10), Axis("h1", 4), Axis("p", 8, False)))
        >>> spec.view_shape
        (10, 4, 8)
        >>> spec.view(torch.zeros(5, 10, 32), batch_dims=1).shape
        torch.Size([5, 10, 4, 8])
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if prod(self.shape) != prod(self.view_shape):
            raise ValueError(
                f"{self.name}: the axes {[str(a) for a in self.axes]} hold {prod(self.view_shape)} entries, expected "
                f"{prod(self.shape)} for the stored shape {self.shape}; split the stored axes without a remainder"
            )

    @property
    def view_shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def numel(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    def view(self, tensor: Tensor, batch_dims: int = 0) -> Tensor:
        """Reshape ``(*batch, *shape, *rest)`` to ``(*batch, *view_shape, *rest)``."""
        batch, rest = tensor.shape[:batch_dims], tensor.shape[batch_dims + len(self.shape) :]
        return tensor.reshape((*batch, *self.view_shape, *rest))

    def unview(self, tensor: Tensor, batch_dims: int = 0) -> Tensor:
        """Reshape ``(*batch, *view_shape, *rest)`` to ``(*batch, *shape, *rest)``."""
        batch, rest = tensor.shape[:batch_dims], tensor.shape[batch_dims + len(self.axes) :]
        return tensor.reshape((*batch, *self.shape, *rest))

    def permute(self, viewed: Tensor, permutation: Permutation, batch_dims: int = 0) -> Tensor:
        """Apply the permutation to every permutable axis of a viewed tensor ``(*batch, *view_shape, *rest)``."""
        for position, axis in enumerate(self.axes):
            if axis.permutable and axis.name in permutation.indices:
                index = permutation.indices[axis.name].to(viewed.device)
                viewed = viewed.index_select(batch_dims + position, index)
        return viewed

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(str(axis) for axis in self.axes)})"


@dataclass(frozen=True)
class Permutation:
    """One permutation for every group of a weight space.

    Entry ``i`` of a permuted axis is entry ``indices[group][i]`` of the original.

    Example:
        >>> p = Permutation({"h1": torch.tensor([2, 0, 1])})
        >>> p.inverse().indices["h1"].tolist()
        [1, 2, 0]
        >>> p.then(p.inverse()).indices["h1"].tolist()
        [0, 1, 2]
    """

    indices: Mapping[str, Tensor]

    def inverse(self) -> Permutation:
        """The permutation that undoes this one."""
        return Permutation({name: torch.argsort(index) for name, index in self.indices.items()})

    def then(self, other: Permutation) -> Permutation:
        """The permutation that acts like this one followed by ``other``."""
        return Permutation({name: index[other.indices[name]] for name, index in self.indices.items()})
