"""How each ATen operator treats the axes of its arguments: the rules of the symmetry tracer.

A rule gets the traced arguments and says which axes the operator combines, which it keeps, and which it fixes.
Each rule is sound on its own: with the axes unified and fixed as it says, permuting the arguments permutes the
result. The operators are those that the dispatcher shows below autograd, where composite ones are already taken
apart (``linear`` is ``t`` and ``addmm``; ``einsum`` is ``permute``, ``reshape`` and ``bmm``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.weight_space.atoms import TracedAxis, TracedTensor, fix_all, fresh, regroup, unify

aten = torch.ops.aten


class Call:
    """One operator call as its rule sees it.

    Attributes:
        name: The operator's name, such as ``aten.mm``.
        args: Positional arguments, fully expanded with the schema's defaults for those not given.
        results: The tensors given back.
    """

    def __init__(
        self,
        func: Any,
        args: dict[str, Any],
        results: Sequence[Tensor],
        lookup: Callable[[Tensor], TracedTensor],
        roles: dict[tuple[str, int], str],
    ) -> None:
        self.func, self.named, self.results, self._lookup, self._roles = func, args, results, lookup, roles
        self.name = str(func).rsplit(".", 1)[0]
        self.args = list(args.values())

    @property
    def out(self) -> Tensor:
        """The first result."""
        return self.results[0]

    def tensors(self) -> list[TracedTensor]:
        """All tensor arguments, those inside lists included."""
        flat = [x for arg in self.args for x in (arg if isinstance(arg, list | tuple) else [arg])]
        return [self._lookup(x) for x in flat if isinstance(x, Tensor)]

    def axes(self, position: int) -> list[TracedAxis]:
        """The axes of the tensor argument at a position."""
        return self._lookup(self.args[position]).axes

    def given(self, position: int) -> bool:
        """Whether an optional tensor argument is there."""
        return isinstance(self.args[position], Tensor)

    def unify(self, left: TracedAxis, right: TracedAxis) -> None:
        """Record that the operator matches two axes entry by entry."""
        if left.atoms and right.atoms:
            unify(left.atoms, right.atoms, f"{self.name} combines axes that are split differently")

    def fix(self, axis: TracedAxis, why: str = "") -> None:
        """Record that the operator depends on the order along an axis."""
        fix_all(axis.atoms, why or f"ordered in {self.name}")

    def fix_everything(self, why: str) -> None:
        """Record that nothing is known about how the operator treats its arguments."""
        for tensor in self.tensors():
            for axis in tensor.axes:
                self.fix(axis, why)

    def role(self, axis: TracedAxis, role: str) -> None:
        """Record what a parameter's axis does."""
        for origin in axis.origins:
            self._roles.setdefault(origin, role)

    def ordered(self, shape: Sequence[int]) -> list[TracedAxis]:
        """New fixed axes of the given sizes."""
        return fresh(shape, f"ordered in {self.name}")


Rule = Callable[[Call], "list[TracedAxis]"]
RULES: dict[Any, Rule] = {}
"""Operator packet to rule. Operators that PyTorch tags as pointwise need no entry."""


def rule(*packets: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of ``torch.ops.aten``, by name; names this PyTorch lacks are passed over."""

    def register(function: Rule) -> Rule:
        for name in packets:
            if hasattr(aten, name):
                RULES[getattr(aten, name)] = function
        return function

    return register


def plain(axis: TracedAxis) -> TracedAxis:
    """The axis without its link to a parameter."""
    return TracedAxis(axis.atoms)


def find_rule(func: Any) -> Rule | None:
    """The rule of an operator; one that works in place has the rule of its twin that does not."""
    packet = getattr(func, "overloadpacket", func)
    if packet in RULES or getattr(func, "namespace", "") != "aten":
        return RULES.get(packet)
    twin = getattr(aten, packet.__name__.removesuffix("_"), packet)
    if twin in RULES:
        return RULES[twin]
    tagged = (func, *(getattr(twin, name) for name in twin.overloads() if twin is not packet))
    return pointwise if any(torch.Tag.pointwise in overload.tags for overload in tagged) else None


@rule(
    "fill",
    "zero",
    "copy",
    "native_dropout",
    "_prelu_kernel",
    "hardswish",
    "log_sigmoid_forward",
    "rrelu_with_noise",
    "floor_divide",
    "complex",
    "polar",
)
def pointwise(call: Call) -> list[TracedAxis]:
    """Entry by entry with broadcasting: axes that meet become one."""
    tensors = call.tensors()
    pure = not any(t.active for t in tensors)
    axes: list[TracedAxis] = []
    for position in range(-call.out.dim(), 0):
        there = [t.axes[position] for t in tensors if len(t.axes) >= -position and t.axes[position].atoms]
        for axis in there[1:]:
            call.unify(there[0], axis)
        for axis in there if not pure else []:
            call.role(axis, "out")
        origins = frozenset[tuple[str, int]]().union(*(a.origins for a in there)) if pure else frozenset()
        axes.append(TracedAxis(there[0].atoms, origins) if there else TracedAxis())
    return axes


@rule(
    "clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "lift", "positive"
)
def identity(call: Call) -> list[TracedAxis]:
    """The same entries in the same order."""
    return list(call.axes(0))


@rule(
    "zeros", "ones", "full", "empty", "empty_strided", "scalar_tensor", "zeros_like", "ones_like", "full_like"
)
def constant(call: Call) -> list[TracedAxis]:
    """All entries equal: no permutation changes them."""
    return fresh(call.out.shape)


RULES.update(
    {getattr(aten, n): constant for n in ("empty_like", "new_zeros", "new_ones", "new_full", "new_empty")}
)


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


# Views


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten")
def reshape(call: Call) -> list[TracedAxis]:
    """Row-major regrouping of the axes' factors."""
    axes = call.axes(0)
    groups = regroup([atom for axis in axes for atom in axis.atoms], call.out.shape)
    if groups is None:
        for axis in axes:
            call.fix(axis, f"{call.name} cuts through it")
        return call.ordered(call.out.shape)
    owners = {id(atom): axis.origins for axis in axes for atom in axis.roots}
    return [
        TracedAxis(g, frozenset[tuple[str, int]]().union(*(owners.get(id(a), ()) for a in g))) for g in groups
    ]


@rule("t")
def transpose_matrix(call: Call) -> list[TracedAxis]:
    """Swap the two axes."""
    return call.axes(0)[::-1]


@rule("transpose", "swapaxes")
def transpose(call: Call) -> list[TracedAxis]:
    """Swap two axes."""
    axes = list(call.axes(0))
    i, j = call.args[1], call.args[2]
    axes[i], axes[j] = axes[j], axes[i]
    return axes


@rule("permute")
def permute(call: Call) -> list[TracedAxis]:
    """Reorder the axes."""
    return [call.axes(0)[i] for i in call.args[1]]


@rule("expand")
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


# Contractions


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


@rule("mm", "bmm")
def matrix_product(call: Call) -> list[TracedAxis]:
    """``(..., m, k) @ (..., k, n)``."""
    a, b = call.axes(0), call.axes(1)
    contract(call, a[-1], b[-2])
    for x, y in zip(a[:-2], b[:-2], strict=True):
        call.unify(x, y)
    return survive(call, *a[:-2], a[-2], b[-1])


@rule("addmm", "baddbmm")
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


@rule("mv", "dot", "vdot")
def vector_product(call: Call) -> list[TracedAxis]:
    """``(..., k) @ (k,)``."""
    a, b = call.axes(0), call.axes(1)
    contract(call, a[-1], b[0])
    return survive(call, *a[:-1])


@rule("addmv")
def added_vector_product(call: Call) -> list[TracedAxis]:
    """``bias + a @ v``."""
    contract(call, call.axes(1)[1], call.axes(2)[0])
    axes = survive(call, call.axes(1)[0])
    for axis in call.axes(0):
        call.unify(axes[0], axis)
    return axes


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
    in_size, stored = call.args[0].shape[-len(weight) + 1], call.args[1].shape
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


@rule("embedding")
def embedding(call: Call) -> list[TracedAxis]:
    """Rows picked by number: the vocabulary keeps its order."""
    weight = call.axes(0)
    call.fix(weight[0], "vocabulary")
    call.role(weight[0], "in")
    return [*map(plain, call.axes(1)), *survive(call, weight[1])]


# Normalisation, reductions, pooling


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
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


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[TracedAxis]:
    """``g * v / |v|``: a scale for each entry of one axis, a symmetric norm over the others."""
    return pointwise(call)


@rule("native_layer_norm", "_fused_rms_norm")
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


@rule("_softmax", "_log_softmax", "softmax", "log_softmax")
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
    "norm",
    "prod",
    "any",
    "all",
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


@rule("cumsum", "cumprod", "flip", "roll", "sort", "topk", "slice", "narrow", "constant_pad_nd")
def along_axis(call: Call) -> list[TracedAxis]:
    """Order matters along every axis that changes size or is named; a slice of everything is no change."""
    axes = call.axes(0)
    if call.func in (aten.slice.Tensor,) and call.out.shape == call.args[0].shape and call.args[-1] == 1:
        return list(axes)
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
    touched |= {dims - 1 - i // 2 for i, width in enumerate(call.named.get("pad", ())) if width}
    return touched | {
        i for i, (a, b) in enumerate(zip(call.args[0].shape, call.out.shape, strict=True)) if a != b
    }


@rule("index_select")
def index_select(call: Call) -> list[TracedAxis]:
    """Entries picked by number: the result runs over the numbers."""
    axes = call.axes(0)
    dim = call.named["dim"] % len(axes)
    call.fix(axes[dim])
    index = plain(call.axes(2)[0]) if call.axes(2) else TracedAxis()
    return [index if i == dim else plain(axis) for i, axis in enumerate(axes)]


@rule("select", "argmax", "argmin", "max", "min", "median", "unbind")
def picked(call: Call) -> list[TracedAxis]:
    """One place along an axis is picked: the axis keeps its order."""
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


def unknown(call: Call) -> list[TracedAxis]:
    """An operator without a rule: everything that it touches keeps its order."""
    why = f"{call.name} is not understood"
    call.fix_everything(why)
    return fresh(call.out.shape, why) if call.results else []
