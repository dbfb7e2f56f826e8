"""Operators that take pieces of a tensor or put tensors side by side."""

from __future__ import annotations

from itertools import accumulate, pairwise

from nfn_opt.weight_space.atoms import concatenate, count, flat_segments, regroup
from nfn_opt.weight_space.operators.call import Call, Results, plain, rule
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor, fresh


def _replaced(axes: list[TracedAxis], position: int, *new: TracedAxis) -> list[TracedAxis]:
    return [*axes[:position], *new, *axes[position + 1 :]]


@rule("cat", "concat", "concatenate", "_cat")
def concatenation(call: Call) -> list[TracedAxis]:
    """One axis runs over the entries of all tensors, one tensor after the other; the other axes meet."""
    tensors = [t.axes for t in call.listed(0) if 0 not in t.shape]
    if not tensors:
        return call.ordered(call.out.shape)
    dim = call.named["dim"] % call.out.dim()
    axes = [
        TracedAxis() if i == dim else call.unify_all(a[i] for a in tensors) for i in range(call.out.dim())
    ]
    return _replaced(axes, dim, TracedAxis(concatenate([axes[dim].roots for axes in tensors])))


@rule("stack", "_stack")
def stack(call: Call) -> Results:
    """A new ordered axis whose entries are the tensors."""
    tensors = [t.axes for t in call.listed(0)]
    along = call.named["dim"] % call.out.dim()
    return Results([TracedTensor.stack(along, [[plain(axis) for axis in axes] for axes in tensors])])


@rule(
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "split_copy",
    "split_with_sizes_copy",
)
def split(call: Call) -> Results:
    """An axis is cut into pieces one behind the other."""
    tensor = call.traced(0)
    dim = call.named["dim"] % len(tensor.shape)
    sizes = [result.shape[dim] for result in call.results]
    if tensor.along == dim:
        borders = pairwise(accumulate(sizes, initial=0))
        return Results([_alternatives(tensor, dim, start, end) for start, end in borders])
    return Results(
        [TracedTensor(_replaced(tensor.axes, dim, piece)) for piece in _cut(call, tensor.axes[dim], sizes)]
    )


def _alternatives(tensor: TracedTensor, dim: int, start: int, end: int) -> TracedTensor:
    """Some neighbouring alternatives of a stack."""
    chosen = tensor.alternatives[start:end]
    if len(chosen) == 1:
        return TracedTensor([*chosen[0][:dim], TracedAxis(), *chosen[0][dim:]])
    return TracedTensor.stack(dim, chosen)


def _cut(call: Call, axis: TracedAxis, sizes: list[int]) -> list[TracedAxis]:
    """The pieces of an axis; fixed ones where it cannot be cut there."""
    return call.cut(axis, sizes) or call.ordered(sizes)


@rule("slice", "narrow", "slice_copy")
def piece(call: Call) -> list[TracedAxis] | Results:
    """A piece of an axis; every so many entries are a factor of it."""
    tensor = call.traced(0)
    named = call.named
    dim = named["dim"] % len(tensor.shape)
    size, wanted, step = tensor.shape[dim], call.out.shape[dim], named.get("step", 1)
    start = min(max((named["start"] or 0) + size * ((named["start"] or 0) < 0), 0), size)
    if wanted == size and step == 1:
        return (
            list(tensor.axes)
            if tensor.along is None
            else Results([TracedTensor.stack(tensor.along, tensor.alternatives)])
        )
    if tensor.along == dim and step == 1 and wanted:
        return Results([_alternatives(tensor, dim, start, start + wanted)])
    axis = tensor.axes[dim]
    if step == 1 and wanted:
        return _replaced(tensor.axes, dim, _cut(call, axis, [start, wanted, size - start - wanted])[1])
    if wanted * step == size and (pieces := regroup(axis.atoms, (wanted, step))) is not None:
        call.fix(TracedAxis(pieces[1]))
        return _replaced(tensor.axes, dim, TracedAxis(pieces[0]))
    call.fix(axis)
    return _replaced(tensor.axes, dim, *call.ordered((wanted,)))


@rule("select", "unbind", "select_copy", "unbind_copy", treats="axes")
def picked(call: Call) -> Results:
    """One place along an axis is picked: the axis keeps its order."""
    tensor = call.traced(0)
    dim = call.named["dim"] % len(tensor.shape)
    size = tensor.shape[dim]
    places = [call.named["index"] % size] if "index" in call.named else list(range(size))
    if tensor.along == dim:
        return Results([TracedTensor(tensor.alternatives[place]) for place in places])
    axes = tensor.axes
    if not all(_single(axes[dim], place) for place in places):
        call.fix(axes[dim])
        for root in axes[dim].roots:
            root.picked = True
    return Results([TracedTensor(_replaced(axes, dim)) for _ in places])


def _single(axis: TracedAxis, place: int) -> bool:
    """Whether an entry of a concatenation is a part of its own."""
    start = 0
    for segment in flat_segments(*axis.roots):
        if start == place:
            return count(segment) == 1
        start += count(segment)
    return False


@rule("constant_pad_nd")
def padding(call: Call) -> list[TracedAxis]:
    """Equal entries are put before and behind those of an axis."""
    axes = [plain(axis) for axis in call.axes(0)]
    widths = call.named["pad"]
    for i, (before, behind) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        position = len(axes) - 1 - i
        if min(before, behind) < 0:
            call.fix(axes[position])
            axes[position] = call.ordered(call.out.shape)[position]
        elif before or behind:
            left, right = (axis.atoms for axis in fresh((before, behind)))
            pieces = [left] * bool(before) + [axes[position].roots] + [right] * bool(behind)
            axes[position] = TracedAxis(concatenate(pieces))
    return axes


@rule("index_select")
def index_select(call: Call) -> list[TracedAxis]:
    """Entries picked by number: the result runs over the numbers."""
    axes = call.axes(0)
    dim = call.named["dim"] % len(axes)
    call.fix(axes[dim])
    return _replaced(axes, dim, plain(call.axes(2)[0]) if call.axes(2) else TracedAxis())


@rule("index", "_unsafe_index")
def indexing(call: Call) -> list[TracedAxis]:
    """Entries picked by tensors of numbers: what they pick from keeps its order, the result runs over the numbers."""
    axes = call.axes(0)
    indices = {i: x for i, x in enumerate(call.args[1]) if x is not None}
    tables = [tensor.axes for tensor in call.listed_given(1)]
    for i in indices:
        call.fix(axes[i])
    dims = max(len(table) for table in tables)
    numbers = [
        plain(call.unify_all(table[p] for table in tables if len(table) >= -p)) for p in range(-dims, 0)
    ]
    kept = [plain(axis) for i, axis in enumerate(axes) if i not in indices]
    neighbours = list(indices) == list(range(min(indices), max(indices) + 1))
    place = min(indices) if neighbours else 0
    return [*kept[:place], *numbers, *kept[place:]]


@rule("gather")
def gather(call: Call) -> list[TracedAxis]:
    """Entries picked by number along one axis, other numbers for every place along the others."""
    axes, index = call.axes(0), call.axes(2)
    dim = call.named["dim"] % max(len(axes), 1)
    for i, (axis, number) in enumerate(zip(axes, index, strict=True)):
        if i == dim or count(axis.roots) != count(number.roots):
            call.fix(axis)
            if i != dim:
                call.fix(number)
        else:
            call.unify(axis, number)
    return [plain(axis) for axis in index]


@rule("embedding")
def embedding(call: Call) -> list[TracedAxis]:
    """Rows picked by number: the vocabulary keeps its order."""
    weight = call.axes(0)
    call.fix(weight[0], "vocabulary")
    call.role(weight[0], "in")
    call.role(weight[1], "out")
    return [*map(plain, call.axes(1)), plain(weight[1])]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Results:
    """Rows picked by number and pooled; bags and vocabulary keep their order."""
    weight = call.axes(0)
    call.fix(weight[0], "vocabulary")
    call.role(weight[0], "in")
    call.role(weight[1], "out")
    for position in range(1, len(call.args)):
        for axis in call.axes(position) if call.given(position) else ():
            call.fix(axis)
    bags = TracedTensor([*call.ordered(call.out.shape[:1]), plain(weight[1])])
    return Results([bags, *(TracedTensor(call.ordered(result.shape)) for result in call.results[1:])])
