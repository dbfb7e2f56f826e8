"""The plan of an equivariant linear layer: what is read, mixed and written, built once a weight space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nfn_opt.layers.patterns import Pattern, all_patterns
from nfn_opt.weight_space import WeightSpace


@dataclass(frozen=True)
class Step:
    """One product: everything read over the same indices, mixed into everything written over them.

    Attributes:
        signature: The groups of the indices.
        readings: Patterns read and concatenated along channels.
        writings: Patterns that the channels of the product are divided among.
    """

    signature: tuple[str, ...]
    readings: tuple[Pattern, ...]
    writings: tuple[Pattern, ...]

    @property
    def rows(self) -> int:
        """Channels read for each input channel."""
        return sum(pattern.fold for pattern in self.readings)

    @property
    def columns(self) -> int:
        """Channels written for each output channel."""
        return sum(pattern.fold for pattern in self.writings)


@lru_cache(maxsize=256)
def plan_per_parameter(space: WeightSpace) -> tuple[Step, ...]:
    """The steps that together hold every equivariant linear map of a weight space."""
    readings: dict[tuple[str, ...], list[Pattern]] = defaultdict(list)
    writings: dict[tuple[str, ...], list[Pattern]] = defaultdict(list)
    for spec in space.parameters:
        for pattern in all_patterns(spec, orders=True):
            readings[pattern.signature].append(pattern)
        for pattern in all_patterns(spec, orders=False):
            writings[pattern.signature].append(pattern)
    return tuple(Step(s, tuple(readings[s]), tuple(written)) for s, written in writings.items())


class Reader:
    """Reads patterns of one set of weight features, averaging what is already averaged where it can."""

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self._features = features
        self._done: dict[tuple[str, tuple[tuple[int, ...], ...]], Tensor] = {}

    def read(self, pattern: Pattern) -> Tensor:
        """The pattern's reading, ``(B, *connected, fold * C)``."""
        key = (pattern.name, pattern.connected)
        if pattern.diagonal:
            return pattern.read(self._features[pattern.name])
        if key not in self._done:
            self._done[key] = self._read(pattern)
        return self._done[key]

    def _read(self, pattern: Pattern) -> Tensor:
        wanted = set(pattern.connected)
        sources = [
            (value.numel(), connected, value)
            for (name, connected), value in self._done.items()
            if name == pattern.name and wanted < set(connected)
        ]
        if not sources:
            return pattern.read(self._features[pattern.name])
        _, connected, value = min(sources, key=lambda source: source[0])
        value = value.mean([1 + i for i, block in enumerate(connected) if block not in wanted])
        kept = [block for block in connected if block in wanted]
        order = [kept.index(block) for block in pattern.connected]
        if order != sorted(order):
            value = value.permute(0, *(1 + i for i in order), value.dim() - 1)
        return value


Term = tuple[Pattern, Tensor, bool]
"""What is written: the pattern, ``(B, *connected, fold * C)``, and whether that tensor may be overwritten."""


def write(terms: list[Term]) -> Tensor:
    """Sum of everything written to one parameter: ``(B, *axes, C)``.

    Small terms are first added to larger ones that they broadcast into, so that the full tensor is passed over as
    few times as can be.
    """
    plain = [(p, p.place(mixed), owned) for p, mixed, owned in terms if not p.diagonal]
    plain.sort(key=lambda term: (term[0].full, term[1].numel()))
    pending: list[tuple[set[tuple[int, ...]], Tensor]] = []
    for pattern, total, owned in plain:
        indices = set(pattern.connected)
        inside = [entry for entry in pending if pattern.full or entry[0] <= indices]
        for _, smaller in inside:
            total = total.add_(smaller) if owned else total + smaller
            owned = True
        pending = [entry for entry in pending if all(entry is not used for used in inside)]
        pending.append((indices, total))
    assert len(pending) == 1, "every parameter has one full pattern, and all others broadcast into it"
    out = pending[0][1]
    diagonal = [(p, mixed) for p, mixed, _ in terms if p.diagonal]
    out = out.clone() if diagonal else out
    for pattern, mixed in diagonal:
        out = pattern.add_to(out, mixed)
    return out


def channels_of(features: Mapping[str, Tensor]) -> int:
    """Number of channels of weight features."""
    return next(iter(features.values())).shape[-1]


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Concatenate along channels; one tensor alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=-1)
