"""Finding parameters whose axes are several things packed one behind the other.

A packed projection gives queries, keys and values in one product, which are then told apart by picking entries along
an axis. What lies behind each entry may then have groups of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nfn_opt.weight_space.atoms import Atom, Factors, concatenate, count, flat_segments
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor

Packing = tuple[int, int, int]
"""Entries before a packed factor, its size, and entries behind it."""
Hints = Mapping[tuple[str, int], Sequence[Packing]]
"""For a stored axis, ``(parameter, position)``: what is packed in each of its parts, one behind the other."""

MOST_PACKED = 16
"""How many things packed on one axis are told apart at most."""


def find_hints(traced: Mapping[str, TracedTensor]) -> Hints:
    """The stored axes that have a factor along which entries were picked, with something behind it."""
    hints = {}
    for name, tensor in traced.items():
        for position, axis in enumerate(tensor.axes):
            packings = [_packing(segment) for segment in flat_segments(*axis.roots)]
            if any(packed > 1 for _, packed, _ in packings):
                hints[name, position] = packings
    return hints


def _packing(roots: Factors) -> Packing:
    """What is packed in a product of factors; where nothing is, all of it lies behind a factor of size 1."""
    for i, root in enumerate(roots[:-1]):
        if root.picked and root.size <= MOST_PACKED:
            return count(roots[:i]), root.size, count(roots[i + 1 :])
    return 1, 1, count(roots)


def parameter_axes(name: str, shape: Sequence[int], hints: Hints) -> list[TracedAxis]:
    """New axes of a parameter, with packed ones as concatenations."""
    axes = []
    for position, size in enumerate(shape):
        atoms: Factors = (Atom(size),) if size != 1 else ()
        if (name, position) in hints:
            atoms = concatenate([_unpacked(*packing) for packing in hints[name, position]])
        axes.append(TracedAxis(atoms, frozenset({(name, position)})))
    return axes


def _unpacked(before: int, packed: int, behind: int) -> Factors:
    return (Atom(before), *concatenate([(Atom(behind),) for _ in range(packed)]))
