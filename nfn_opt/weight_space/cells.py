"""Cutting tensors where an axis passes from one group to the next.

An axis may be made of several groups one behind the other: the input channels of a convolution behind a
concatenating skip, or the packed queries, keys and values of an attention layer. Cut there, every tensor falls into
*cells* whose axes each carry one group or none, which is what layers work on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfn_opt.weight_space.spec import Axis, TensorSpec

if TYPE_CHECKING:
    from nfn_opt.weight_space.space import Features, WeightSpace


class Cells:
    """The cells of a weight space, and the way there and back.

    Without concatenated axes every tensor is its own cell, and nothing is copied.

    Attributes:
        space: The weight space whose parameters are the cells. The cells of a tensor that is cut are named after
            it and numbered, such as ``conv.weight[1]``.

    Example:
        >>> from nfn_opt.weight_space import WeightSpace
        >>> both = Axis.concatenated([(Axis("h1", 2),), (Axis("h2", 3),)], "in")
        >>> space = WeightSpace((TensorSpec("w", (4, 5), (Axis("h3", 4), both)),))
        >>> print(*space.cells.space.parameters, sep=", ")
        w[0] (h3:4, h1:2), w[1] (h3:4, h2:3)
        >>> cells = space.cells.split({"w": torch.ones(1, 4, 5, 7)})
        >>> cells["w[1]"].shape, space.cells.join(cells)["w"].shape
        (torch.Size([1, 4, 3, 7]), torch.Size([1, 4, 5, 7]))
    """

    def __init__(self, space: WeightSpace) -> None:
        self._parameters = space.parameters
        self._axes = {spec.name: list(_cells(spec.axes)) for spec in space.parameters}
        self.trivial = all(len(cells) == 1 for cells in self._axes.values())
        specs: list[TensorSpec] = []
        for spec in space.parameters:
            for name, axes in zip(self.names(spec.name), self._axes[spec.name], strict=True):
                whole = len(self._axes[spec.name]) == 1
                specs.append(spec if whole else TensorSpec(name, tuple(a.size for a in axes), axes))
        self.space: WeightSpace = (
            space if self.trivial else replace(space, parameters=tuple(specs), buffers=(), aliases=())
        )

    def names(self, parameter: str) -> list[str]:
        """Names of the cells of a parameter, in the order of its entries."""
        count = len(self._axes[parameter])
        return [parameter] if count == 1 else [f"{parameter}[{i}]" for i in range(count)]

    def split(self, features: Mapping[str, Tensor]) -> Features:
        """Weight features of the cells, as views: ``{name: (B, *axes, C)}``."""
        if self.trivial:
            return dict(features)
        cells: Features = {}
        for spec in self._parameters:
            cells.update(zip(self.names(spec.name), _cut(spec.axes, features[spec.name]), strict=True))
        return cells

    def join(self, cells: Mapping[str, Tensor]) -> Features:
        """Weight features of the parameters from those of their cells."""
        if self.trivial:
            return dict(cells)
        return {
            spec.name: _join(spec.axes, iter([cells[name] for name in self.names(spec.name)]))
            for spec in self._parameters
        }


def _first_concatenated(axes: tuple[Axis, ...]) -> int | None:
    return next((i for i, axis in enumerate(axes) if axis.parts), None)


def _cells(axes: tuple[Axis, ...]) -> Iterator[tuple[Axis, ...]]:
    """The axes of every cell; a part takes over the role of the axis that it is a part of."""
    position = _first_concatenated(axes)
    if position is None:
        yield axes
        return
    for part in axes[position].parts:
        inner = tuple(replace(axis, role=axes[position].role) for axis in part)
        yield from _cells((*axes[:position], *inner, *axes[position + 1 :]))


def _cut(axes: tuple[Axis, ...], tensor: Tensor) -> Iterator[Tensor]:
    """The cells of features ``(B, *axes, C)``."""
    position = _first_concatenated(axes)
    if position is None:
        yield tensor
        return
    parts = axes[position].parts
    pieces = tensor.split(
        [prod([axis.size for axis in part]) for part in parts], dim=1 + position
    )  # lists: compilable
    for part, piece in zip(parts, pieces, strict=True):
        shape = (*tensor.shape[: 1 + position], *(a.size for a in part), *tensor.shape[2 + position :])
        yield from _cut((*axes[:position], *part, *axes[position + 1 :]), piece.reshape(shape))


def _join(axes: tuple[Axis, ...], cells: Iterator[Tensor]) -> Tensor:
    """Features ``(B, *axes, C)`` from their cells."""
    position = _first_concatenated(axes)
    if position is None:
        return next(cells)
    pieces = []
    for part in axes[position].parts:
        piece = _join((*axes[:position], *part, *axes[position + 1 :]), cells)
        size = prod([axis.size for axis in part])
        rest = piece.shape[1 + position + len(part) :]
        pieces.append(piece.reshape(*piece.shape[: 1 + position], size, *rest))
    return torch.cat(pieces, dim=1 + position)
