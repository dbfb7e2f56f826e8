"""The plan of attention along neuron axes: how every tensor is laid out, and which axes share tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from torch import Tensor

from nfn_opt.weight_space import Axis, TensorSpec, WeightSpace


@dataclass(frozen=True)
class Layout:
    """How attention sees one tensor.

    Attributes:
        spec: The tensor; none of its axes is concatenated.
        kept: Positions of the axes that run over entries.
        attended: Indices among the kept axes of those along which there is attention.
        folded: Positions of the axes that count as channels.
    """

    spec: TensorSpec
    kept: tuple[int, ...]
    attended: tuple[int, ...]
    folded: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the kept axes."""
        return tuple(self.spec.axes[i].size for i in self.kept)

    @property
    def fold(self) -> int:
        """How many channels the folded axes make of one."""
        return prod(self.spec.axes[i].size for i in self.folded)

    @property
    def entries(self) -> int:
        """Number of entries, folded ones counted once."""
        return prod(self.sizes)

    @property
    def positions(self) -> int:
        """Number of means of the tensor over the attended axes."""
        return prod(size for i, size in enumerate(self.sizes) if i not in self.attended)

    @property
    def count(self) -> int:
        """Number of entries that are averaged to one mean."""
        return self.entries // max(self.positions, 1)

    def mean(self, arranged: Tensor) -> Tensor:
        """Mean over the attended axes: ``(B, entries, X)`` to ``(B, positions, X)``."""
        if len(self.attended) == len(self.kept):
            return arranged.sum(1, keepdim=True) * (1.0 / self.entries)
        if not self.attended:
            return arranged
        shape = (arranged.shape[0], *self.sizes, arranged.shape[-1])
        pooled = arranged.reshape(shape).sum([1 + i for i in self.attended]) * (1.0 / self.count)
        return pooled.reshape(arranged.shape[0], self.positions, -1)

    def broadcast(self, means: Tensor) -> Tensor:
        """``(B, positions, X)`` so that it broadcasts against ``(B, entries, X)``."""
        if self.positions in (1, self.entries):
            return means
        sizes = [1 if i in self.attended else size for i, size in enumerate(self.sizes)]
        means = means.reshape(means.shape[0], *sizes, means.shape[-1])
        return means.expand(-1, *self.sizes, -1).reshape(means.shape[0], self.entries, -1)

    def arrange(self, features: Tensor) -> Tensor:
        """``(B, *axes, C)`` to ``(B, entries, fold * C)``; a view where the folded axes come last."""
        order = (*self.kept, *self.folded)
        if order != tuple(range(len(order))):
            features = features.permute(0, *(1 + i for i in order), features.dim() - 1)
        return features.reshape(features.shape[0], self.entries, self.fold * features.shape[-1])

    def restore(self, arranged: Tensor) -> Tensor:
        """``(B, entries, fold * C)`` to ``(B, *axes, C)``."""
        order = (*self.kept, *self.folded)
        sizes = [self.spec.axes[i].size for i in order]
        features = arranged.reshape(arranged.shape[0], *sizes, arranged.shape[-1] // self.fold)
        if order != tuple(range(len(order))):
            back = [1 + order.index(i) for i in range(len(order))]
            features = features.permute(0, *back, features.dim() - 1).contiguous()
        return features


@dataclass(frozen=True)
class Member:
    """One axis of one tensor whose neurons are those of a group: every other index is a token.

    Attributes:
        index: Index of the tensor's layout.
        axis: Index of the axis among the kept ones.
        tokens: Number of tokens.
    """

    index: int
    axis: int
    tokens: int

    @property
    def leading(self) -> bool:
        """Whether neurons come first, next to the channels, and so the result may be written transposed."""
        return self.axis == 0 and self.tokens > 1


@dataclass(frozen=True)
class AxisGroup:
    """The tokens over one group of neurons.

    Attributes:
        name: The group.
        size: Number of neurons.
        members: The axes that run over them, those with ``leading`` neurons first.
    """

    name: str
    size: int
    members: tuple[Member, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(member.tokens for member in self.members)

    @property
    def tokens_last(self) -> bool:
        """Whether tokens are stored as columns: so most of them lie in their tensors, where neurons come first."""
        return 2 * sum(member.tokens for member in self.members if member.leading) > self.tokens

    def shape(self, kinds: int, batch: int, heads: int, channels: int) -> tuple[int, ...]:
        """Shape of the tokens: ``(kinds, B, heads, tokens, C / heads, neurons)``, or with the tokens last."""
        token = (channels // heads, self.size)
        return (kinds, batch, heads, *((*token, self.tokens) if self.tokens_last else (self.tokens, *token)))


@dataclass(frozen=True)
class AttentionPlan:
    """What attends to what.

    Attributes:
        layouts: One for each tensor.
        groups: One attention each.
    """

    layouts: tuple[Layout, ...]
    groups: tuple[AxisGroup, ...]

    def terms(self, index: int) -> int:
        """Number of attentions whose results are added in one tensor, the global one included."""
        return 1 + len(self.layouts[index].attended)


@lru_cache(maxsize=256)
def plan_attention(space: WeightSpace, fold: bool) -> AttentionPlan:
    """Lay out the tensors of a space without concatenated axes.

    Args:
        space: The space, ``space.cells.space`` of another.
        fold: Whether fixed axes count as channels; else they run over entries, as neurons do.
    """
    layouts: list[Layout] = []
    members: dict[tuple[str, int], list[Member]] = defaultdict(list)
    for index, spec in enumerate(space.parameters):
        names = [_group(spec, axis, space) for axis in spec.axes]
        folded = tuple(i for i, name in enumerate(names) if fold and name is None)
        kept = tuple(i for i in range(len(names)) if i not in folded)
        attended = tuple(i for i, axis in enumerate(kept) if names[axis] is not None)
        layout = Layout(spec, kept, attended, folded)
        layouts.append(layout)
        for axis in attended:
            name, size = names[kept[axis]], layout.sizes[axis]
            assert name is not None
            members[name, size].append(Member(index, axis, layout.entries // size))
    groups = tuple(
        AxisGroup(name, size, tuple(sorted(found, key=lambda member: not member.leading)))
        for (name, size), found in members.items()
    )
    return AttentionPlan(tuple(layouts), groups)


def _group(spec: TensorSpec, axis: Axis, space: WeightSpace) -> str | None:
    """Name of the group whose neurons run along an axis.

    An axis of one neuron is never permuted, and tracing does not say whose it is. In NP, where every input and
    output neuron counts, it is taken for that of the module.
    """
    if axis.permutable:
        return axis.name
    if space.symmetry == "all" and axis.size == 1 and axis.role != "space":
        return f"{spec.name.rpartition('.')[0]}:{axis.role}"
    return None


def gather(plan: AttentionPlan, group: AxisGroup, parts: list[Tensor], tokens: Tensor) -> Tensor:
    """Copy the tokens of a group.

    Args:
        plan: The plan.
        group: The group.
        parts: For every tensor ``(B, kinds * C, entries)``: queries, keys and values, or one of them.
        tokens: Where to copy them, of the shape :meth:`AxisGroup.shape`.

    Returns:
        The tokens.
    """
    for target, source in _pairs(plan, group, tokens, parts):
        target.copy_(source)
    return tokens


def scatter(
    plan: AttentionPlan,
    group: AxisGroup,
    tokens: Tensor,
    parts: list[Tensor],
    written: set[int],
) -> None:
    """Add tokens to the tensors that they come from, the reverse of :func:`gather`.

    Args:
        plan: The plan.
        group: The group.
        tokens: As :func:`gather` gives them.
        parts: For every tensor ``(B, kinds * C, entries)``.
        written: Indices of the tensors that hold something; the others are overwritten.
    """
    for member, (source, target) in zip(group.members, _pairs(plan, group, tokens, parts), strict=True):
        if member.index in written:
            target.add_(source)
        else:
            target.copy_(source)
            written.add(member.index)


def _pairs(
    plan: AttentionPlan, group: AxisGroup, tokens: Tensor, parts: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of every member's tokens and of its tensor, ``(kinds, B, heads, *others, C / heads, neurons)``."""
    if group.tokens_last:
        tokens = tokens.movedim(-1, 3)
    kinds, batch, heads, _, channels, _ = tokens.shape
    start = 0
    for member in group.members:
        sizes = plan.layouts[member.index].sizes
        others = [i for i in range(len(sizes)) if i != member.axis]
        own = tokens[:, :, :, start : start + member.tokens]
        start += member.tokens
        own = own.unflatten(3, [sizes[i] for i in others]) if others else own.squeeze(3)
        part = parts[member.index].view(batch, kinds, heads, channels, *sizes)
        yield own, part.permute(1, 0, 2, *(4 + i for i in others), 3, 4 + member.axis)
