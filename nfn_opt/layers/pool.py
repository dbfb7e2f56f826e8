"""Means over indices, and the way back: reading small tensors from large ones and spreading small ones over large.

Both are linear, and each is the other's adjoint up to a factor. So the two functions serve forward and backward
pass alike: the gradient of a reading is spread, the gradient of what was spread is pooled.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfn_opt.layers.patterns import Block, Pattern, average


@dataclass(frozen=True)
class Pool:
    """How the patterns of one tensor are pooled, each from the smallest that has its indices.

    Attributes:
        patterns: The patterns, of one tensor.
        parents: For each the number of the pattern that it is pooled from, or ``None`` for the tensor itself.
        dims: The dimensions that are summed.
        order: An order in which parents come first.
    """

    patterns: tuple[Pattern, ...]
    parents: tuple[int | None, ...]
    dims: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]


def pool_of(patterns: tuple[Pattern, ...]) -> Pool:
    """The pool of some patterns of a tensor."""
    free = [set(pattern.free_dims) for pattern in patterns]
    order = sorted(range(len(patterns)), key=lambda i: len(free[i]))
    parents: list[int | None] = [None] * len(patterns)
    dims = [tuple(sorted(dims)) for dims in free]
    for place, i in enumerate(order):
        known = [j for j in order[:place] if patterns[j].layout == patterns[i].layout and free[j] <= free[i]]
        known = [j for j in known if free[j] or patterns[j].diagonal]
        if known:
            best = max(known, key=lambda j: patterns[j].count)
            parents[i], dims[i] = best, tuple(sorted(free[i] - free[best]))
    return Pool(patterns, tuple(parents), tuple(dims), tuple(order))


def pool(tensor: Tensor, plan: Pool, *, mean: bool) -> list[Tensor]:
    """For each pattern the mean or sum over its free indices.

    Args:
        tensor: Features of one parameter, ``(B, *axes, C)``.
        plan: Patterns of the parameter and how they are pooled.
        mean: Mean or sum.

    Returns:
        For each pattern ``(B, *layout, C)`` with size 1 where an index is free.
    """
    done: dict[int, Tensor] = {}
    for i in plan.order:
        parent, dims = plan.parents[i], plan.dims[i]
        source = plan.patterns[i].restrict(tensor) if parent is None else done[parent]
        if mean:
            done[i] = average(source, dims)
        else:
            done[i] = source.sum(dims, keepdim=True) if dims else source
    return [done[i] for i in range(len(plan.patterns))]


def empty(shape: Sequence[int], like: Tensor, large: int = 1 << 25) -> Tensor:
    """New memory for a result, on the CPU in large pages where the system offers them.

    Beyond 32 MiB the C library hands every block back to the system, and taking it anew in pages of 4 KiB costs
    several times as long as writing it.
    """
    out = like.new_empty(shape)
    size = out.numel() * out.element_size()
    if size > large and _MADVISE is not None and out.device.type == "cpu":
        start = -(-out.data_ptr() // _PAGE) * _PAGE
        _MADVISE(
            start, (out.data_ptr() + size - start) // _PAGE * _PAGE, _MADV_HUGEPAGE
        )  # advice may be refused
    return out


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """The system call, on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


_PAGE, _MADV_HUGEPAGE = 4096, 14
_MADVISE = _find_madvise()

Terms = Sequence[tuple[Pattern, Tensor]]
"""Patterns of one parameter, each with ``(B, *layout, C)``, size 1 where an index is free."""


def spread(terms: Terms, shape: Sequence[int]) -> Tensor:
    """A new tensor ``(B, *axes, C)``: the broadcast sum of terms that are not on diagonals.

    Args:
        terms: At least one.
        shape: Shape of the result.
    """
    sums = _nested_sums(terms)
    out = empty(shape, sums[0])
    if len(sums) > 1 and torch.broadcast_shapes(sums[0].shape, sums[1].shape) == out.shape:
        torch.add(sums[0], sums[1], out=out)
        rest = sums[2:]
    else:
        out.copy_(sums[0])
        rest = sums[1:]
    for total in rest:
        out += total
    return out


def add_spread(out: Tensor, terms: Terms) -> Tensor:
    """Add the broadcast sum of terms, those on diagonals included, to ``(B, *axes, C)`` in place."""
    layouts: dict[tuple[Block, ...], list[tuple[Pattern, Tensor]]] = {}
    for pattern, term in terms:
        layouts.setdefault(pattern.layout, []).append((pattern, term))
    for same in layouts.values():
        view = same[0][0].restrict(out)
        for total in _nested_sums(same):
            view += total
    return out


def spread_anew(terms: Terms, start: Tensor | None) -> Tensor:
    """The same out of place, for automatic differentiation, transforms and compilers; broadcasts to the shape."""
    layouts: dict[tuple[Block, ...], list[tuple[Pattern, Tensor]]] = {}
    for pattern, term in terms:
        layouts.setdefault(pattern.layout, []).append((pattern, term))
    out = start
    for same in sorted(layouts.values(), key=lambda entry: entry[0][0].diagonal):
        pattern = same[0][0]
        if not pattern.diagonal:
            for total in _nested_sums(same):
                out = total if out is None else out + total
            continue
        total = sum((term for _, term in same[1:]), start=same[0][1])
        on_diagonal = pattern.widen(total) * pattern.mask(total)
        out = on_diagonal if out is None else out + on_diagonal
    assert out is not None, "nothing to spread"
    return out


def _nested_sums(terms: Terms) -> list[Tensor]:
    """As few tensors as possible with the same broadcast sum: each has an index that the others lack."""
    placed = sorted(((set(p.free_dims), term) for p, term in terms), key=lambda entry: -len(entry[0]))
    sums: list[tuple[set[int], Tensor]] = []
    for free, total in placed:
        rest = []
        for outer, smaller in sums:
            if outer >= free:
                total = total + smaller
            else:
                rest.append((outer, smaller))
        sums = [*rest, (free, total)]
    return [total for _, total in sums]
