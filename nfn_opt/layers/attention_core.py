"""Attention along neuron axes as a pure function of features and projections."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.layers.attention_plan import AttentionPlan, AxisGroup, Layout, Member

_MANY_TOKENS = 2048
"""From so many tokens on, attention weights are not kept in memory."""


@dataclass(frozen=True, eq=False)
class Projection:
    """The weights that map a tensor's features to queries, keys and values, and the result back.

    Attributes:
        weight: For queries, keys and values one below the other, ``(3 * C, fold * C)``.
        query_bias: ``(C,)``.
        value_bias: ``(C,)``.
        key_bias: ``(C,)``; ``None`` where all tensors share the projection: it would add the same number to all
            scores of a query, which the softmax takes away again.
        out: ``(fold * C, C)``, or ``None`` where mixed values are the result.
        out_bias: ``(fold * C,)``, likewise.
    """

    weight: Tensor
    query_bias: Tensor
    value_bias: Tensor
    key_bias: Tensor | None = None
    out: Tensor | None = None
    out_bias: Tensor | None = None


Projected = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one tensor, each ``(B, C, entries)``: neurons next to the channels of a head."""


def attend(
    plan: AttentionPlan,
    inputs: list[Tensor],
    projections: list[Projection],
    heads: int,
    dropout: float = 0.0,
) -> list[Tensor]:
    """The sum of the attentions over every group and of the global one.

    Biases that all tensors share are not added entry by entry: the one of the queries shifts the scores of a key by
    its product with it, and the one of the values comes out of every attention as it went in.

    Args:
        plan: Layouts and groups.
        inputs: Arranged features of every tensor, ``(B, entries, fold * C)``.
        projections: One for each tensor; the same object for all where they share it.
        heads: Number of heads.
        dropout: Probability that the attention of one token to another is dropped.

    Returns:
        For each tensor ``(B, entries, fold * C)``, contiguous.
    """
    first = projections[0]
    shared = all(projection is first for projection in projections)
    projected = [_project(x, p, bias=not shared) for x, p in zip(inputs, projections, strict=True)]
    terms: list[list[Tensor]] = [[] for _ in inputs]
    for group in plan.groups:
        _attend_group(plan, group, projected, first.query_bias if shared else None, heads, dropout, terms)
    means = [layout.mean(x) for x, layout in zip(inputs, plan.layouts, strict=True)]
    added = constants(plan, means, projections, heads)
    written = zip(plan.layouts, terms, added, projections, strict=True)
    return [_write(*entry) for entry in written]


def _project(x: Tensor, projection: Projection, bias: bool) -> Projected:
    batch = x.shape[0]
    query, key, value = projection.weight.chunk(3)
    columns = x.mT

    def product(weight: Tensor, constant: Tensor | None) -> Tensor:
        weight = weight.expand(batch, -1, -1)
        if constant is None:
            return torch.bmm(weight, columns)
        return torch.baddbmm(constant[:, None], weight, columns)

    return (
        product(query, projection.query_bias if bias else None),
        product(key, projection.key_bias if bias else None),
        product(value, projection.value_bias if bias else None),
    )


def _attend_group(
    plan: AttentionPlan,
    group: AxisGroup,
    projected: list[Projected],
    query_bias: Tensor | None,
    heads: int,
    dropout: float,
    terms: list[list[Tensor]],
) -> None:
    """Attention between all tokens over one group; appends ``(B, heads, C / heads, *sizes)`` to the terms."""
    layouts = [plan.layouts[member.index] for member in group.members]
    query, key, value = (
        _all_tokens([projected[m.index][part] for m in group.members], layouts, group.members, heads)
        for part in range(3)
    )
    attention = _Attention(query, key, value, _shift(key, query_bias, group.size, heads), dropout)
    leading = [member for member in group.members if member.leading]
    others = [member for member in group.members if not member.leading]
    rows = sum(member.tokens for member in leading)
    if leading:
        for member, part in zip(leading, _split(attention.transposed(rows), leading, 2), strict=True):
            sizes = plan.layouts[member.index].sizes
            terms[member.index].append(part.reshape(part.shape[0] // heads, heads, -1, *sizes))
    if others:
        for member, part in zip(others, _split(attention.rest(rows), others, 1), strict=True):
            terms[member.index].append(_from_tokens(part, plan.layouts[member.index], member, heads))


class _Attention:
    """Attention between tokens, ``(B * heads, tokens, d)``, read out in two layouts."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, shift: Tensor | None, dropout: float
    ) -> None:
        self.value = value
        self.weights: Tensor | None = None
        scale = 1.0 / math.sqrt(query.shape[-1])
        if query.shape[1] >= _MANY_TOKENS:
            mask = None if shift is None else (scale * shift).expand(-1, query.shape[1], -1)
            self.mixed: Tensor = F.scaled_dot_product_attention(query, key, value, mask, dropout)
            return
        if shift is None:
            scores = torch.bmm(query, key.mT) * scale
        else:
            scores = torch.baddbmm(shift, query, key.mT, beta=scale, alpha=scale)
        weights = torch.softmax(scores, dim=-1)
        self.weights = F.dropout(weights, dropout) if dropout else weights

    def transposed(self, count: int) -> Tensor:
        """The result for the first tokens, ``(B * heads, d, count)``."""
        if self.weights is None:
            return self.mixed[:, :count].mT
        return torch.bmm(self.value.mT, self.weights[:, :count].mT)

    def rest(self, count: int) -> Tensor:
        """The result for the tokens behind them, ``(B * heads, tokens - count, d)``."""
        if self.weights is None:
            return self.mixed[:, count:]
        return torch.bmm(self.weights[:, count:], self.value)


def _shift(key: Tensor, query_bias: Tensor | None, size: int, heads: int) -> Tensor | None:
    """What a shared bias of the queries adds to the scores of every key: ``(B * heads, 1, tokens)``."""
    if query_bias is None:
        return None
    bias = query_bias.reshape(heads, -1, 1).expand(-1, -1, size).reshape(heads, 1, -1)
    bias = bias.repeat(key.shape[0] // heads, 1, 1)
    return torch.bmm(bias, key.mT)


def _all_tokens(
    parts: list[Tensor], layouts: list[Layout], members: tuple[Member, ...], heads: int
) -> Tensor:
    """Tokens of all members, ``(B * heads, tokens, C / heads * neurons)``."""
    tokens = [_tokens(*entry, heads) for entry in zip(parts, layouts, members, strict=True)]
    joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens, 2)
    return joined.reshape(joined.shape[0] * heads, joined.shape[2], -1)


def _tokens(x: Tensor, layout: Layout, member: Member, heads: int) -> Tensor:
    """``(B, C, entries)`` to ``(B, heads, tokens, C / heads, neurons)``."""
    x = x.reshape(x.shape[0], heads, -1, *layout.sizes)
    others = [3 + i for i in range(len(layout.sizes)) if i != member.axis]
    x = x.permute(0, 1, *others, 2, 3 + member.axis)
    return x.reshape(x.shape[0], heads, member.tokens, *x.shape[-2:])


def _from_tokens(part: Tensor, layout: Layout, member: Member, heads: int) -> Tensor:
    """``(B * heads, tokens, C / heads * neurons)`` to ``(B, heads, C / heads, *sizes)``."""
    sizes = list(layout.sizes)
    size = sizes.pop(member.axis)
    part = part.reshape(part.shape[0] // heads, heads, *sizes, -1, size)
    last = part.dim() - 1
    order = list(range(2, last - 1))
    order.insert(member.axis, last)
    return part.permute(0, 1, last - 1, *order)


def _split(tokens: Tensor, members: list[Member], dim: int) -> tuple[Tensor, ...]:
    return tokens.split([member.tokens for member in members], dim) if len(members) > 1 else (tokens,)


def constants(
    plan: AttentionPlan, means: list[Tensor], projections: list[Projection], heads: int
) -> list[Tensor]:
    """What is added to all entries of a tensor alike: attention among the means of all tensors, and shared biases.

    Args:
        plan: Layouts and groups.
        means: For every tensor ``(B, positions, fold * C)``.
        projections: One for each tensor.
        heads: Number of heads.

    Returns:
        For every tensor ``(B, positions, fold * C)``.
    """
    counts = [layout.positions for layout in plan.layouts]
    first = projections[0]
    shared = all(projection is first for projection in projections)
    if shared:
        query, key, value = (torch.cat(means, 1) @ first.weight.mT).chunk(3, dim=-1)
        query = query + first.query_bias
    else:
        triples = [_project(m, p, bias=True) for m, p in zip(means, projections, strict=True)]
        query, key, value = (torch.cat(parts, 2).mT for parts in zip(*triples, strict=True))
    query, key, value = _heads(query, heads), _heads(key, heads), _heads(value, heads)
    mixed = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1) @ value
    parts = mixed.transpose(1, 2).flatten(2).split(counts, dim=1)
    if shared:
        parts = [part + first.value_bias * float(plan.terms(i)) for i, part in enumerate(parts)]
    return [
        part if p.out is None else F.linear(part, p.out, p.out_bias)
        for part, p in zip(parts, projections, strict=True)
    ]


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(B, tokens, C)`` to ``(B, heads, tokens, C / heads)``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _write(layout: Layout, terms: list[Tensor], added: Tensor, projection: Projection) -> Tensor:
    """Add up what was attended, map back to ``(B, entries, fold * C)``, and add what all entries have in common."""
    added = layout.broadcast(added)
    if not terms:
        return added.contiguous()
    total = sum(terms[1:], start=terms[0]).flatten(1, 2).flatten(2).mT
    if projection.out is None:
        return total.contiguous() + added
    return torch.baddbmm(added, total, projection.out.mT.expand(len(total), -1, -1))
