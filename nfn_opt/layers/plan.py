"""The plan of an equivariant linear layer: what is read, mixed and written, built once a weight space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from nfn_opt.layers.patterns import Block, Pattern, all_patterns, average
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
    def name(self) -> str:
        """The groups in alphabetical order, without dots: names the step's weights in a ``state_dict``."""
        return "+".join(sorted(self.signature)).replace(".", ":") or "constant"

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
    """The steps that together hold every equivariant linear map of a weight space.

    Patterns that run over the same groups belong to one step. Its indices come in the order in which the first
    tensor has them, so that a weight is neither permuted when it is read nor when it is written. Steps with more
    indices come first: averages over many indices are then taken of averages over few.
    """
    by_groups: dict[tuple[str, ...], list[Pattern]] = defaultdict(list)
    for spec in space.parameters:
        for pattern in all_patterns(spec):
            by_groups[tuple(sorted(pattern.signature))].append(pattern)
    steps = []
    for patterns in by_groups.values():
        signature = patterns[0].signature
        orders = [pattern.arranged(signature) for pattern in patterns]
        steps.append(Step(signature, tuple(chain.from_iterable(orders)), tuple(order[0] for order in orders)))
    return tuple(sorted(steps, key=lambda step: -len(step.signature)))


class Reader:
    """Reads patterns of one set of weight features, averaging what is already averaged where it can."""

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self._features = features
        self._done: dict[tuple[str, tuple[Block, ...]], Tensor] = {}

    def read(self, patterns: Iterable[Pattern]) -> Tensor:
        """The patterns' readings over the same indices side by side, ``(B, *connected, channels)``."""
        return concatenate([self._read(pattern) for pattern in patterns])

    def _read(self, pattern: Pattern) -> Tensor:
        if pattern.diagonal:
            return pattern.read(self._features[pattern.name])
        key = (pattern.name, pattern.connected)
        if key not in self._done:
            self._done[key] = self._average(pattern)
        return self._done[key]

    def _average(self, pattern: Pattern) -> Tensor:
        """Average the smallest reading that has all wanted indices, or the features themselves."""
        wanted = set(pattern.connected)
        connected, value = None, self._features[pattern.name]
        for (name, blocks), done in self._done.items():
            if (
                name == pattern.name
                and wanted < set(blocks)
                and (connected is None or done.numel() < value.numel())
            ):
                connected, value = blocks, done
        if connected is None:
            return pattern.read(value)
        value = average(value, [1 + i for i, block in enumerate(connected) if block not in wanted])
        kept = [block for block in connected if block in wanted]
        order = [kept.index(block) for block in pattern.connected]
        if order != sorted(order):
            value = value.permute(0, *(1 + i for i in order), value.dim() - 1)
        return value


@dataclass(frozen=True)
class Term:
    """What is written by one pattern.

    Attributes:
        pattern: The pattern.
        mixed: ``(B, *connected, fold * C)``, or the left factor of it.
        weight: The right factor, where the product is still to be formed.
    """

    pattern: Pattern
    mixed: Tensor
    weight: Tensor | None = None

    @property
    def placed(self) -> Tensor:
        """The term as it broadcasts against ``(B, *axes, C)``."""
        return self.pattern.place(self.mixed if self.weight is None else self.mixed @ self.weight)


def write(terms: list[Term]) -> Tensor:
    """Sum of everything written to one parameter: ``(B, *axes, C)``.

    Small terms are first added to larger ones that they broadcast into, then to the full one, which is the only
    large product; at last come the terms on diagonals.
    """
    full = next(term for term in terms if term.pattern.full)
    small = [term for term in terms if not term.pattern.full and not term.pattern.diagonal]
    out = _add_product(_nested_sums(small), full)
    on_diagonals: dict[frozenset[Block], list[Term]] = defaultdict(list)
    for term in terms:
        if term.pattern.diagonal:
            blocks = (*term.pattern.connected, *term.pattern.free)
            on_diagonals[frozenset(block for block in blocks if len(block) > 1)].append(term)
    for same in on_diagonals.values():
        total = sum((term.placed for term in same[1:]), start=same[0].placed)
        out = torch.addcmul(out, total, same[0].pattern.mask(out))
    return out


def _nested_sums(terms: list[Term]) -> list[Tensor]:
    """As few tensors as possible with the same broadcast sum: each has an index that the others lack."""
    placed = sorted(((set(t.pattern.connected), t.placed) for t in terms), key=lambda entry: entry[1].numel())
    sums: list[tuple[set[Block], Tensor]] = []
    for indices, total in placed:
        for inner, smaller in sums:
            if inner <= indices:
                total = total + smaller
        sums = [entry for entry in sums if not entry[0] <= indices] + [(indices, total)]
    return [total for _, total in sums]


def _add_product(small: list[Tensor], full: Term) -> Tensor:
    """The broadcast sum of small terms and the full one, with as few passes over large memory as can be."""
    if full.weight is None or not small or not full.pattern.ordered:
        return sum(small, start=full.placed)
    if not _may_write_in_place(small[0], full.mixed, full.weight):
        return sum(small, start=full.placed)
    axes = [axis.size for axis in full.pattern.spec.axes]
    shape = (full.mixed.shape[0], *axes, full.weight.shape[1] // full.pattern.fold)
    out = sum(small[1:], start=small[0])
    fresh = len(small) > 1 and out.shape == shape and out.is_contiguous()
    out = out if fresh else out.expand(shape).clone(memory_format=torch.contiguous_format)
    # The product is added in place. Autograd would copy gradients if it saw that ``flat`` is a view of ``out``.
    flat = torch.ops.aten._unsafe_view(out, (-1, full.weight.shape[1]))
    flat.addmm_(full.mixed.reshape(-1, full.weight.shape[0]), full.weight)
    return torch.ops.aten._unsafe_view(flat, shape)


def _may_write_in_place(out: Tensor, left: Tensor, right: Tensor) -> bool:
    """Whether a product can be added in place: not under a transform, compiler or autocast."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return out.dtype == left.dtype == right.dtype


def concatenate(tensors: list[Tensor], dim: int = -1) -> Tensor:
    """Concatenate, by default along channels; one tensor alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)
