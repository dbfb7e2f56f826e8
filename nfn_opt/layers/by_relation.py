"""The equivariant linear layer whose weights are shared by what tensors are to each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.layers.base import LinearBase, normal, orthogonal, variance_shares
from nfn_opt.layers.movement import Target, gather, mix, scatter
from nfn_opt.layers.patterns import Pattern
from nfn_opt.layers.pool import pool_of
from nfn_opt.layers.readings import Readings, concatenate
from nfn_opt.layers.relations import RELATIONS, Source, Writing, plan_by_relation
from nfn_opt.weight_space import Features, WeightSpace
from nfn_opt.weight_space.cells import Cells

_BIAS_KINDS = ("vector", "matrix")


class RelationLinear(LinearBase):
    """An equivariant linear layer with one set of weights for all architectures.

    The maps of :class:`PerParameterLinear` with weights tied by what the two tensors are to each other: a tensor
    to itself, its row or column means, a weight to the bias of the same neurons, to its predecessor and successor,
    everything to everything, and so on (:data:`nfn_opt.layers.relations.RELATIONS`). Several tensors in the same
    relation to an output are averaged, so that depth does not change the scale. The weights of relations that do
    not occur in the space that the layer is built for start at zero.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        in_channels: Channels of the features that come in.
        out_channels: Channels of the features that go out.
        bias: Whether to add constants, one vector for biases and one for weights.
        generator: Source of the initial weights.
        compile: Whether to run under ``torch.compile``; see :func:`nfn_opt.layers.NFLinear`.
        checkpoint: Whether to form intermediate results again in the backward pass; see there.
        own: Whether an entry is sent to itself. Without, the layer gives what an entry hears from all others and
            from means; the weights of those relations are not used.

    Shapes:
        in: ``{name: (B, *axes, in_channels)}``; out: ``{name: (B, *axes, out_channels)}``.
    """

    def __init__(
        self,
        space: WeightSpace,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
        compile: bool = False,  # noqa: A002  (torch's own word)
        checkpoint: bool = False,
        own: bool = True,
    ) -> None:
        super().__init__(space, in_channels, out_channels, compile=compile, checkpoint=checkpoint)
        self.own = own
        self._program = _program(space, out_channels, own)
        self.weight = nn.Parameter(self._initial(generator))
        self.bias = nn.Parameter(torch.zeros(len(_BIAS_KINDS), out_channels)) if bias else None

    def _initial(self, generator: torch.Generator | None) -> Tensor:
        """Weights of every relation; see :func:`nfn_opt.layers.base.variance_shares`."""
        shares, own = _initial_shares(self._program.writings)
        weights = []
        for relation, share in enumerate(shares):
            if relation in own:
                weight = orthogonal(self.in_channels, self.out_channels, generator)
            else:
                weight = normal((self.in_channels, self.out_channels), generator) / math.sqrt(
                    self.in_channels
                )
            weights.append(weight * math.sqrt(share))
        return torch.stack(weights)

    @property
    def _weight(self) -> Tensor:
        return self.weight

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map weight features of ``space`` (by default the one given at construction)."""
        return self._checked(features, space)

    def _program_of(self, space: WeightSpace | None) -> Any:
        return self._program if space is None else _program(space, self.out_channels, self.own)

    def _map(self, features: Mapping[str, Tensor], program: Any) -> Features:
        cells = program.cells
        if not program.writings:
            return {name: x.new_zeros(*x.shape[:-1], self.out_channels) for name, x in features.items()}
        given, names = cells.split(features), cells.space.names
        reader = _Reader(program.readings, gather(program.readings.sources, [given[name] for name in names]))
        weights = self.weight.unbind()
        terms: dict[str, list[Tensor]] = {name: [] for name in names}
        products: dict[str, list[Tensor]] = {name: [] for name in names}
        for writing in program.writings:
            pattern = writing.pattern
            if writing.direct:
                for relation, source in writing.sources:
                    products[pattern.name] += [reader.whole(source), weights[relation]]
                continue
            read = concatenate([reader.average(source) for _, source in writing.sources])
            weight = concatenate([weights[relation] for relation, _ in writing.sources], dim=0)
            if writing.constant and self.bias is not None:
                mixed = torch.addmm(self.bias[_BIAS_KINDS.index(writing.kind)], read, weight)
            else:
                mixed = mix(read, weight)
            terms[pattern.name].append(pattern.place(mixed))
        written = scatter(program.targets, [t for name in names for t in (*terms[name], *products[name])])
        return cells.join(dict(zip(names, written, strict=True)))

    def extra_repr(self) -> str:
        """Channels and sharing."""
        return f"{self.in_channels} -> {self.out_channels}, by_relation" + (
            ", own=False" if not self.own else ""
        )


def _initial_shares(writings: tuple[Writing, ...]) -> tuple[list[float], set[int]]:
    """Share of the variance of every relation, and the relations by which an entry is sent to itself."""
    terms: dict[str, list[tuple[bool, int]]] = defaultdict(list)
    for writing in writings:
        pattern = writing.pattern
        for relation, source in writing.sources:
            terms[pattern.name].append((_own(pattern, source), relation))
    shares = [0.0] * len(RELATIONS)
    for same in terms.values():
        own_share, other_share = variance_shares(sum(not own for own, _ in same))
        for own, relation in same:
            share = own_share if own else other_share
            shares[relation] = min(shares[relation] or share, share)
    return shares, {relation for same in terms.values() for own, relation in same if own}


def _own(pattern: Pattern, source: Source) -> bool:
    """Whether an entry is sent to itself."""
    return pattern.full and source.members == (pattern,)


def _others(writings: tuple[Writing, ...]) -> Iterator[Writing]:
    """The writings without what entries send to themselves."""
    for writing in writings:
        sources = tuple((r, source) for r, source in writing.sources if not _own(writing.pattern, source))
        if sources:
            yield replace(writing, sources=sources)


@dataclass(frozen=True, eq=False)
class _Program:
    """All that a forward pass needs to know of a space."""

    cells: Cells
    writings: tuple[Writing, ...]
    readings: Readings
    targets: tuple[Target, ...]


@lru_cache(maxsize=256)
def _program(whole_space: WeightSpace, channels: int, own: bool) -> _Program:
    space = whole_space.cells.space
    writings = plan_by_relation(space)
    writings = writings if own else tuple(_others(writings))
    small: dict[Pattern, None] = {}
    whole: dict[Pattern, None] = {}
    terms: dict[str, list[Pattern]] = {name: [] for name in space.names}
    products: dict[str, list[Pattern]] = {name: [] for name in space.names}
    summed: set[int] = set()
    for writing in writings:
        if writing.direct:
            products[writing.pattern.name] += [writing.pattern] * len(writing.sources)
        else:
            terms[writing.pattern.name].append(writing.pattern)
        for _, source in writing.sources:
            if source.group in summed:
                continue
            if source.count > 1:
                summed.add(source.group)
            kept = whole if writing.direct and source.whole else small
            kept.update(dict.fromkeys(source.members))
    targets = tuple(
        Target((*spec.view_shape, channels), pool_of(tuple(terms[spec.name])), tuple(products[spec.name]))
        for spec in space.parameters
    )
    return _Program(whole_space.cells, writings, Readings(space, small, whole), targets)


class _Reader:
    """The readings of one forward pass; the sum of many tensors in the same relation is formed once."""

    def __init__(self, readings: Readings, found: list[Tensor]) -> None:
        self._readings, self._found = readings, found
        self._sums: dict[int, Tensor] = {}

    def whole(self, source: Source) -> Tensor:
        """The features of a source, averaged if they are of several parameters."""
        if source.whole:
            (pattern,) = source.members
            return pattern.gather(self._found[self._readings.place_whole(pattern)])
        return self.average(source)

    def average(self, source: Source) -> Tensor:
        """The mean of a source's readings."""
        if source.count <= 2:
            first, *others = (self._read(pattern) for pattern in source.readings)
            return (first + others[0]) * 0.5 if others else first
        if source.group not in self._sums:
            self._sums[source.group] = torch.stack([self._read(p) for p in source.members]).sum(0)
        total = self._sums[source.group]
        if source.without is not None:
            total = total - self._read(source.without)
        return total * (1.0 / source.count)

    def _read(self, pattern: Pattern) -> Tensor:
        return pattern.gather(self._found[self._readings.place(pattern)])
