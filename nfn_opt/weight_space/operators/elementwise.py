"""Operators that work entry by entry, and constants."""

from __future__ import annotations

from nfn_opt.weight_space.operators.call import Call, Results, plain, rule
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor, fresh


@rule(
    *("fill", "zero", "copy", "native_dropout", "_prelu_kernel", "hardswish", "log_sigmoid_forward"),
    *("rrelu_with_noise", "bernoulli", "floor_divide", "complex", "polar"),
    treats="whole",
)
def pointwise(call: Call) -> list[TracedAxis]:
    """Entry by entry with broadcasting: axes that meet become one."""
    tensors = call.tensors()
    pure = not any(t.active for t in tensors)
    axes: list[TracedAxis] = []
    for position in range(-call.out.dim(), 0):
        there = [t.axes[position] for t in tensors if len(t.axes) >= -position and t.axes[position].atoms]
        axis = call.unify_all(there)
        for axis_there in there if not pure else []:
            call.role(axis_there, "out")
        origins = frozenset[tuple[str, int]]().union(*(a.origins for a in there)) if pure else frozenset()
        axes.append(TracedAxis(axis.atoms, origins))
    return axes


@rule("_weight_norm_interface", treats="whole")
def weight_norm(call: Call) -> list[TracedAxis] | Results:
    """``g * v / |v|``: a scale for each entry of one axis, a symmetric norm over the others."""
    return pointwise(call)


@rule(
    *(
        "clone",
        "detach",
        "alias",
        "_to_copy",
        "contiguous",
        "lift_fresh",
        "lift_fresh_copy",
        "lift",
        "positive",
    ),
    treats="whole",
)
def identity(call: Call) -> list[TracedAxis] | Results:
    """The same entries in the same order."""
    tensor = call.traced(0)
    if tensor.along is None:
        return list(tensor.axes)
    return Results([TracedTensor.stack(tensor.along, tensor.alternatives)])


@rule(
    *(
        "zeros",
        "ones",
        "full",
        "empty",
        "empty_strided",
        "scalar_tensor",
        "zeros_like",
        "ones_like",
        "full_like",
    ),
    *("empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
    treats="whole",
)
def constant(call: Call) -> list[TracedAxis]:
    """All entries equal: no permutation changes them."""
    return fresh(call.out.shape)


@rule(
    "arange",
    "linspace",
    "logspace",
    "eye",
    "rand",
    "randn",
    "randint",
    "rand_like",
    "randn_like",
    "tril_indices",
)
def ordered_constant(call: Call) -> list[TracedAxis]:
    """Entries that differ: the order matters."""
    return call.ordered(call.out.shape)


@rule("tril", "triu")
def triangle(call: Call) -> list[TracedAxis]:
    """Entries above or below the diagonal are dropped: the last two axes keep their order."""
    axes = call.axes(0)
    for axis in axes[-2:]:
        call.fix(axis)
    return [plain(axis) for axis in axes]


@rule("glu")
def gated(call: Call) -> list[TracedAxis]:
    """One half of an axis scales the other, entry by entry."""
    axes = call.axes(0)
    dim = call.named["dim"] % len(axes)
    halves = call.cut(axes[dim], [call.out.shape[dim]] * 2)
    if halves is None:
        return [call.ordered(call.out.shape)[dim] if i == dim else plain(axis) for i, axis in enumerate(axes)]
    call.unify(*halves)
    return [halves[0] if i == dim else plain(axis) for i, axis in enumerate(axes)]
