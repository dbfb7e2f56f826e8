"""Attention with gradients by hand, on a part of the batch at a time.

On a CPU, queries, keys, values and tokens of a whole batch are large new arrays, which costs more than the arithmetic
on them. In chunks they are small and their memory is used again. For gradients every chunk is computed once more, as
in activation checkpointing, unless all of them fit into one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from nfn_opt.layers.attention_core import MANY_TOKENS, Projection, attend, constants
from nfn_opt.layers.attention_plan import AttentionPlan, AxisGroup, gather, scatter
from nfn_opt.layers.compilation import transformed
from nfn_opt.layers.pool import empty

LARGE = 1 << 23
"""Bytes from which on new memory is asked for in large pages."""

_SMALL = 1 << 18

CHUNK_BYTES = 3 << 23
"""Bytes of queries, keys, values and tokens that are worked on at a time."""


def attend_in_chunks(
    plan: AttentionPlan, inputs: list[Tensor], projections: list[Projection], heads: int
) -> list[Tensor]:
    """The same as :func:`attend` without dropout, faster on a CPU."""
    many = any(group.tokens >= MANY_TOKENS for group in plan.groups)
    if transformed() or many or inputs[0].device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return attend(plan, inputs, projections, heads)
    shared = projections[0].key_bias is None
    weights = [t for p in (projections[:1] if shared else projections) for t in _tensors(p)]
    call = _Call(plan, heads, _chunk(plan, inputs, projections, heads), shared)
    return list(_Attend.apply(call, len(inputs), *inputs, *weights))


def _tensors(projection: Projection) -> list[Tensor]:
    fields = (projection.weight, projection.query_bias, projection.value_bias, projection.key_bias)
    return [t for t in (*fields, projection.out, projection.out_bias) if t is not None]


def _chunk(
    plan: AttentionPlan, inputs: Sequence[Tensor], projections: Sequence[Projection], heads: int
) -> int:
    """Number of networks at a time."""
    channels = projections[0].query_bias.shape[0]
    entries = sum(layout.entries * (1 + len(layout.attended)) for layout in plan.layouts)
    size = 3 * channels * entries * inputs[0].element_size()
    size += sum(heads * group.tokens**2 for group in plan.groups) * inputs[0].element_size()
    return max(1, CHUNK_BYTES // size)


@dataclass(frozen=True)
class _Call:
    """What is the same for all chunks.

    Attributes:
        plan: Layouts and groups.
        heads: Number of heads.
        chunk: Networks at a time.
        shared: Whether there is one projection for all tensors.
    """

    plan: AttentionPlan
    heads: int
    chunk: int
    shared: bool

    def chunks(self, batch: int) -> Iterator[slice]:
        """The parts of a batch."""
        return (slice(i, i + self.chunk) for i in range(0, batch, self.chunk))

    def projections(self, weights: Sequence[Tensor]) -> list[Projection]:
        """The projection of every tensor, from their fields one behind the other."""
        count = len(self.plan.layouts)
        if self.shared:
            return [Projection(*weights)] * count
        fields = len(weights) // count
        return [Projection(*weights[i * fields : (i + 1) * fields]) for i in range(count)]


@dataclass
class _Chunk:
    """What a part of the batch is computed with, kept for its gradients.

    Attributes:
        tokens: For every group what :func:`gather` gives, queries, keys and values.
        weights: For every group the attention ``(B * heads, tokens, tokens)``.
        mixed: For every tensor the sum of the attentions, ``(B, C, entries)``.
    """

    tokens: list[Tensor]
    weights: list[Tensor]
    mixed: list[Tensor]


class _Buffers:
    """Memory that is used again for every chunk: new memory costs more than copying."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._flat: dict[tuple[str, int], Tensor] = {}

    def empty(self, name: str, index: int, shape: tuple[int, ...]) -> Tensor:
        """A tensor that overwrites the last one of that name and index."""
        flat, size = self._flat.get((name, index)), prod(shape)
        if flat is None or len(flat) < size:
            flat = self._flat[name, index] = empty((size,), self._like, LARGE)
        return flat[:size].view(shape)


def _project(x: Tensor, projection: Projection, projected: Tensor) -> Tensor:
    """Queries, keys and values ``(B, 3 * C, entries)``."""
    torch.bmm(projection.weight.expand(x.shape[0], -1, -1), x.mT, out=projected)
    if projection.key_bias is None:
        projected[:, : len(projection.query_bias)] += projection.query_bias[:, None]
    else:
        biases = (projection.query_bias, projection.key_bias, projection.value_bias)
        projected += torch.cat(biases)[:, None]
    return projected


def _flat(tokens: Tensor, group: AxisGroup) -> Tensor:
    """What :func:`gather` gives as matrices ``(kinds, B * heads, tokens, d)``, maybe transposed in memory."""
    if group.tokens_last:
        return tokens.flatten(3, 4).flatten(1, 2).mT
    return tokens.flatten(4).flatten(1, 2)


def _product(left: Tensor, right: Tensor, out: Tensor, group: AxisGroup, scale: float = 1.0) -> None:
    """Write a scaled product to tokens, in the order of their memory."""
    if group.tokens_last:
        left, right, out = right.mT, left.mT, out.mT
    torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _forward(
    call: _Call,
    inputs: Sequence[Tensor],
    projections: Sequence[Projection],
    buffers: _Buffers,
    mix: bool = True,
) -> _Chunk:
    """Tokens and attention of a chunk, and if wanted what they give."""
    plan, heads = call.plan, call.heads
    batch, channels = len(inputs[0]), len(projections[0].query_bias)

    def empty(name: str, rows: int) -> list[Tensor]:
        return [buffers.empty(name, i, (batch, rows, x.shape[1])) for i, x in enumerate(inputs)]

    entries = zip(inputs, projections, empty("projected", 3 * channels), strict=True)
    projected = [_project(*entry) for entry in entries]
    chunk = _Chunk([], [], empty("mixed", channels) if mix else [])
    written: set[int] = set()
    for i, group in enumerate(plan.groups):
        shape = group.shape(3, batch, heads, channels)
        tokens = gather(plan, group, projected, buffers.empty("tokens", i, shape))
        query, key, value = _flat(tokens, group)
        scale = 1.0 / math.sqrt(key.shape[-1])
        scores = buffers.empty("scores", i, (batch * heads, group.tokens, group.tokens))
        torch.baddbmm(scores, query, key.mT, beta=0, alpha=scale, out=scores)
        chunk.tokens.append(tokens)
        chunk.weights.append(torch.softmax(scores, -1, out=scores))
        if mix:
            mixed = buffers.empty("mixed tokens", 0, (1, *shape[1:]))
            _product(chunk.weights[i], value, _flat(mixed, group)[0], group)
            scatter(plan, group, mixed, chunk.mixed, written)
    return chunk


def _write(
    call: _Call,
    chunk: _Chunk,
    means: Sequence[Tensor],
    projections: Sequence[Projection],
    outputs: Sequence[Tensor],
) -> None:
    """Map what was mixed to channels last, with the constants added."""
    for layout, mixed, mean, p, out in zip(
        call.plan.layouts, chunk.mixed, means, projections, outputs, strict=True
    ):
        mean = layout.broadcast(mean)
        if not layout.attended:
            out.copy_(mean)
        elif p.out is None:
            torch.add(mixed.mT, mean, out=out)
        else:
            torch.baddbmm(mean, mixed.mT, p.out.mT.expand(len(out), -1, -1), out=out)


class _Attend(torch.autograd.Function):
    """Forward and backward in chunks."""

    @staticmethod
    def forward(ctx: Any, call: _Call, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, projections = tensors[:count], call.projections(tensors[count:])
        means = [layout.mean(x) for x, layout in zip(inputs, call.plan.layouts, strict=True)]
        added = constants(call.plan, means, projections, call.heads)
        outputs = tuple(empty(x.shape, x, LARGE) for x in inputs)
        keep = call.chunk >= len(inputs[0]) and any(ctx.needs_input_grad)
        chunk, buffers = None, _Buffers(inputs[0])
        for part in call.chunks(len(inputs[0])):
            chunk = _forward(call, [x[part] for x in inputs], projections, buffers)
            _write(call, chunk, [m[part] for m in added], projections, [out[part] for out in outputs])
        ctx.call, ctx.count = call, count
        ctx.chunk = chunk if keep else None
        if chunk is not None and projections[0].out is None:
            chunk.mixed = []  # its gradients do not need it
        ctx.save_for_backward(*tensors, *means)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        call, count, needed = ctx.call, ctx.count, ctx.needs_input_grad[2:]
        tensors, means = ctx.saved_tensors[:-count], ctx.saved_tensors[-count:]
        if torch.is_grad_enabled():
            return None, None, *_differentiable(call, count, tensors, needed, gradients)
        kept, ctx.chunk = ctx.chunk, None  # used up; a second backward pass computes it again
        totals = _Backward(call, tensors[:count], tensors[count:], means, gradients).run(kept)
        return None, None, *(t if need else None for t, need in zip(totals, needed, strict=True))


def _differentiable(
    call: _Call, count: int, tensors: Sequence[Tensor], needed: Sequence[bool], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, by those of the plain function."""
    outputs = attend(call.plan, list(tensors[:count]), call.projections(tensors[count:]), call.heads)
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
    results = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True))
    return [next(results) if need else None for need in needed]


class _Sum:
    """A sum of products over networks: for small ones of each network apart, in one call; for large ones at once."""

    def __init__(self, like: Tensor, count: int) -> None:
        self._apart = count * like.numel() <= _SMALL
        self._sum = like.new_zeros(count, *like.shape) if self._apart else torch.zeros_like(like)

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add the products of the matrices of some networks."""
        if self._apart:
            self._sum[: len(left)].baddbmm_(left, right)
            return
        for one, other in zip(left, right, strict=True):
            self._sum.addmm_(one, other)

    def total(self) -> Tensor:
        """The sum."""
        return self._sum.sum(0) if self._apart else self._sum


class _Backward:
    """Gradients of inputs and weights, from those of the outputs."""

    def __init__(
        self,
        call: _Call,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        means: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        self.call, self.inputs, self.gradients = call, inputs, gradients
        self.projections = call.projections(weights)
        self.of_inputs: list[Tensor] = []
        self.buffers = _Buffers(inputs[0])
        self._start(weights, means)

    def _start(self, weights: Sequence[Tensor], means: Sequence[Tensor]) -> None:
        """Gradients through the constants: of all weights, and of the means."""
        layouts = self.call.plan.layouts
        sums = [layout.mean(g) * layout.count for g, layout in zip(self.gradients, layouts, strict=True)]
        leaves = [t.detach().requires_grad_() for t in (*means, *weights)]
        with torch.enable_grad():
            projections = self.call.projections(leaves[len(means) :])
            added = constants(self.call.plan, leaves[: len(means)], projections, self.call.heads)
        found = torch.autograd.grad(added, leaves, sums, materialize_grads=True)
        self.of_means = [
            layout.broadcast(g * (1.0 / layout.count))
            for g, layout in zip(found[: len(means)], layouts, strict=True)
        ]
        self.of_weights = list(found[len(means) :])
        step = len(weights) if self.call.shared else len(weights) // len(layouts)
        self.fields = step
        count = min(self.call.chunk, len(self.inputs[0]))
        owners = weights[::step]
        self.products = [_Sum(w, count) for w in owners]
        self.back_products = [_Sum(w, count) for w in weights[4::step]] if step > 4 else []

    def run(self, kept: _Chunk | None) -> list[Tensor]:
        """All gradients, inputs first."""
        for part in self.call.chunks(len(self.inputs[0])):
            inputs = [x[part] for x in self.inputs]
            mix = bool(self.back_products)
            chunk = kept or _forward(self.call, inputs, self.projections, self.buffers, mix)
            self._one(part, inputs, chunk)
        for owner, product in enumerate(self.products):
            self.of_weights[owner * self.fields] += product.total()
        for owner, product in enumerate(self.back_products):
            self.of_weights[owner * self.fields + 4] += product.total()
        return [*self.of_inputs, *self.of_weights]

    def _one(self, part: slice, inputs: list[Tensor], chunk: _Chunk) -> None:
        plan, buffers = self.call.plan, self.buffers
        batch, channels = len(inputs[0]), len(self.projections[0].query_bias)
        of_mixed = [self._of_mixed(i, part, chunk) for i in range(len(inputs))]
        of_projected = [
            buffers.empty("of projected", i, (batch, 3 * channels, x.shape[1])) for i, x in enumerate(inputs)
        ]
        written: set[int] = set()
        # The group with most tokens comes last, when the others' tokens are gone.
        for i in sorted(range(len(plan.groups)), key=lambda i: plan.groups[i].tokens):
            group = plan.groups[i]
            shape = group.shape(3, batch, self.call.heads, channels)
            gradient = gather(plan, group, of_mixed, buffers.empty("gradient", 0, (1, *shape[1:])))
            of_tokens = buffers.empty("of tokens", 0, shape)
            of_scores = buffers.empty("of scores", 0, chunk.weights[i].shape)
            tokens = chunk.tokens[i]
            _backward(tokens, chunk.weights[i], gradient, of_tokens, of_scores, group)
            scatter(plan, group, of_tokens, of_projected, written)
            chunk.tokens[i] = chunk.weights[i] = tokens = of_scores.new_empty(0)
        if not self.of_inputs:
            self.of_inputs = [empty(x.shape, x, LARGE) for x in self.inputs]
        for i, x in enumerate(inputs):
            self._through_projection(i, part, x, of_projected[i])

    def _of_mixed(self, i: int, part: slice, chunk: _Chunk) -> Tensor:
        """Gradient of what was mixed in one tensor, and that of the map back."""
        gradient, back = self.gradients[i][part], self.projections[i].out
        channels = len(self.projections[i].query_bias)
        of_mixed = self.buffers.empty("of mixed", i, (len(gradient), channels, gradient.shape[1]))
        if back is None:
            return of_mixed.copy_(gradient.mT)
        if self.call.plan.layouts[i].attended:
            self.back_products[i].add(gradient.mT, chunk.mixed[i].mT)
        return torch.bmm(back.mT.expand(len(gradient), -1, -1), gradient.mT, out=of_mixed)

    def _through_projection(self, i: int, part: slice, x: Tensor, gradient: Tensor) -> None:
        """Gradients of one tensor's input and projection from those of queries, keys and values."""
        of_mean, out = self.of_means[i][part], self.of_inputs[i][part]
        if not self.call.plan.layouts[i].attended:
            out.copy_(of_mean)
            return
        projection = self.projections[i]
        torch.baddbmm(of_mean, gradient.mT, projection.weight.expand(len(x), -1, -1), out=out)
        owner = 0 if self.call.shared else i
        self.products[owner].add(gradient, x)
        biases = gradient.sum((0, 2)).chunk(3)
        first = owner * self.fields
        self.of_weights[first + 1] = self.of_weights[first + 1] + biases[0]
        if not self.call.shared:
            self.of_weights[first + 2] = self.of_weights[first + 2] + biases[2]
            self.of_weights[first + 3] = self.of_weights[first + 3] + biases[1]


def _backward(
    tokens: Tensor,
    weights: Tensor,
    gradient: Tensor,
    of_tokens: Tensor,
    of_scores: Tensor,
    group: AxisGroup,
) -> None:
    """Write the gradients of queries, keys and values from that of the mixed values."""
    query, key, value = _flat(tokens, group)
    of_query, of_key, of_value = _flat(of_tokens, group)
    of_mixed = _flat(gradient, group)[0]
    scale = 1.0 / math.sqrt(key.shape[-1])
    _product(weights.mT, of_mixed, of_value, group)
    torch.bmm(of_mixed, value.mT, out=of_scores)
    softmax_backward = torch.ops.aten._softmax_backward_data.out
    softmax_backward(of_scores, weights, -1, weights.dtype, grad_input=of_scores)
    _product(of_scores, key, of_query, group, scale)
    _product(of_scores.mT, query, of_key, group, scale)
