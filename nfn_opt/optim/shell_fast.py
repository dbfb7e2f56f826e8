r"""The update of rules with a small network for every weight, in place and piece by piece, for an optimizer's step.

The pure rule makes a new tensor of every feature. Here the running means are updated in place, the features
of one piece of a tensor at a time are written into one buffer that fits a cache, and all buffers are used
again, so that a step needs four bytes of memory for each weight of the largest tensor, and a constant; making
matrices orthogonal needs a few copies of one more. What becomes of the network's output is the rule's
:class:`~nfn_opt.optim.shell_fast_forms.Form`.

The first layer reads normalised features, so two passes over a tensor are needed: the first updates the
running means and sums the squares of the features, the second computes them anew and applies the network.
Row and column features never become large: they are mapped to the hidden layer first. Small tensors of the
same shape are worked on together, and so are the matrices that the kernel of a convolution consists of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nfn_opt.optim.features import FACTOR_EPS
from nfn_opt.optim.layout import Layout, Segment
from nfn_opt.optim.rule import UpdateRule
from nfn_opt.optim.shell_fast_chunks import Grid, Scratch, Where, chunk_size
from nfn_opt.optim.shell_fast_features import Features, Piece, Workspace
from nfn_opt.optim.shell_fast_forms import Form, Output, Sums, Told
from nfn_opt.optim.shell_fast_mlp import MLPForm
from nfn_opt.optim.shell_fast_spectral import SpectralForm
from nfn_opt.optim.shell_fast_stack import Stack, View, stack
from nfn_opt.optim.shell_parameters import Entry
from nfn_opt.weight_space import WeightSpace

FORMS: tuple[type[Form], ...] = (MLPForm, SpectralForm)
"""The rules that are known here."""


class FastStep:
    """Applies a rule with a small network for every weight to parameters, in place.

    Args:
        rule: A rule that :meth:`supports` accepts, on the device and in the dtype of the arithmetic.
        where: That device and dtype.
        scratch: Buffers, shared between all.
    """

    least = 8192
    """Parameters with fewer weights in all are left to the rule itself, which then takes fewer operations."""

    def __init__(self, rule: UpdateRule, where: Where, scratch: Scratch) -> None:
        (form,) = _forms(rule)
        self.form, self.where, self.scratch = form(rule), where, scratch
        self.features = {
            factored: Features(self.form.first, factored, form.also) for factored in (True, False)
        }
        means, (device, dtype) = self.form.accumulators, where
        self.momentum_rates, self.factor_rates = (
            torch.tensor([1 - d for d in decays], device=device, dtype=dtype).reshape(-1, 1, 1)
            for decays in (means.momentum_decays, means.factor_decays)
        )
        assert means.second_moment_decay is not None
        self.second_moment_rate = 1 - means.second_moment_decay

    @staticmethod
    def supports(rule: UpdateRule) -> bool:
        """Whether this computes what the rule does, with a result that is finite for finite gradients."""
        return bool(_forms(rule))

    def takes(self, space: WeightSpace, key: str) -> bool:
        """Whether a tensor is worked on here; others are left to the rule itself."""
        return self.view(Layout.of(space, (key,)).segments[0]) is not None

    def view(self, segment: Segment) -> View | None:
        """How a tensor is worked on, ``None`` if it is left to the rule itself."""
        view = View.of(segment, self.form.over) if self.form.takes(segment) else None
        return None if view is None or view.matrices > chunk_size(self.where[0]) else view

    def updates(
        self,
        found: Sequence[Entry],
        grads: Mapping[str, Tensor],
        states: Mapping[str, dict[str, Tensor]],
        *,
        space: WeightSpace,
        step: Tensor,
        total_steps: Tensor | None = None,
    ) -> Iterator[tuple[Entry, Tensor]]:
        """Update running means in place, and give the update of each parameter.

        Args:
            found: The parameters, of those that :meth:`takes` accepts.
            grads: Their gradients by key; finite.
            states: Their states by key, contiguous.
            space: Their weight space.
            step: Number of updates made before this one, shape ``()``.
            total_steps: Number of updates of the training, shape ``()``, where known.

        Yields:
            A parameter and its update, in its shape, to be *added*; it is overwritten when the next is asked for.
        """
        told = Told.at(self.where, step, total_steps, space)
        bias = self.form.first._bias(told.time)
        segments = Layout.of(space, tuple(entry.key for entry in found)).segments
        torch._foreach_add_([states[entry.key]["step"] for entry in found], 1)
        for entries, segment in _alike(found, segments, chunk_size(self.where[0])):
            view = self.view(segment)
            assert view is not None
            own = [states[entry.key] for entry in entries]
            params = [entry.param.detach() for entry in entries]
            one = stack(view, self.where, params, [grads[entry.key] for entry in entries], own)
            direction, sums = self._direction(one, bias)
            one.put_back(own)
            updates = self.form.finish(Output(segment, one, direction, sums, own), told)
            for entry, update in zip(entries, updates, strict=True):
                yield entry, update.reshape(entry.param.shape)
        self.scratch.trim()

    def _direction(self, stack: Stack, bias: Tensor) -> tuple[Tensor, Sums]:
        """The directions ``(T, a, b)``, and sums over the features; the running means take in the gradient."""
        form, (T, a, b) = self.form, stack.shape
        features = self.features[stack.factored]
        grid = Grid.of(a, b, max(1, chunk_size(self.where[0]) // T))
        direction = self.scratch.take("direction", self.where, T, a, b)
        if stack.factored:
            self._accumulate_factors(stack, grid)
        boxes = _pieces(stack, grid, direction)
        spaces = self._workspaces(features, boxes)
        norms, products = [], []
        for piece, space in zip(boxes, spaces, strict=True):
            gradient = space.clip(piece, form.clip)
            self._accumulate(piece, gradient, space.square, stack.factored)
            space.write(piece)
            norms.append(torch.linalg.vector_norm(space.channels, dim=2))
            if form.compares:
                products.append(space.products())
        sums = Sums(
            features, torch.stack(norms).square_().sum(0), torch.stack(products).sum(0) if products else None
        )
        weight = features.weight(form.first, stack.pooled(sums.squares / (a * b)))
        parts = self._parts(stack, features, bias)
        if not parts:
            weight = torch.cat([weight, bias.reshape(1, -1, 1).expand(T, -1, 1)], dim=2)
        last = len(boxes) - 1  # its features are still there
        cut = list(zip(*(grid.split(part) for part in parts), strict=True)) or [()] * len(boxes)
        for i in range(last, -1, -1):
            if i < last:
                spaces[i].clip(boxes[i], form.clip)
                spaces[i].write(boxes[i])
            self._network(spaces[i], weight, cut[i], boxes[i].output)
            form.add_base(stack, boxes[i], spaces[i].square)
        return direction, sums

    def _workspaces(self, features: Features, boxes: Sequence[Piece]) -> list[Workspace]:
        """One for the first box and all of its shape; boxes of other shapes have buffers of their own."""
        widths = tuple(layer.shape[2] - 1 for layer in self.form.layers)
        made: dict[torch.Size, Workspace] = {}
        for box in boxes:
            shape = box.momentum.shape
            if shape not in made:
                made[shape] = Workspace(
                    features, widths, box, f"{len(made)}", self.where, self.scratch, self.form.beside
                )
        return [made[box.momentum.shape] for box in boxes]

    def _accumulate_factors(self, stack: Stack, grid: Grid) -> None:
        """Take the gradient into the row and column statistics."""
        assert stack.row is not None
        assert stack.column is not None
        means = (stack.row, stack.column)
        sums = [torch.zeros_like(mean[:, 0]) for mean in means]
        row = 1 + int(stack.view.row or 0)
        axes, clip = (row, 3 - row), self.form.clip
        for gradient, *totals in zip(grid.split(stack.gradient), *map(grid.split, sums), strict=True):
            square = self.scratch.take_like("squared", self.where, gradient)
            square.copy_(gradient).clamp_(-clip, clip).square_()
            for axis, total in zip(axes, totals, strict=True):
                total.add_(square.sum(axis, keepdim=True))
        for axis, mean, total in zip(axes, means, sums, strict=True):
            mean.lerp_((total / stack.shape[axis]).unsqueeze(1), self.factor_rates)

    def _accumulate(self, piece: Piece, gradient: Tensor, square: Tensor, factored: bool) -> None:
        """Take the gradient of a box into the momenta and second moments."""
        piece.momentum.lerp_(gradient, self.momentum_rates)
        torch.mul(gradient, gradient, out=square)
        piece.second_moment.lerp_(square, self.second_moment_rate)
        if piece.row is not None and not factored:
            piece.row.lerp_(square, self.factor_rates)

    def _parts(self, stack: Stack, features: Features, bias: Tensor) -> list[Tensor]:
        """What is added to the first layer's products: the bias too, if there is anything else."""
        parts = []
        for which, mean in enumerate((stack.row, stack.column)):
            part = None if mean is None else features.part(self.form.first, which, mean, stack)
            if part is not None:
                parts.append(part)
        if parts:
            parts[0] += bias.reshape(-1, 1, 1)
        return parts

    def _network(self, space: Workspace, weight: Tensor, parts: tuple[Tensor, ...], output: Tensor) -> None:
        """The correction of a box from its features, to ``output``, ``(T, rows, columns)``."""
        if len(parts) == 2:
            torch.add(parts[0], parts[1], out=space.viewed)
        elif parts:
            space.viewed.copy_(parts[0])
        if parts:
            space.begin.baddbmm_(weight, space.channels)
        else:
            torch.bmm(weight, space.inputs, out=space.begin)
        T, layers = len(weight), self.form.layers
        out = output.view(T, 1, -1) if output.is_contiguous() else space.result
        if space.beside is not None:
            out.copy_(space.beside)
        for i, layer in enumerate(layers[:-1]):
            torch.bmm(layer.expand(T, -1, -1), space.ready(i), out=space.heads[i + 1])
        last, hidden = layers[-1].expand(T, -1, -1), space.ready(len(layers) - 1)
        if space.beside is not None:
            out.baddbmm_(last, hidden)
        else:
            torch.bmm(last, hidden, out=out)
        if out is space.result:
            output.copy_(out.view(output.shape))


def _pieces(stack: Stack, grid: Grid, direction: Tensor) -> list[Piece]:
    """The boxes of a stack of matrices."""
    row, column = _factors(stack) if stack.factored else (stack.row, None)
    found = (
        stack.gradient.unsqueeze(1),
        stack.parameter.unsqueeze(1),
        stack.momentum,
        stack.second_moment.unsqueeze(1),
        row,
        column,
        direction,
    )
    cut = [[None] * len(grid) if x is None else grid.split(x) for x in found]
    return [Piece(*box) for box in zip(*cut, strict=True)]


def _forms(rule: UpdateRule) -> list[type[Form]]:
    """The form of a rule, or none."""
    return [form for form in FORMS if form.fits(rule)][:1]


def _alike(
    found: Sequence[Entry], segments: Sequence[Segment], limit: int
) -> Iterator[tuple[list[Entry], Segment]]:
    """Small tensors of the same shape together, each other one by itself."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[tuple[Entry, Segment]]] = {}
    for entry, segment in zip(found, segments, strict=True):
        by_shape.setdefault((segment.shape, tuple(segment.spec.shape)), []).append((entry, segment))
    for pairs in by_shape.values():
        together = max(1, limit // pairs[0][1].spec.numel)
        for start in range(0, len(pairs), together):
            some = pairs[start : start + together]
            yield [entry for entry, _ in some], some[0][1]


def _factors(stack: Stack) -> tuple[Tensor, Tensor]:
    """``R`` and ``C`` of the module of features, shapes as the statistics of rows and columns."""
    assert stack.row is not None
    assert stack.column is not None
    kept = 3 - int(stack.view.row or 0)  # the axis that the row statistics have
    relative = stack.row / (stack.row.mean(kept, keepdim=True) + FACTOR_EPS)
    return relative.clamp_(min=FACTOR_EPS).rsqrt_(), stack.column.clamp(min=FACTOR_EPS).rsqrt_()
