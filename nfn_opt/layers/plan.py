"""The plan of an equivariant linear layer: what is read, mixed and written, built once a weight space."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from nfn_opt.layers.patterns import Pattern, all_patterns
from nfn_opt.weight_space import WeightSpace


@dataclass(frozen=True)
class Step:
    """One product: everything read over the same indices, mixed into everything written over them.

    Attributes:
        signature: The groups of the indices.
        readings: Patterns read and concatenated along channels.
        writings: Patterns that the channels of the product are divided among.
        part: Number of the step among those over the same groups; not 0 in small spaces only, see :func:`_split`.
    """

    signature: tuple[str, ...]
    readings: tuple[Pattern, ...]
    writings: tuple[Pattern, ...]
    part: int = 0

    @property
    def name(self) -> str:
        """The groups in alphabetical order, without dots: names the step's weights in a ``state_dict``."""
        groups = "+".join(sorted(self.signature)).replace(".", ":") or "constant"
        return f"{groups}#{self.part}" if self.part else groups

    @property
    def rows(self) -> int:
        """Channels read for each input channel."""
        return sum(pattern.fold for pattern in self.readings)

    @property
    def columns(self) -> int:
        """Channels written for each output channel."""
        return sum(pattern.fold for pattern in self.writings)

    @property
    def direct(self) -> bool:
        """Whether whole tensors are mixed into whole tensors, which is done one by one and in place."""
        whole = all(pattern.full for pattern in (*self.readings, *self.writings))
        return whole and (len(self.signature) > 1 or len(self.readings) == len(self.writings) == 1)


@lru_cache(maxsize=256)
def plan_per_parameter(space: WeightSpace) -> tuple[Step, ...]:
    """The steps that together hold every equivariant linear map of a weight space, each map once.

    Patterns that run over the same groups belong to one step. Its indices come in the order in which the first
    tensor has them, so that a weight is neither permuted when it is read nor when it is written. Steps with more
    indices come first.
    """
    by_groups: dict[tuple[str, ...], list[Pattern]] = defaultdict(list)
    for spec in space.parameters:
        for pattern in all_patterns(spec):
            by_groups[tuple(sorted(pattern.signature))].append(pattern)
    uses: Counter[str] = Counter()
    for spec in space.parameters:
        uses |= Counter(axis.name for axis in spec.axes if axis.permutable)
    small = {name: size for name, size in space.groups.items() if size < 2 * uses[name] and uses[name] > 1}
    steps: list[Step] = []
    for patterns in by_groups.values():
        signature = patterns[0].signature
        orders = [pattern.arranged(signature) for pattern in patterns]
        step = Step(signature, tuple(chain.from_iterable(orders)), tuple(order[0] for order in orders))
        steps += _split(step, small) if small else [step]
    return tuple(sorted(steps, key=lambda step: -len(step.signature)))


def _split(step: Step, small: dict[str, int]) -> list[Step]:
    """The step without maps that are sums of others.

    A map is one partition of the axes of a reading and a writing. Partitions with more blocks over a group than
    it has entries depend on the others. Writings that may take the same readings form one step.
    """
    uses = {pattern: Counter(_blocks(pattern)) for pattern in (*step.readings, *step.writings)}
    shared = Counter(step.signature)
    allowed: dict[tuple[Pattern, ...], list[Pattern]] = defaultdict(list)
    for writing in step.writings:
        if any(uses[writing][name] > size for name, size in small.items()):
            continue
        readings = [
            reading
            for reading in step.readings
            if all(uses[reading][n] + uses[writing][n] - shared[n] <= size for n, size in small.items())
        ]
        if readings or not step.signature:
            allowed[tuple(readings)].append(writing)
    return [
        Step(step.signature, readings, tuple(writings), part)
        for part, (readings, writings) in enumerate(allowed.items())
    ]


def _blocks(pattern: Pattern) -> list[str]:
    """The group of every block."""
    return [pattern.spec.axes[block[0]].name for block in (*pattern.connected, *pattern.free)]


def identity_map(written: Iterable[Pattern]) -> dict[Pattern, int]:
    """The map of a tensor to itself as a sum of the maps that a plan has.

    Args:
        written: All patterns by which the plan writes the tensor.

    Returns:
        Patterns, each with how often what it reads is written by it. That is once the whole tensor, except where a
        small group leaves no such map: a tensor with three axes over a group of 2 is the sum of its three diagonal
        planes less twice its diagonal.
    """
    coefficients: dict[Pattern, int] = {}
    kept = [pattern for pattern in written if not pattern.free]
    for pattern in sorted(kept, key=lambda p: -len(p.connected)):
        finer = (
            p for p in coefficients if all(any(set(b) <= set(c) for c in pattern.layout) for b in p.layout)
        )
        coefficients[pattern] = 1 - sum(coefficients[p] for p in finer)
    return {pattern: count for pattern, count in coefficients.items() if count}
