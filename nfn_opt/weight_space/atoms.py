"""Axis identities under unification: the union-find that the tracer works with.

During tracing every axis of every tensor is a product of *atoms*, major first. Two axes that an operator
combines entry by entry are *unified*: their atoms become the same. An atom may be split into a product when a
reshape cuts it, or into a *concatenation* of segments when a slice cuts it, and it may be fixed when an operator
depends on the order of its entries. All of these only ever remove permutations, so whatever is left at the end is
a symmetry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(eq=False)
class Atom:
    """One factor of an axis.

    Attributes:
        size: Number of entries.
        fixed: Whether it keeps its order.
        note: What fixed it.
        is_input: Whether an axis of the model's inputs has it.
        is_output: Whether an axis of the model's outputs has it.
        picked: Whether single entries were picked along it.
        parts: The product that it was bound to; a root has none.
        segments: The products that a root is the concatenation of, one behind the other; none for a prime root.
    """

    size: int
    fixed: bool = False
    note: str = ""
    is_input: bool = False
    is_output: bool = False
    picked: bool = False
    parts: tuple[Atom, ...] = ()
    segments: tuple[Factors, ...] = ()

    def fix(self, note: str) -> None:
        """Take the permutations of this atom away, for the reason ``note``."""
        for root in resolve((self,)):
            if not root.fixed:
                root.fixed, root.note = True, note
                for segment in root.segments:
                    fix_all(segment, note)

    def mark(self, *, is_input: bool = False, is_output: bool = False) -> None:
        """Record that an input or output of the model has this atom."""
        for root in resolve((self,)):
            root.is_input |= is_input
            root.is_output |= is_output
            for segment in root.segments:
                for atom in segment:
                    atom.mark(is_input=is_input, is_output=is_output)

    def like(self, size: int) -> Atom:
        """A new atom of another size that is known to be what this one is."""
        return Atom(size, self.fixed, self.note, self.is_input, self.is_output)

    def split(self, first: int) -> None:
        """Bind a root to the product of ``first`` and the rest.

        A concatenation is a product only if all its segments are products with the same rest; these are unified.
        """
        assert not self.parts
        assert self.size % first == 0
        rest = self.size // first
        if not self.segments:
            self.parts = (self.like(first), self.like(rest))
            return
        halves = [
            None if count(segment) % rest else regroup(segment, (count(segment) // rest, rest))
            for segment in flat_segments(self)
        ]
        whole = [pair for pair in halves if pair is not None]
        if len(whole) < len(halves):
            self.fix("a concatenation is cut across its parts")
            self.parts, self.segments = (self.like(first), self.like(rest)), ()
            return
        for pair in whole[1:]:
            unify(whole[0][1], pair[1], "parts of a concatenation are split differently")
        self.parts = (*concatenate([pair[0] for pair in whole]), *whole[0][1])
        self.segments = ()


Factors = tuple[Atom, ...]


def resolve(atoms: Iterable[Atom]) -> Factors:
    """The roots that a product of atoms stands for, without factors of size 1."""
    roots: list[Atom] = []
    for atom in atoms:
        if atom.parts:
            roots.extend(resolve(atom.parts))
        elif atom.size != 1:
            roots.append(atom)
    return tuple(roots)


def count(atoms: Iterable[Atom]) -> int:
    """How many entries a product of atoms has."""
    return prod(atom.size for atom in atoms)


def flat_segments(*atoms: Atom) -> list[Factors]:
    """A product as the concatenation that it is now, concatenations inside and as its major factor taken apart."""
    roots = resolve(atoms)
    if not roots or not roots[0].segments:
        return [roots]
    head, rest = roots[0], roots[1:]
    return [(*piece, *rest) for segment in head.segments for piece in flat_segments(*segment)]


def concatenate(segments: Sequence[Factors]) -> Factors:
    """The axis that runs over all segments one after the other."""
    if len(segments) == 1:
        return resolve(segments[0])
    atom = Atom(sum(count(segment) for segment in segments), segments=tuple(map(tuple, segments)))
    if all(root.fixed for segment in segments for root in resolve(segment)):
        notes = [root.note for segment in segments for root in resolve(segment)]
        atom.fixed, atom.note = True, notes[0] if notes else "single entries side by side"
    return (atom,)


def cut(atoms: Iterable[Atom], at: int) -> tuple[Factors, Factors] | None:
    """Cut an axis into its first ``at`` entries and the rest; ``None`` where the cut runs through a minor factor."""
    roots = resolve(atoms)
    head, rest = roots[0], roots[1:]
    place, remainder = divmod(at, count(rest))
    if remainder:
        return None
    if not head.segments:
        pieces: list[Factors] = [resolve((head.like(n),)) for n in (place, head.size - place)]
        head.segments = tuple(pieces)
        left, right = pieces[:1], pieces[1:]
    else:
        halves = _cut_segments(head, place)
        if halves is None:
            return None
        left, right = halves
    return (*concatenate(left), *rest), (*concatenate(right), *rest)


def _cut_segments(head: Atom, place: int) -> tuple[list[Factors], list[Factors]] | None:
    """Divide the segments of a concatenation, cutting the one that the place falls into."""
    left: list[Factors] = []
    right: list[Factors] = []
    start = 0
    for segment in flat_segments(head):
        end = start + count(segment)
        if end <= place:
            left.append(segment)
        elif start >= place:
            right.append(segment)
        else:
            halves = cut(segment, place - start)
            if halves is None:
                return None
            left.append(halves[0])
            right.append(halves[1])
        start = end
    return left, right


def fix_all(atoms: Iterable[Atom], note: str) -> None:
    """Fix every atom of a product."""
    for atom in atoms:
        atom.fix(note)


def unify(left: Iterable[Atom], right: Iterable[Atom], note: str) -> None:
    """Make two products of equal size the same, splitting where needed and fixing what cannot match.

    Args:
        left: Atoms of one axis.
        right: Atoms of the other.
        note: Reason recorded on what has to be fixed because its factors do not line up.
    """
    left, right = tuple(left), tuple(right)
    while True:
        a, b = resolve(left), resolve(right)
        pair = next(((x, y) for x, y in zip(a, b, strict=False) if x is not y), None)
        if pair is None:
            return
        x, y = pair
        if x.size == y.size:
            _bind(x, y, note)
        elif x.size % y.size == 0:
            x.split(y.size)
        elif y.size % x.size == 0:
            y.split(x.size)
        else:
            fix_all((*a, *b), note)
            return


def _bind(x: Atom, y: Atom, note: str) -> None:
    """Make two roots of the same size one; a concatenation stands for an atom that is not cut."""
    if x.segments and not y.segments:
        x, y = y, x
    if x.segments:
        _align(x, y, note)
    if x.fixed:
        y.fix(x.note)
    y.mark(is_input=x.is_input, is_output=x.is_output)
    y.picked |= x.picked
    x.parts, x.segments = (y,), ()


def _align(x: Atom, y: Atom, note: str) -> None:
    """Cut two concatenations of equal size at each other's borders and unify their segments."""
    while True:
        pairs = zip(flat_segments(x), flat_segments(y), strict=False)
        s, t = next(((s, t) for s, t in pairs if s != t), ((), ()))
        if s == t:
            return
        if count(s) == count(t):
            unify(s, t, note)
            aligned = resolve(s) == resolve(t)
        else:
            smaller, larger = sorted((s, t), key=count)
            aligned = cut(larger, count(smaller)) is not None
        if not aligned:
            x.fix(note)
            y.fix(note)
            return


def regroup(atoms: Iterable[Atom], sizes: Iterable[int]) -> list[Factors] | None:
    """Distribute a product of atoms over axes of new sizes, splitting atoms where an axis ends inside one.

    Returns:
        The atoms of each new axis, or ``None`` where an axis boundary cannot be placed.
    """
    rest = list(resolve(atoms))
    axes: list[Factors] = []
    if 0 in (sizes := tuple(sizes)):
        return None
    for size in sizes:
        taken: list[Atom] = []
        while (missing := size // max(count(taken), 1)) > 1:
            if not rest:
                return None
            head = rest[0]
            if missing % head.size == 0:
                taken.append(rest.pop(0))
            elif head.size % missing == 0:
                head.split(missing)
                taken = list(resolve(taken))
                rest = list(resolve(rest))
            else:
                return None
        axes.append(tuple(taken))
    return axes if not rest else None
