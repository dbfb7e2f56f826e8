"""Joining neighbouring factors that a network only ever treats as one axis.

An image of ``(3, 8, 8)`` that is flattened before its first linear layer has 192 interchangeable pixels, but the
tracer, which starts from the axes of the input, sees three factors. Two factors may be joined where every operator
that touches one of them has the other right behind it and treats the two as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod

from nfn_opt.weight_space import operators
from nfn_opt.weight_space.atoms import Atom, Factors, flat_segments, resolve
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor

Run = tuple[Factors, bool]
"""Factors, major first, and whether they were treated as one; otherwise each stands for itself."""


def runs(rule: operators.Rule, tensors: Iterable[Sequence[TracedAxis]]) -> list[Run]:
    """What an operator call treats as one, for each of its tensors."""
    treats = operators.TREATMENTS.get(rule, "inside")
    if treats == "whole":
        return [whole(axes) for axes in tensors]
    return [(axis.atoms, treats == "axes") for axes in tensors for axis in axes]


def whole(axes: Iterable[TracedAxis]) -> Run:
    """All factors of a tensor, treated as one."""
    return tuple(atom for axis in axes for atom in axis.atoms), True


def join(seen: Iterable[Run], parameters: Iterable[TracedTensor]) -> dict[Atom, Atom | None]:
    """Find chains of factors that may be joined.

    Args:
        seen: All runs of the forward pass.
        parameters: Only factors that appear in these are joined.

    Returns:
        For the first factor of each chain the factor that stands for all of it, for the others ``None``.
    """
    named = {
        root for tensor in parameters for axis in tensor.axes for root in primes(axis.atoms) if not root.fixed
    }
    after, before = _neighbours(seen)
    following: dict[Atom, Atom] = {}
    for left in named:
        right = next(iter(after[left]), None)
        if right in named and after[left] == {right} and before[right] == {left}:
            following[left] = right
    joined: dict[Atom, Atom | None] = dict.fromkeys(following.values())
    for head in following.keys() - joined.keys():
        joined[head] = _chain(head, following)
    return joined


Neighbours = dict[Atom | None, set[Atom | None]]


def _neighbours(seen: Iterable[Run]) -> tuple[Neighbours, Neighbours]:
    """All that comes right after and right before each factor, ``None`` for the end of a run."""
    after: Neighbours = {}
    before: Neighbours = {}
    pending = [(resolve(atoms), together) for atoms, together in seen]
    taken_apart: set[Factors] = set()
    while pending:
        roots, together = pending.pop()
        for group in [roots] if together else [(root,) for root in roots]:
            for left, right in pairwise((None, *group, None)):
                after.setdefault(left, set()).add(right)
                before.setdefault(right, set()).add(left)
        for root in roots:
            for segment in flat_segments(root) if root.segments else ():
                if segment not in taken_apart:
                    taken_apart.add(segment)
                    pending.append((segment, True))
    return after, before


def primes(atoms: Iterable[Atom]) -> Iterator[Atom]:
    """All roots of an axis, those inside of concatenations in place of the concatenations."""
    for root in resolve(atoms):
        if root.segments:
            for segment in flat_segments(root):
                yield from primes(segment)
        else:
            yield root


def _chain(head: Atom, following: Mapping[Atom, Atom]) -> Atom:
    members = [head]
    while members[-1] in following:
        members.append(following[members[-1]])
    return Atom(
        prod(atom.size for atom in members),
        is_input=any(atom.is_input for atom in members),
        is_output=any(atom.is_output for atom in members),
    )


def joined_factors(atoms: Factors, joined: Mapping[Atom, Atom | None]) -> Factors:
    """A product with its chains joined."""
    return tuple(atom for root in resolve(atoms) if (atom := joined.get(root, root)) is not None)


def joined_axes(axes: Iterable[TracedAxis], joined: Mapping[Atom, Atom | None]) -> list[tuple[int, Factors]]:
    """The factors of each axis by its position, chains joined; an axis that went into one before it is left out."""
    result: list[tuple[int, Factors]] = []
    for position, axis in enumerate(axes):
        kept = joined_factors(axis.roots, joined)
        if kept or not axis.roots:
            result.append((position, kept))
    return result
