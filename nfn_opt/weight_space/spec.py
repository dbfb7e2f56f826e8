"""The immutable records of a weight space: axes, tensors and permutations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        parts: For an axis made of several groups one behind the other (a concatenating skip, packed queries, keys and
            values), the axes of each part, major first. Such an axis is moved part by part, never as a whole, and
            ``permutable`` is false.

    Example:
        >>> axis = Axis.concatenated([(Axis("h1", 2),), (Axis("h2", 3),)])
        >>> str(axis), [leaf.name for leaf in axis.leaves()]
        ('(h1+h2):5', ['h1', 'h2'])
        >>> axis.order(Permutation({"h2": torch.tensor([2, 0, 1])})).tolist()
        [0, 1, 4, 2, 3]
    """

    name: str
    size: int
    permutable: bool = True
    role: Role = "out"
    note: str = field(default="", compare=False)
    parts: tuple[tuple[Axis, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.parts) == 1:
            raise ValueError(
                f"axis {self.name!r} is a concatenation of one part, expected more; use the part's own axes"
            )
        if self.parts and self.size != sum(prod(a.size for a in part) for part in self.parts):
            raise ValueError(
                f"axis {self.name!r} has size {self.size}, expected "
                f"{sum(prod(a.size for a in part) for part in self.parts)}, the sum of its parts' sizes"
            )

    @classmethod
    def concatenated(cls, parts: Sequence[tuple[Axis, ...]], role: Role = "out") -> Axis:
        """The axis that runs over all parts one after the other; a part may itself be a product of axes."""
        name = "+".join("*".join(axis.label for axis in part) or "1" for part in parts)
        size = sum(prod(axis.size for axis in part) for part in parts)
        return cls(f"({name})", size, False, role, "", tuple(tuple(part) for part in parts))

    @property
    def label(self) -> str:
        """The name of a group or concatenation, the size of a fixed axis."""
        return self.name if self.permutable or self.parts else str(self.size)

    def __str__(self) -> str:
        return f"{self.name}:{self.size}" if self.permutable or self.parts else str(self.size)

    def leaves(self) -> Iterator[Axis]:
        """The axis itself, or all axes that its parts are made of."""
        if not self.parts:
            yield self
        for part in self.parts:
            for axis in part:
                yield from axis.leaves()

    def order(self, permutation: Permutation) -> Tensor | None:
        """Where each entry of the permuted axis comes from, or ``None`` if all stay."""
        if not self.parts:
            return permutation.indices.get(self.name) if self.permutable else None
        pieces, moved, offset = [], False, 0
        for part in self.parts:
            index = torch.zeros(1, dtype=torch.long)
            for axis in part:
                own = axis.order(permutation)
                moved |= own is not None
                own = torch.arange(axis.size) if own is None else own.cpu()
                index = (index[:, None] * axis.size + own).flatten()
            pieces.append(index + offset)
            offset += len(index)
        return torch.cat(pieces) if moved else None


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

    def leaves(self) -> Iterator[Axis]:
        """All axes, concatenated ones taken apart."""
        for axis in self.axes:
            yield from axis.leaves()

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
            if (index := axis.order(permutation)) is not None:
                viewed = viewed.index_select(batch_dims + position, index.to(viewed.device))
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
