"""Operators that see the same entries in another shape, order or number."""

from __future__ import annotations

from itertools import accumulate
from math import prod
from operator import mul

from nfn_opt.weight_space.atoms import Factors, count, flat_segments, regroup
from nfn_opt.weight_space.operators.call import Call, Results, plain, rule
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor, fresh


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", treats="whole")
def reshape(call: Call) -> list[TracedAxis] | Results:
    """Row-major regrouping of the axes' factors; a concatenation cut into its parts becomes a stack of them."""
    tensor, shape = call.traced(0), tuple(call.out.shape)
    if tensor.along is not None and (kept := _reshaped_stack(tensor, shape)) is not None:
        return Results([kept])
    axes = (_concatenated(tensor, shape) if tensor.along is not None else None) or tensor.axes
    roots = [root for axis in axes for root in axis.roots]
    if (stack := _stack_of_segments(tuple(roots), shape)) is not None:
        return Results([stack])
    groups = regroup(roots, shape)
    if groups is None:
        for axis in axes:
            call.fix(axis, f"{call.name} cuts through it")
        return call.ordered(shape)
    owners = {id(atom): axis.origins for axis in axes for atom in axis.roots}
    return [
        TracedAxis(g, frozenset[tuple[str, int]]().union(*(owners.get(id(a), ()) for a in g))) for g in groups
    ]


def _prefixes(shape: tuple[int, ...]) -> list[int]:
    """How many entries the axes before each axis have, and at last how many all have."""
    return list(accumulate(shape, mul, initial=1))


def _position(shape: tuple[int, ...], before: int, size: int) -> int | None:
    """Where a shape has an axis of a size with so many entries on the axes before it."""
    return next(
        (
            i
            for i, (n, p) in enumerate(zip(shape, _prefixes(shape), strict=False))
            if (n, p) == (size, before)
        ),
        None,
    )


def _without(shape: tuple[int, ...], position: int) -> tuple[int, ...]:
    return (*shape[:position], *shape[position + 1 :])


def _regrouped(alternatives: list[Factors], shape: tuple[int, ...]) -> list[list[TracedAxis]] | None:
    regrouped = [regroup(roots, shape) for roots in alternatives]
    if any(groups is None for groups in regrouped):
        return None
    return [[TracedAxis(group) for group in groups or ()] for groups in regrouped]


def _reshaped_stack(tensor: TracedTensor, shape: tuple[int, ...]) -> TracedTensor | None:
    """A stack in a new shape that keeps the axis along which it is one."""
    assert tensor.along is not None
    position = _position(shape, prod(tensor.shape[: tensor.along]), tensor.shape[tensor.along])
    if position is None:
        return None
    roots = [tuple(r for axis in axes for r in axis.roots) for axes in tensor.alternatives]
    alternatives = _regrouped(roots, _without(shape, position))
    return None if alternatives is None else TracedTensor.stack(position, alternatives)


def _concatenated(tensor: TracedTensor, shape: tuple[int, ...]) -> list[TracedAxis] | None:
    """The axes of a stack whose ordered axis is joined to the one behind it by the new shape."""
    assert tensor.along is not None
    end = prod(tensor.shape[: tensor.along + 1])
    return None if end in _prefixes(shape) else tensor.concatenated()


def _stack_of_segments(roots: Factors, shape: tuple[int, ...]) -> TracedTensor | None:
    """The stack that comes of cutting a concatenation of equally long parts into its parts."""
    for i, root in enumerate(roots):
        segments = flat_segments(root) if root.segments else []
        if len({count(segment) for segment in segments}) != 1 or count(segments[0]) == 1:
            continue
        position = _position(shape, count(roots[:i]), len(segments))
        if position is None:
            continue
        alternatives = _regrouped(
            [(*roots[:i], *s, *roots[i + 1 :]) for s in segments], _without(shape, position)
        )
        if alternatives is not None:
            return TracedTensor.stack(position, alternatives)
    return None


def _reordered(call: Call, order: list[int]) -> list[TracedAxis] | Results:
    tensor = call.traced(0)
    if tensor.along is None:
        return [tensor.axes[i] for i in order]
    kept = [i - (i > tensor.along) for i in order if i != tensor.along]
    alternatives = [[axes[i] for i in kept] for axes in tensor.alternatives]
    return Results([TracedTensor.stack(order.index(tensor.along), alternatives)])


@rule("t", treats="whole")
def transpose_matrix(call: Call) -> list[TracedAxis] | Results:
    """Swap the two axes."""
    return _reordered(call, list(range(call.out.dim()))[::-1])


@rule("transpose", "swapaxes", treats="whole")
def transpose(call: Call) -> list[TracedAxis] | Results:
    """Swap two axes."""
    order = list(range(call.out.dim()))
    i, j = call.args[1], call.args[2]
    order[i], order[j] = order[j], order[i]
    return _reordered(call, order)


@rule("permute", treats="whole")
def permute(call: Call) -> list[TracedAxis] | Results:
    """Reorder the axes."""
    return _reordered(call, [i % call.out.dim() for i in call.args[1]])


@rule("as_strided")
def restrided(call: Call) -> list[TracedAxis]:
    """Other strides: the same entries where only axes of size 1 have others, as pooling to one pixel makes them."""
    axes, shape = call.axes(0), tuple(call.args[1])
    former = call.former_stride or call.args[0].stride()
    same = shape == tuple(count(axis.roots) for axis in axes) and call.named["storage_offset"] is None
    moved = any(n > 1 and a != b for n, a, b in zip(shape, former, call.args[2], strict=False))
    if same and not moved:
        return list(axes)
    for axis in axes:
        call.fix(axis, f"{call.name} is not understood")
    return call.ordered(call.out.shape)


@rule("expand", treats="whole")
def expand(call: Call) -> list[TracedAxis]:
    """Repeat along axes of size 1; the repeats are all equal, so any permutation keeps them."""
    axes = call.axes(0)
    new = fresh(call.out.shape)
    return [axes[i] if len(axes) >= -i and axes[i].atoms else new[i] for i in range(-len(new), 0)]


@rule("repeat")
def repeat(call: Call) -> list[TracedAxis]:
    """Tile: a new major factor of equal copies on each axis."""
    axes = call.axes(0)
    times = call.args[1]
    copies = fresh(times)
    axes = [TracedAxis()] * (len(times) - len(axes)) + list(axes)
    return [TracedAxis((*c.atoms, *a.atoms)) for c, a in zip(copies, axes, strict=True)]


@rule("view_as_complex", "view_as_complex_copy", treats="axes")
def complex_numbers(call: Call) -> list[TracedAxis]:
    """Real and imaginary parts along the last axis, which is ordered, become one number."""
    axes = call.axes(0)
    call.fix(axes[-1])
    return [plain(axis) for axis in axes[:-1]]


@rule("view_as_real", "view_as_real_copy", treats="axes")
def real_numbers(call: Call) -> list[TracedAxis]:
    """A new ordered last axis of real and imaginary parts."""
    return [*map(plain, call.axes(0)), *call.ordered((2,))]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> list[TracedAxis]:
    """The channel axis is (groups, channels of a group), and its factors are swapped."""
    axes = list(call.axes(0))
    groups, channels = call.args[1], call.out.shape[1]
    pieces = regroup(axes[1].atoms, (groups, channels // groups))
    if pieces is None:
        call.fix(axes[1], f"{call.name} cuts through it")
        return [*axes[:1], *call.ordered((channels,)), *axes[2:]]
    return [axes[0], TracedAxis((*pieces[1], *pieces[0])), *axes[2:]]


@rule("pixel_shuffle", "pixel_unshuffle", "im2col", "col2im")
def rearranged_positions(call: Call) -> list[TracedAxis]:
    """Positions move into the minor factor of the channels or out of it, and keep their order."""
    spatial = {"aten.im2col": (2, 1), "aten.col2im": (1, 2)}.get(call.name, (2, 2))
    axes, shape = call.axes(0), tuple(call.out.shape)
    channels, wanted = axes[-spatial[0] - 1], shape[-spatial[1] - 1]
    for axis in axes[-spatial[0] :]:
        call.fix(axis, "position")
    size = count(channels.roots)
    if wanted >= size:
        minor = fresh((wanted // size,), "position")[0]
        channel = TracedAxis((*channels.atoms, *minor.atoms))
    elif (pieces := regroup(channels.atoms, (wanted, size // wanted))) is not None:
        call.fix(TracedAxis(pieces[1]), "position")
        channel = TracedAxis(pieces[0])
    else:
        call.fix(channels, f"{call.name} cuts through it")
        channel = call.ordered((wanted,))[0]
    return [*axes[: -spatial[0] - 1], channel, *fresh(shape[-spatial[1] :], "position")]
