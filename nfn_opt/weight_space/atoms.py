"""Axis identities under unification: the union-find that the tracer works with.

During tracing every axis of every tensor is a product of *atoms*, major first. Two axes that an operator
combines entry by entry are *unified*: their atoms become the same. An atom may be split when a reshape or a
unification cuts it, and fixed when an operator depends on the order of its entries. All three only ever remove
permutations, so whatever is left at the end is a symmetry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod


@dataclass(eq=False)
class Atom:
    """One factor of an axis. ``parts`` is what it was bound to; a root has none."""

    size: int
    fixed: bool = False
    note: str = ""
    is_input: bool = False
    is_output: bool = False
    parts: tuple[Atom, ...] = ()

    def fix(self, note: str) -> None:
        """Take the permutations of this atom away, for the reason ``note``."""
        for root in resolve((self,)):
            if not root.fixed:
                root.fixed, root.note = True, note

    def split(self, first: int) -> None:
        """Bind a root to the product of ``first`` and the rest."""
        assert not self.parts
        assert self.size % first == 0
        self.parts = tuple(
            Atom(size, self.fixed, self.note, self.is_input, self.is_output)
            for size in (first, self.size // first)
        )

    def merge(self, other: Atom) -> None:
        """Bind a root to another root of the same size."""
        assert self.size == other.size
        if self.fixed:
            other.fix(self.note)
        other.is_input |= self.is_input
        other.is_output |= self.is_output
        self.parts = (other,)


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
            x.merge(y)
        elif x.size % y.size == 0:
            x.split(y.size)
        elif y.size % x.size == 0:
            y.split(x.size)
        else:
            fix_all((*a, *b), note)
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
        while (missing := size // max(prod(a.size for a in taken), 1)) > 1:
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


@dataclass
class TracedAxis:
    """One axis of a traced tensor.

    Attributes:
        atoms: Its factors, major first; none for an axis of size 1.
        origins: The stored parameter axes that it is a view of, as ``(parameter, axis)``.
    """

    atoms: Factors = ()
    origins: frozenset[tuple[str, int]] = frozenset()

    @property
    def roots(self) -> Factors:
        """Its factors as they are now."""
        return resolve(self.atoms)


@dataclass
class TracedTensor:
    """The axes of a traced tensor, and whether it depends on the model's inputs."""

    axes: list[TracedAxis]
    active: bool = False
    buffer: str = field(default="")


def fresh(shape: Iterable[int], note: str | None = None) -> list[TracedAxis]:
    """New axes for a tensor of this shape, unknown so far, or fixed for the reason ``note``."""
    return [
        TracedAxis((Atom(size, fixed=note is not None, note=note or ""),) if size != 1 else ())
        for size in shape
    ]


def sizes(axes: Iterable[TracedAxis]) -> tuple[int, ...]:
    """The sizes of the axes, that is the shape of their tensor."""
    return tuple(prod(atom.size for atom in axis.roots) for axis in axes)
