"""Relations between parameters that have a meaning in any architecture, and the plan that shares weights by them.

Each tensor counts as a *vector* (neurons on one side: a bias, a norm's scale) or a *matrix* (an ``out`` and an ``in``
side); further axes (kernel positions, pixels) are averaged over, except from a tensor to itself. A side may have
several groups, such as heads and the entries of a head; two sides are matched along all groups that they share. Then
the pair of patterns of a linear map is one of a finite list of relations: ``matrix:out -> vector:out`` is a weight's
row mean sent to the bias of the same neurons, ``matrix:out -> matrix:in`` a weight sent to its successor, and so on.
Fixed axes count as if they could be permuted; break that with an encoding of positions where it matters.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations, permutations

from nfn_opt.layers.patterns import Pattern
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
    """A tensor as relations see it: positions of its out axes, of its in axes, and the rest."""

    spec: TensorSpec
    out: tuple[int, ...]
    into: tuple[int, ...]

    @property
    def name(self) -> str:
        return "matrix" if self.into else "vector"

    @property
    def main(self) -> tuple[int, ...]:
        return (*self.out, *self.into)

    @property
    def rest(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.spec.axes)) if i not in self.main)

    def side(self, letter: str) -> int:
        """How many groups a side has; a diagonal counts as one."""
        return {"o": len(self.out), "i": len(self.into)}.get(letter, 1)

    def groups(self, positions: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(self.spec.axes[i].name for i in positions)


def _kind(spec: TensorSpec, rank: Mapping[str, int]) -> _Kind:
    """Several groups on one side (heads, and entries of a head) stand in the order in which the space shows them."""
    sides = []
    for role in ("out", "in"):
        axes = [i for i, axis in enumerate(spec.axes) if axis.role == role]
        moving = sorted((i for i in axes if spec.axes[i].permutable), key=lambda i: rank[spec.axes[i].name])
        sides.append(tuple(moving or axes[:1]))
    if not any(spec.axes[i].permutable for side in sides for i in side):
        moving = sorted(
            (i for i, axis in enumerate(spec.axes) if axis.permutable), key=lambda i: rank[spec.axes[i].name]
        )
        sides = [tuple(moving), ()] if moving else sides
    if not any(sides) and spec.axes:
        return _Kind(spec, (0,), ())
    return _Kind(spec, *sides) if sides[0] else _Kind(spec, sides[1], ())


_Read = tuple[tuple[str, ...], Pattern]
"""Names of the indices that are connected, and the pattern."""


def _patterns(kind: _Kind, shared: Mapping[tuple[str, ...], set[tuple[str, ...]]]) -> list[_Read]:
    """The patterns of a tensor: both sides, one side or some of its groups, neither, and the diagonal.

    Args:
        kind: The tensor.
        shared: For the groups of a side, which of them another side has too, where it does not have all.
    """
    found: list[_Read] = [(("",), _pattern(kind, ()))]
    for letter, side in (("o", kind.out), ("i", kind.into)):
        if side:
            found.append(((letter,), _pattern(kind, side)))
        for names in sorted(shared.get(kind.groups(side), ())):
            chosen = [kept for kept in combinations(side, len(names)) if kind.groups(kept) == names]
            found += [((letter,), _pattern(kind, kept)) for kept in chosen]
    if not kind.into:
        return found
    found.append((("o", "i"), _pattern(kind, kind.main)))
    twice = [(i, j) for i in kind.out for j in kind.into if kind.groups((i,)) == kind.groups((j,))]
    if twice:
        free = tuple((i,) for i in range(len(kind.spec.axes)) if i not in twice[0])
        found.append((("d",), Pattern(kind.spec, (twice[0],), free)))
        found.append((("d0",), Pattern(kind.spec, (), (twice[0], *free))))
    return found


def _pattern(kind: _Kind, kept: tuple[int, ...]) -> Pattern:
    free = tuple((i,) for i in range(len(kind.spec.axes)) if i not in kept)
    return Pattern(kind.spec, tuple((i,) for i in kept), free)


def _shared(kinds: Iterable[_Kind]) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """For the groups of a side of any tensor, the smaller sets that it has in common with other sides."""
    sides = {kind.groups(side) for kind in kinds for side in (kind.out, kind.into) if side}
    several = [side for side in sides if len(side) > 1]
    shared: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for left in several:
        for right in sides:
            common = tuple(sorted((Counter(left) & Counter(right)).elements(), key=left.index))
            for side in (left, right):
                if common and len(common) < len(side):
                    shared[side].add(common)
    return shared


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

_Member = tuple[str, int]
"""Name of a tensor, and which of its patterns with these indices: one group may act twice on a side."""


@lru_cache(maxsize=256)
def plan_by_relation(space: WeightSpace) -> tuple[Writing, ...]:
    """For every pattern written in a space, the relations that feed it; patterns with more indices first."""
    names = dict.fromkeys(axis.name for spec in space.parameters for axis in spec.axes)
    rank = {name: i for i, name in enumerate(names)}
    kinds = [_kind(spec, rank) for spec in space.parameters]
    shared = _shared(kinds)
    patterns = {kind.spec.name: _patterns(kind, shared) for kind in kinds}
    classes: dict[tuple[str, ...], dict[_Class, dict[_Member, Pattern]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for kind in kinds:
        for nth, (letters, pattern) in _numbered(patterns[kind.spec.name]):
            for read, reading in _reorderings(kind, letters, pattern):
                classes[reading.signature][kind.name, read][kind.spec.name, nth] = reading
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
        for nth, (letters, pattern) in _numbered(patterns[kind.spec.name]):
            whole = bool(kind.rest) and len(pattern.connected) == len(kind.main)
            some = len(letters) == 1 and pattern.connected and len(pattern.connected) < kind.side(letters[0])
            sources: list[tuple[int, Source]] = []
            for number, (name, read), members, readings in groups[pattern.signature]:
                group = first[pattern.signature] + number
                own = members.get((kind.spec.name, nth)) or members.get((kind.spec.name, 0))
                own = own if name == kind.name else None
                itself = _relation(name, read, kind, letters, same=True)
                if itself is not None and own is not None and not whole and not some:
                    sources.append((itself, Source((own,), -1)))
                other = _relation(name, read, kind, letters, same=False)
                if other is not None and len(readings) > (own is not None):
                    sources.append((other, Source(readings, group, own)))
            if sources:
                writings.append(Writing(kind.name, pattern, tuple(sources)))
        if kind.rest:
            letters = ("o", "i") if kind.into else ("o",) if kind.out else ("",)
            pattern = Pattern(kind.spec, tuple((i,) for i in (*kind.main, *kind.rest)), ())
            itself = _relation(kind.name, letters, kind, letters, same=True)
            assert itself is not None
            writings.append(Writing(kind.name, pattern, ((itself, Source((pattern,), -1)),)))
    return tuple(sorted(writings, key=lambda writing: -len(writing.pattern.connected)))


def _numbered(patterns: list[_Read]) -> Iterator[tuple[int, _Read]]:
    """The patterns of a tensor, those with the same names of indices and groups counted."""
    seen: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
    for letters, pattern in patterns:
        yield seen[letters, pattern.signature], (letters, pattern)
        seen[letters, pattern.signature] += 1


def _reorderings(kind: _Kind, letters: tuple[str, ...], pattern: Pattern) -> list[_Read]:
    """The pattern with its out indices before its in indices, and the other way round."""
    if len(letters) < 2:
        return [(letters, pattern)]
    outs = len(kind.out)
    swapped = Pattern(
        pattern.spec, (*pattern.connected[outs:], *pattern.connected[:outs]), pattern.free, pattern.folded
    )
    return [(letters, pattern), (letters[::-1], swapped)]


@lru_cache(maxsize=4096)
def _relation_number(
    source: str, read: tuple[str, ...], target: str, written: tuple[str, ...], same: bool
) -> int | None:
    """The number of a relation; ``None`` where one side holds the groups of two, which the list does not have."""
    which = "(itself)" if same else "(other)"
    return RELATION_INDEX.get(f"{source}:{'.'.join(read)} -> {target}:{'.'.join(written)} {which}")


def _relation(
    source: str, read: tuple[str, ...], target: _Kind, written: tuple[str, ...], *, same: bool
) -> int | None:
    return _relation_number(source, read, target.name, written, same)
