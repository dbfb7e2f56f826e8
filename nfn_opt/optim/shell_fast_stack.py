"""Tensors of one shape as a stack of matrices, which the fast step works on together."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nfn_opt.optim.layout import Segment
from nfn_opt.optim.normalise import Over, several_matrices
from nfn_opt.optim.shell_fast_chunks import Where


@dataclasses.dataclass(frozen=True)
class View:
    """How tensors of a shape are seen as matrices ``(T, a, b)``: those of the two axes of their statistics.

    Attributes:
        shape: Of the tensor.
        axes: Its axes: those that count the matrices, then the two of each; none for a vector.
        row: Which of the two is averaged in the row statistics, 0 or 1; ``None`` without statistics.
        pooled: Whether statistics of normalisation are over all matrices of a tensor.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    row: int | None
    pooled: bool

    @staticmethod
    def of(segment: Segment, over: Over) -> View | None:
        """The view of a tensor, ``None`` if it is not a stack of matrices.

        Example:
            >>> from nfn_opt.weight_space import WeightSpace
            >>> space = WeightSpace.independent({"conv": torch.zeros(8, 4, 3, 3)})
            >>> view = View.of(Segment.of(space["conv"]), "tensor")
            >>> view.axes, view.matrices
            ((2, 3, 0, 1), 9)
        """
        shape, factored = segment.shape, segment.factored
        if factored is None:
            return View(shape, (), None, True)
        own = tuple(sorted(factored))
        others = tuple(axis for axis in range(len(shape)) if axis not in own)
        adjacent = all(b - a == 1 for a, b in itertools.pairwise(others))
        if not adjacent or (several_matrices(len(shape), over) and own != (0, 1)):
            return None
        return View(shape, (*others, *own), own.index(factored[0]), over == "tensor")

    @property
    def matrices(self) -> int:
        """How many matrices a tensor is, T."""
        return math.prod(self.shape[axis] for axis in self.axes[:-2])

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns; a vector is one row."""
        if not self.axes:
            return 1, math.prod(self.shape)
        return self.shape[self.axes[-2]], self.shape[self.axes[-1]]

    def entries(self, x: Tensor) -> Tensor:
        """A tensor as ``(T, a, b)``, a view if it is contiguous."""
        if not self.axes:
            return x.reshape(1, 1, -1)
        return x.reshape(self.shape).permute(self.axes).reshape(self.matrices, *self.matrix)

    def channels(self, x: Tensor) -> Tensor:
        """``(K, *shape)``, with any of the axes of size 1, as ``(T, K, a, b)``; a view if it is contiguous."""
        if not self.axes:
            return x.reshape(1, len(x), 1, -1)
        others, own = self.axes[:-2], self.axes[-2:]
        moved = x.reshape(len(x), *self._averaged(x)).permute(
            *(axis + 1 for axis in others), 0, *(axis + 1 for axis in own)
        )
        return moved.reshape(self.matrices, len(x), *(moved.shape[-2:]))

    def _averaged(self, x: Tensor) -> tuple[int, ...]:
        """The shape of one channel: the whole, or with an axis averaged as ``x`` has it."""
        return self.shape if x[0].numel() == math.prod(self.shape) else tuple(x.shape[1:])

    def back(self, x: Tensor) -> Tensor:
        """``(T, a, b)`` of one tensor in its own shape."""
        if not self.axes:
            return x.reshape(self.shape)
        moved = x.reshape([self.shape[axis] for axis in self.axes])
        return moved.permute(sorted(range(len(self.axes)), key=self.axes.__getitem__))


@dataclasses.dataclass(frozen=True)
class Stack:
    """The matrices of one tensor, or of several small ones, and their running means.

    Attributes:
        view: How each tensor is seen as matrices.
        where: Device and dtype of the arithmetic.
        parameter: ``(T, a, b)``, of any dtype.
        gradient: ``(T, a, b)``, of any dtype.
        momentum: ``(T, M, a, b)``.
        second_moment: ``(T, a, b)``.
        row: ``(T, K, a, b)``, one of them 1 in a matrix; ``None`` where not kept.
        column: Likewise; ``None`` without statistics of rows and columns.
        step: Gradients taken in by each tensor, this one included.
    """

    view: View
    where: Where
    parameter: Tensor
    gradient: Tensor
    momentum: Tensor
    second_moment: Tensor
    row: Tensor | None
    column: Tensor | None
    step: Tensor

    @property
    def factored(self) -> bool:
        """Whether there are row and column statistics."""
        return self.column is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of matrices, rows and columns."""
        return len(self.parameter), *self.view.matrix

    def pooled(self, mean: Tensor) -> Tensor:
        """Statistics ``(T, channels)`` of each matrix, or what all matrices of each tensor have in common."""
        each = self.view.matrices
        if not self.view.pooled or each == 1:
            return mean
        together = mean.reshape(-1, each, mean.shape[1]).mean(1, keepdim=True)
        return together.expand(-1, each, -1).reshape(mean.shape)

    def put_back(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Write the running means of several tensors to their states; those of one are there already."""
        if len(states) == 1:
            return
        sources, targets = [], []
        for key, stacked in self._means().items():
            for one, state in zip(stacked.split(self.view.matrices), states, strict=True):
                entries = key == "second_moment"
                targets.append(self.view.entries(state[key]) if entries else self.view.channels(state[key]))
                sources.append(one)
        torch._foreach_copy_(targets, sources)

    def _means(self) -> dict[str, Tensor]:
        means = {"momentum": self.momentum, "second_moment": self.second_moment}
        factors = {"row": self.row, "column": self.column}
        return {**means, **{key: value for key, value in factors.items() if value is not None}}


def stack(
    view: View,
    where: Where,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
) -> Stack:
    """Stack tensors of the same shape; one alone is not copied."""

    def channels(key: str) -> Tensor | None:
        if key not in states[0]:
            return None
        return together([view.channels(state[key]) for state in states])

    momentum = channels("momentum")
    assert momentum is not None
    return Stack(
        view=view,
        where=where,
        parameter=together([view.entries(p) for p in params]),
        gradient=together([view.entries(g) for g in grads]),
        momentum=momentum,
        second_moment=together([view.entries(state["second_moment"]) for state in states]),
        row=channels("row"),
        column=channels("column"),
        step=torch.stack([state["step"] for state in states]),
    )


def together(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors joined along their first axis; one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
