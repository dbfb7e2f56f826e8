"""Relations between parameters that have a meaning in any architecture, and the plan that shares weights by them.

Each tensor counts as a *vector* (one neuron axis: a bias, a norm's scale) or a *matrix* (an ``out`` and an ``in``
axis); further axes (kernel positions, pixels) are averaged over, except from a tensor to itself. Then the pair of
patterns of a linear map is one of a finite list of relations: ``matrix:out -> vector:out`` is a weight's row mean
sent to the bias of the same neurons, ``matrix:out -> matrix:in`` a weight sent to its successor, and so on. Fixed
axes count as if they could be permuted; break that with an encoding of positions where it matters.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, permutations

from nfn_opt.layers.patterns import Block, Pattern
from nfn_opt.weight_space import TensorSpec, WeightSpace

_PATTERNS = {"vector": (("o",), ("",)), "matrix": (("o", "i"), ("o",), ("i",), ("",), ("d",), ("d0",))}
"""Connected indices of a kind's patterns: out, in, diagonal; ``d0`` is a free diagonal."""


def _vocabulary() -> tuple[str, ...]:
    names = []
    for source, reads in _PATTERNS.items():
        for target, writes in _PATTERNS.items():
            for read in reads:
                for written in writes:
                    names += _pairs(source, read, target, written)
    return tuple(f"{name} {same}" for name in names for same in ("(itself)", "(other)"))


def _pairs(source: str, read: tuple[str, ...], target: str, written: tuple[str, ...]) -> list[str]:
    indices = {"": 0, "d0": 0}
    if sum(indices.get(x, 1) for x in read) != sum(indices.get(x, 1) for x in written):
        return []
    return [f"{source}:{'.'.join(order)} -> {target}:{'.'.join(written)}" for order in permutations(read)]


RELATIONS: tuple[str, ...] = _vocabulary()
"""Names of all relations: what is read, what is written, and whether both are the same tensor."""
RELATION_INDEX = {name: i for i, name in enumerate(RELATIONS)}


@dataclass(frozen=True)
class _Kind:
    """A tensor as relations see it: positions of its out and in axes, and the rest."""

    spec: TensorSpec
    main: tuple[int, ...]
    rest: tuple[int, ...]

    @property
    def name(self) -> str:
        return "matrix" if len(self.main) == 2 else "vector"


def _kind(spec: TensorSpec) -> _Kind:
    main = []
    for role in ("out", "in"):
        axes = [i for i, axis in enumerate(spec.axes) if axis.role == role and i not in main]
        axes.sort(key=lambda i: not spec.axes[i].permutable)
        main += axes[:1]
    if not main and spec.axes:
        main = [0]
    return _Kind(spec, tuple(main), tuple(i for i in range(len(spec.axes)) if i not in main))


def _patterns(kind: _Kind, *, rest_connected: bool) -> list[tuple[tuple[str, ...], Pattern]]:
    """The patterns of a tensor, each with the names of its connected indices."""
    rest = tuple((i,) for i in kind.rest)
    out: list[Block] = [(i,) for i in kind.main]
    letters = dict(zip(out, "oi", strict=False))
    if rest_connected:
        return [(tuple(letters.values()) or ("",), Pattern(kind.spec, (*out, *rest), ()))]
    found: list[tuple[tuple[str, ...], Pattern]] = []
    subsets: list[tuple[Block, ...]] = [(), *((b,) for b in out)] + ([tuple(out)] if len(out) == 2 else [])
    for kept in subsets:
        free = tuple(b for b in out if b not in kept)
        found.append((tuple(letters[b] for b in kept) or ("",), Pattern(kind.spec, kept, (*free, *rest))))
    if len(out) == 2 and len({kind.spec.axes[i].name for i in kind.main}) == 1:
        diagonal = (kind.main,)
        found.append((("d",), Pattern(kind.spec, diagonal, rest)))
        found.append((("d0",), Pattern(kind.spec, (), (*diagonal, *rest))))
    return found


@dataclass(frozen=True, eq=False)
class Source:
    """Readings over the same indices that are averaged.

    Attributes:
        members: All readings of one kind and name.
        group: Number of the members in the plan, for forming their sum once.
        without: One of the members that is left out, the reading of the tensor that is written.
    """

    members: tuple[Pattern, ...]
    group: int
    without: Pattern | None = None

    @property
    def readings(self) -> tuple[Pattern, ...]:
        """The readings."""
        return tuple(pattern for pattern in self.members if pattern is not self.without)

    @property
    def whole(self) -> bool:
        """Whether it is one tensor as it is."""
        return len(self.members) == 1 and self.members[0].full

    @property
    def count(self) -> int:
        """Number of readings."""
        return len(self.members) - (self.without is not None)


@dataclass(frozen=True, eq=False)
class Writing:
    """One pattern written, and what is mixed into it: for each relation, the readings that are averaged.

    Attributes:
        kind: ``"vector"`` or ``"matrix"``, what the tensor counts as.
        pattern: The pattern.
        sources: Numbers of the relations, each with its readings.
    """

    kind: str
    pattern: Pattern
    sources: tuple[tuple[int, Source], ...]

    @property
    def constant(self) -> bool:
        """Whether the same is written to every entry."""
        return not self.pattern.connected and not self.pattern.diagonal

    @property
    def direct(self) -> bool:
        """Whether whole tensors are mixed into a whole tensor, which is done one by one and in place."""
        return self.pattern.full and len(self.pattern.connected) > 1


_Class = tuple[str, tuple[str, ...]]
"""Kind of a tensor and names of the indices that are read."""


@lru_cache(maxsize=256)
def plan_by_relation(space: WeightSpace) -> tuple[Writing, ...]:
    """For every pattern written in a space, the relations that feed it; patterns with more indices first."""
    kinds = [_kind(spec) for spec in space.parameters]
    patterns = {kind.spec.name: _patterns(kind, rest_connected=False) for kind in kinds}
    classes: dict[tuple[str, ...], dict[_Class, dict[str, Pattern]]] = defaultdict(lambda: defaultdict(dict))
    for kind in kinds:
        for letters, pattern in patterns[kind.spec.name]:
            for read, reading in _reorderings(letters, pattern):
                classes[reading.signature][kind.name, read][kind.spec.name] = reading
    groups = {
        signature: [
            (number, name, members, tuple(members.values()))
            for number, (name, members) in enumerate(same.items())
        ]
        for signature, same in classes.items()
    }
    first = dict(zip(groups, accumulate((len(same) for same in groups.values()), initial=0), strict=False))
    writings = []
    for kind in kinds:
        for letters, pattern in patterns[kind.spec.name]:
            whole = bool(kind.rest) and len(pattern.connected) == len(kind.main)
            sources: list[tuple[int, Source]] = []
            for number, (name, read), members, readings in groups[pattern.signature]:
                group, own = first[pattern.signature] + number, members.get(kind.spec.name)
                own = own if name == kind.name else None
                if own is not None and not whole:
                    itself = _relation(name, read, kind, letters, same=True)
                    sources.append((itself, Source((own,), -1)))
                if len(readings) > (own is not None):
                    other = _relation(name, read, kind, letters, same=False)
                    sources.append((other, Source(readings, group, own)))
            if sources:
                writings.append(Writing(kind.name, pattern, tuple(sources)))
        if kind.rest:
            letters, pattern = _patterns(kind, rest_connected=True)[0]
            itself = _relation(kind.name, letters, kind, letters, same=True)
            writings.append(Writing(kind.name, pattern, ((itself, Source((pattern,), -1)),)))
    return tuple(sorted(writings, key=lambda writing: -len(writing.pattern.connected)))


def _reorderings(letters: tuple[str, ...], pattern: Pattern) -> list[tuple[tuple[str, ...], Pattern]]:
    """The pattern with its connected blocks in each order."""
    if len(pattern.connected) < 2:
        return [(letters, pattern)]
    swapped = Pattern(pattern.spec, pattern.connected[::-1], pattern.free, pattern.folded)
    return [(letters, pattern), (letters[::-1], swapped)]


@lru_cache(maxsize=4096)
def _relation_number(
    source: str, read: tuple[str, ...], target: str, written: tuple[str, ...], same: bool
) -> int:
    which = "(itself)" if same else "(other)"
    return RELATION_INDEX[f"{source}:{'.'.join(read)} -> {target}:{'.'.join(written)} {which}"]


def _relation(
    source: str, read: tuple[str, ...], target: _Kind, written: tuple[str, ...], *, same: bool
) -> int:
    return _relation_number(source, read, target.name, written, same)
