"""Sums of products: matrix products, convolutions and their like."""

from __future__ import annotations

from nfn_opt.weight_space.atoms import regroup, unify
from nfn_opt.weight_space.operators.call import Call, plain, rule
from nfn_opt.weight_space.traced import TracedAxis, fresh


def contract(call: Call, left: TracedAxis, right: TracedAxis) -> None:
    """Sum of products over two axes."""
    call.unify(left, right)
    call.role(left, "in")
    call.role(right, "in")


def survive(call: Call, *axes: TracedAxis) -> list[TracedAxis]:
    """Axes that a contraction keeps."""
    for axis in axes:
        call.role(axis, "out")
    return [plain(axis) for axis in axes]


@rule("mm", "bmm", treats="whole")
def matrix_product(call: Call) -> list[TracedAxis]:
    """``(..., m, k) @ (..., k, n)``."""
    a, b = call.axes(0), call.axes(1)
    contract(call, a[-1], b[-2])
    for x, y in zip(a[:-2], b[:-2], strict=True):
        call.unify(x, y)
    return survive(call, *a[:-2], a[-2], b[-1])


@rule("addmm", "baddbmm", treats="whole")
def added_matrix_product(call: Call) -> list[TracedAxis]:
    """``bias + a @ b``, the bias broadcast."""
    bias, a, b = call.axes(0), call.axes(1), call.axes(2)
    contract(call, a[-1], b[-2])
    for x, y in zip(a[:-2], b[:-2], strict=True):
        call.unify(x, y)
    axes = survive(call, *a[:-2], a[-2], b[-1])
    for x, y in zip(reversed(bias), reversed(axes), strict=False):
        call.unify(y, x)
        call.role(x, "out")
    return axes


@rule("mv", "dot", "vdot", treats="whole")
def vector_product(call: Call) -> list[TracedAxis]:
    """``(..., k) @ (k,)``."""
    a, b = call.axes(0), call.axes(1)
    contract(call, a[-1], b[0])
    return survive(call, *a[:-1])


@rule("addmv", treats="whole")
def added_vector_product(call: Call) -> list[TracedAxis]:
    """``bias + a @ v``."""
    contract(call, call.axes(1)[1], call.axes(2)[0])
    axes = survive(call, call.axes(1)[0])
    for axis in call.axes(0):
        call.unify(axes[0], axis)
    return axes


@rule("_trilinear")
def trilinear(call: Call) -> list[TracedAxis]:
    """A sum of products of three tensors, each repeated along the axes that it lacks."""
    tensors = []
    for position in range(3):
        axes = list(call.axes(position))
        for dim in sorted(call.args[3 + position]):
            axes.insert(dim, TracedAxis())
        tensors.append(axes)
    summed = set(call.args[6])
    result = []
    for i, meeting in enumerate(zip(*tensors, strict=True)):
        axis = call.unify_all(meeting)
        for there in meeting:
            call.role(there, "in" if i in summed else "out")
        result += [] if i in summed else [plain(axis)]
    return result


@rule("_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> list[TracedAxis]:
    """Distances between all pairs of vectors: symmetric in the vectors' entries."""
    a, b = call.axes(0), call.axes(1)
    contract(call, a[-1], b[-1])
    batch = [plain(call.unify_all(pair)) for pair in zip(a[:-2], b[:-2], strict=False)]
    if len(a) != len(b):
        call.fix_everything(f"{call.name} of different dimensions is not understood")
        return call.ordered(call.out.shape)
    return [*batch, *survive(call, a[-2], b[-2])]


@rule("convolution")
def convolution(call: Call) -> list[TracedAxis]:
    """Channels are contracted, group by group; positions and kernel entries keep their order."""
    x, weight = call.axes(0), call.axes(1)
    transposed, groups = call.args[6], call.args[8]
    spatial = x[len(x) - len(weight) + 2 :]
    channels, batch = x[-len(spatial) - 1], x[: -len(spatial) - 1]
    for axis in (*spatial, *weight[2:]):
        call.fix(axis, "position")
    for axis in weight[2:]:
        call.role(axis, "space")
    first, second = (weight[1], weight[0]) if not transposed else (weight[0], weight[1])
    produced = _grouped_channels(call, channels, weight, groups, transposed)
    call.role(first, "in")
    call.role(second, "out")
    if call.given(2):
        call.unify(produced, call.axes(2)[0])
        call.role(call.axes(2)[0], "out")
    return [*batch, plain(produced), *fresh(call.out.shape[-len(spatial) :], "position")]


def _grouped_channels(
    call: Call, channels: TracedAxis, weight: list[TracedAxis], groups: int, transposed: bool
) -> TracedAxis:
    """Match the channels of a (grouped) convolution; returns the axis of the channels produced."""
    if groups == 1:
        consumed, produced = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
        call.unify(channels, consumed)
        return produced
    stored = call.args[1].shape
    depthwise = stored[0] == groups and stored[1] == 1
    if depthwise:
        call.unify(channels, weight[0])
        return weight[0]
    in_size = call.args[0].shape[-len(weight) + 1]
    pieces = regroup(channels.atoms, (groups, in_size // groups))
    kept = regroup(weight[0].atoms, (groups, stored[0] // groups))
    if pieces is None or kept is None:
        for axis in (channels, *weight):
            call.fix(axis, f"{call.name} groups cut through it")
        return call.ordered((call.out.shape[-len(weight) + 1],))[0]
    note = f"{call.name} combines axes that are split differently"
    unify(pieces[0], kept[0], note)
    if transposed:
        unify(pieces[1], kept[1], note)
        return TracedAxis((*kept[0], *weight[1].atoms))
    unify(pieces[1], weight[1].atoms, note)
    return weight[0]
