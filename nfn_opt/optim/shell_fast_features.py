"""The features of :mod:`nfn_opt.optim.features`, written in place for a piece of a tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.optim.features import ENTRY, FACTOR, FACTOR_EPS, MATRIX_ONLY, ROOT_EPS, USES_FACTORS
from nfn_opt.optim.first_layer import FeatureLinear
from nfn_opt.optim.shell_fast_chunks import Scratch, Where
from nfn_opt.optim.shell_fast_stack import Stack


@dataclasses.dataclass(frozen=True)
class Piece:
    """One box of a stack of matrices; each ``(T, channels, rows, columns)``.

    Attributes:
        gradient: Of any dtype, not clipped.
        parameter: Of any dtype.
        momentum: Momenta.
        second_moment: Second moment.
        row: Row statistics, or ``R`` of the module of features; ``None`` where not kept.
        column: ``C``, ``None`` for vectors.
        output: Where the direction goes, ``(T, rows, columns)``.
    """

    gradient: Tensor
    parameter: Tensor
    momentum: Tensor
    second_moment: Tensor
    row: Tensor | None
    column: Tensor | None
    output: Tensor


WRITE: dict[str, Callable[[Workspace, Piece, Tensor], object]] = {
    "clipped_gradient": lambda w, x, out: torch.clamp(w.gradient, -0.1, 0.1, out=out),
    "parameter": lambda w, x, out: out.copy_(x.parameter),
    "second_moment": lambda w, x, out: out.copy_(x.second_moment),
    "scaled_momentum": lambda w, x, out: torch.mul(w.momentum, w.root, out=out),
    "factored_gradient": lambda w, x, out: torch.mul(w.gradient, w.factor, out=out),
    "scaled_gradient": lambda w, x, out: torch.mul(w.gradient, w.root, out=out),
    "factored_momentum": lambda w, x, out: torch.mul(w.momentum, w.factor, out=out),
}
"""Features that are written to ``(T, channels, rows, columns)``; the others are there from the beginning."""

USES_ROOT = frozenset({"scaled_momentum", "inverse_root", "scaled_gradient"})


class Features:
    """Which features tensors of a kind have, and where they lie in the buffer ``(T, channels + 1, m)``.

    The last channel is one, so that a bias is a column of the weight.

    Args:
        first: The first layer of the rule.
        factored: Whether the tensors have row and column statistics.
        also: Features that are written, with one channel each, whether the layer reads them or not.
    """

    def __init__(self, first: FeatureLinear, factored: bool, also: tuple[str, ...] = ()) -> None:
        self.names = [f for f in first.features if f in ENTRY and (factored or f not in MATRIX_ONLY)]
        self.unread = [f for f in also if f not in self.names]
        self.slots: dict[str, slice] = {}
        self.columns: list[int] = []
        for name in self.names:
            width = len(first.columns[name])
            self.slots[name] = slice(len(self.columns), len(self.columns) + width)
            self.columns += first.columns[name]
        for i, name in enumerate(self.unread, len(self.columns)):
            self.slots[name] = slice(i, i + 1)
        self.channels = len(self.columns) + len(self.unread)
        self.uses_root = not USES_ROOT.isdisjoint(self.names)
        self.uses_factor = not USES_FACTORS.isdisjoint(self.names)
        self.sides = [
            [f for f in first.features if factored and f in FACTOR and FACTOR[f][0] == i] for i in (0, 1)
        ]

    def weight(self, first: FeatureLinear, squares: Tensor) -> Tensor:
        """The first layer's weight, the normalisation included, ``(T, H, channels)``.

        Args:
            first: The first layer, on the device of the tensors.
            squares: Mean square of each channel, ``(T, channels)``.
        """
        weight = F.pad(first.weight[:, self.columns], (0, len(self.unread)))
        return weight * torch.rsqrt(squares + first.eps).unsqueeze(1)

    def part(self, first: FeatureLinear, which: int, mean: Tensor, stack: Stack) -> Tensor | None:
        """What row (0) or column (1) features add, ``(T, H, a, b)`` with one of them 1; ``None`` without."""
        names = self.sides[which]
        if not names:
            return None
        x = torch.cat([FACTOR[name][1](mean) for name in names], dim=1).flatten(2)
        columns = [column for name in names for column in first.columns[name]]
        squares = stack.pooled(x.square().mean(2))
        weight = first.weight[:, columns] * torch.rsqrt(squares + first.eps).unsqueeze(1)
        return torch.bmm(weight, x).reshape(len(x), -1, *mean.shape[2:])


class Workspace:
    """The buffers for boxes of one shape.

    Args:
        features: The features that are written.
        widths: Of the hidden layers.
        like: Any box of this shape.
        name: Begins the names of the buffers: workspaces with other names have other buffers.
        where: Device and dtype of the arithmetic.
        scratch: Where the buffers come from.
        beside: Whether the first layer has one more channel, that goes past the network.
    """

    def __init__(
        self,
        features: Features,
        widths: tuple[int, ...],
        like: Piece,
        name: str,
        where: Where,
        scratch: Scratch,
        beside: bool = False,
    ) -> None:
        T, M, *box = like.momentum.shape
        self.features, self.box = features, tuple(box)
        x = scratch.take(f"{name} features", where, T, features.channels + 1, *box)
        x[:, -1].fill_(1)
        self.inputs = x.view(T, features.channels + 1, -1)
        """Features, and a channel of ones, ``(T, channels + 1, m)``."""
        self.channels = self.inputs[:, :-1]
        self._writes = [(WRITE[f], x[:, slot]) for f, slot in features.slots.items() if f in WRITE]

        def slot(feature: str, width: int) -> Tensor:
            if feature in features.slots:
                return x[:, features.slots[feature]]
            return scratch.take(f"{name} {feature}", where, T, width, *box)

        self.gradient: Tensor = slot("gradient", 1)
        self.momentum: Tensor = slot("momentum", M)
        self.root: Tensor = slot("inverse_root", 1) if features.uses_root else self.gradient
        self.factor: Tensor = self.gradient
        if features.uses_factor:
            assert like.row is not None
            self.factor = scratch.take(f"{name} factor", where, T, like.row.shape[1], *box)
        self.strided = not like.second_moment.is_contiguous() and like.second_moment.shape[0] > 1
        self.clipped = (
            scratch.take_like(f"{name} clipped", where, like.second_moment) if self.strided else self.gradient
        )
        """The clipped gradient, its axes in memory as in the running means, ``(T, 1, rows, columns)``."""
        self.square = scratch.take_like(f"{name} square", where, like.second_moment)
        m = self.inputs.shape[2]
        self.hidden = [
            scratch.take(f"{name} hidden {i % 2}", where, T, width + 1, m) for i, width in enumerate(widths)
        ]
        self.heads = [one[:, :-1] for one in self.hidden]
        """Hidden layers ``(T, width, m)``; every other one is in the same place."""
        self.begin = self.hidden[0] if beside else self.heads[0]
        """What the first layer writes, ``(T, H, m)``."""
        self.beside = self.hidden[0][:, -1:] if beside else None
        """Its last channel where that goes past the network, ``(T, 1, m)``; overwritten by the ones."""
        self.viewed = self.begin.unflatten(2, tuple(box))
        self.result = scratch.take(f"{name} result", where, T, 1, m)

    def ready(self, layer: int) -> Tensor:
        """A hidden layer after its ReLU, and a channel of ones, ``(T, width + 1, m)``."""
        self.heads[layer].relu_()
        self.hidden[layer][:, -1].fill_(1)
        return self.hidden[layer]

    def products(self) -> Tensor:
        """Sums of products of the gradient with each momentum, ``(T, M)``; both must be features."""
        momentum, gradient = (self.inputs[:, self.features.slots[f]] for f in ("momentum", "gradient"))
        return torch.bmm(momentum, gradient.mT).squeeze(2)

    def clip(self, piece: Piece, limit: float) -> Tensor:
        """Write the clipped gradient; returns it with its axes in memory as in the running means."""
        if piece.gradient.dtype == self.clipped.dtype:
            return torch.clamp(piece.gradient, -limit, limit, out=self.clipped)
        return self.clipped.copy_(piece.gradient).clamp_(-limit, limit)

    def write(self, piece: Piece) -> None:
        """Write all features of a box whose gradient is clipped and in the running means."""
        if self.strided:
            self.gradient.copy_(self.clipped)
        self.momentum.copy_(piece.momentum)
        if self.features.uses_root:
            torch.add(piece.second_moment, ROOT_EPS, out=self.root).rsqrt_()
        if self.features.uses_factor:
            assert piece.row is not None
            if piece.column is None:
                torch.add(piece.row, FACTOR_EPS, out=self.factor).rsqrt_()
            else:
                torch.mul(piece.row, piece.column, out=self.factor)
        for write, out in self._writes:
            write(self, piece, out)
