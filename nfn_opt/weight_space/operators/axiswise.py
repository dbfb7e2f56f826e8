"""Normalisation, reductions, pooling, and operators that depend on the order along an axis."""

from __future__ import annotations

from nfn_opt.weight_space.atoms import regroup
from nfn_opt.weight_space.operators.call import Call, Results, Rule, plain, rule
from nfn_opt.weight_space.operators.elementwise import pointwise
from nfn_opt.weight_space.traced import TracedAxis, fresh


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    treats="axes",
)
def batch_norm(call: Call) -> list[TracedAxis]:
    """One scale, shift, mean and variance a channel."""
    axes = call.axes(0)
    channel = axes[1] if len(axes) > 1 else axes[0]
    for position in range(1, 5):
        if len(call.args) > position and call.given(position):
            call.unify(channel, call.axes(position)[0])
            call.role(call.axes(position)[0], "out")
    return list(axes)


@rule("native_layer_norm", "_fused_rms_norm", treats="axes")
def layer_norm(call: Call) -> list[TracedAxis]:
    """Symmetric statistics over the last axes; scale and shift follow them."""
    axes = call.axes(0)
    for position in (2, 3):
        if len(call.args) > position and call.given(position):
            for x, w in zip(reversed(axes), reversed(call.axes(position)), strict=False):
                call.unify(x, w)
                call.role(w, "out")
    return [plain(axis) for axis in axes]


@rule("native_group_norm")
def group_norm(call: Call) -> list[TracedAxis]:
    """Statistics within groups of channels: the channel axis is (groups, channels of a group)."""
    axes = call.axes(0)
    channels, groups = call.args[0].shape[1], call.args[6]
    if regroup(axes[1].atoms, (groups, channels // groups)) is None:
        call.fix(axes[1], f"{call.name} groups cut through it")
    for position in (1, 2):
        if call.given(position):
            call.unify(axes[1], call.axes(position)[0])
            call.role(call.axes(position)[0], "out")
    return [plain(axis) for axis in axes]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", treats="axes")
def softmax(call: Call) -> list[TracedAxis]:
    """Normalisation over an axis treats its entries alike."""
    return [plain(axis) for axis in call.axes(0)]


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "logsumexp",
    "linalg_vector_norm",
    "prod",
    "any",
    "all",
    "norm",
    "nansum",
    treats="whole",
)
def reduction(call: Call) -> list[TracedAxis]:
    """Symmetric functions of the entries along the reduced axes."""
    axes = call.axes(0)
    dims = next((v for k, v in call.named.items() if k in ("dim", "dims") and v is not None), None)
    dims = [dims] if isinstance(dims, int) else dims
    reduced = {d % len(axes) for d in dims} if dims and axes else set(range(len(axes)))
    if call.out.dim() == len(axes):
        return [TracedAxis() if i in reduced else plain(axis) for i, axis in enumerate(axes)]
    return [plain(axis) for i, axis in enumerate(axes) if i not in reduced]


def _pooling(spatial: int) -> Rule:
    def pooling(call: Call) -> list[TracedAxis]:
        """Windows over the last axes, whose order matters."""
        axes = call.axes(0)
        for axis in axes[-spatial:]:
            call.fix(axis, "position")
        return [*map(plain, axes[:-spatial]), *fresh(call.out.shape[-spatial:], "position")]

    return pooling


for _spatial, _names in {
    1: "avg_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d reflection_pad1d replication_pad1d",
    2: "avg_pool2d max_pool2d_with_indices adaptive_max_pool2d _adaptive_avg_pool2d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d reflection_pad2d replication_pad2d fractional_max_pool2d",
    3: "avg_pool3d max_pool3d_with_indices adaptive_max_pool3d _adaptive_avg_pool3d upsample_nearest3d "
    "upsample_trilinear3d reflection_pad3d replication_pad3d",
}.items():
    rule(*_names.split())(_pooling(_spatial))


# Operators that fix one axis and leave the others alone


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "flip", "roll", "sort", "topk", treats="axes")
def along_axis(call: Call) -> list[TracedAxis]:
    """Order matters along every axis that changes size or is named."""
    axes = call.axes(0)
    touched = _touched(call, len(axes))
    new = call.ordered(call.out.shape)
    for i in touched:
        call.fix(axes[i])
    return [new[i] if i in touched else plain(axis) for i, axis in enumerate(axes)]


def _touched(call: Call, dims: int) -> set[int]:
    """Positions of the axes along which entries move."""
    named = call.named.get("dim", call.named.get("dims"))
    named = [named] if isinstance(named, int) else (named or [])
    if call.name == "aten.roll" and not named:
        return set(range(dims))  # rolls the flattened tensor
    touched = {d % dims for d in named}
    return touched | {
        i for i, (a, b) in enumerate(zip(call.args[0].shape, call.out.shape, strict=True)) if a != b
    }


@rule("argmax", "argmin", "max", "min", "median", "mode", "kthvalue", treats="axes")
def extreme(call: Call) -> list[TracedAxis] | Results:
    """A value is symmetric in the entries of an axis, its place is not: the axis keeps its order."""
    axes = call.axes(0)
    dim = call.named.get("dim")
    if "other" in call.named:
        return pointwise(call)
    if dim is None:
        for axis in axes if call.name in ("aten.argmax", "aten.argmin") else []:
            call.fix(axis)
        return []
    call.fix(axes[dim])
    if call.out.dim() == len(axes):
        return [TracedAxis() if i == dim % len(axes) else plain(axis) for i, axis in enumerate(axes)]
    return [plain(axis) for i, axis in enumerate(axes) if i != dim % len(axes)]
