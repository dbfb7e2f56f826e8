"""Finding parameters whose axes are several things packed one behind the other.

A packed projection gives queries, keys and values in one product, which are then told apart by picking entries along
an axis. What lies behind each entry may then have groups of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nfn_opt.weight_space.atoms import Atom, concatenate, count
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor

Hints = Mapping[tuple[str, int], tuple[int, int, int]]
"""For a stored axis, ``(parameter, position)``: entries before the packed factor, its size, and entries behind it."""

MOST_PACKED = 16
"""How many things packed on one axis are told apart at most."""


def find_hints(traced: Mapping[str, TracedTensor]) -> Hints:
    """The stored axes that have a factor along which entries were picked, with something behind it."""
    hints = {}
    for name, tensor in traced.items():
        for position, axis in enumerate(tensor.axes):
            roots = axis.roots
            for i, root in enumerate(roots[:-1]):
                if root.picked and root.size <= MOST_PACKED:
                    hints[name, position] = (count(roots[:i]), root.size, count(roots[i + 1 :]))
                    break
    return hints


def parameter_axes(name: str, shape: Sequence[int], hints: Hints) -> list[TracedAxis]:
    """New axes of a parameter, with packed ones as concatenations."""
    axes = []
    for position, size in enumerate(shape):
        atoms: tuple[Atom, ...] = (Atom(size),) if size != 1 else ()
        if (name, position) in hints:
            before, packed, behind = hints[name, position]
            atoms = (Atom(before), *concatenate([(Atom(behind),) for _ in range(packed)]))
        axes.append(TracedAxis(atoms, frozenset({(name, position)})))
    return axes
