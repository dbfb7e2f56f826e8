"""Weight spaces written by hand: the axis names of every parameter.

A model that computes outside of torch, or whose path depends on its data, cannot be traced. Its symmetry is described,
and the description is verified on the model itself:

    >>> import torch
    >>> from nfn_opt.weight_space import WeightSpace
    >>> class Rescaled(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
    ...
    ...     def forward(self, x):
    ...         x = self.first(x).tanh()
    ...         return self.last(x / max(x.abs().max().item(), 1.0))  # .item() ends the trace
    >>> model, x = Rescaled(), torch.randn(4, 3)
    >>> WeightSpace.from_module(model, x)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: ...
    >>> axes = {"first.weight": ("h", None), "first.bias": ("h",), "last.weight": (None, "h"), "last.bias": (None,)}
    >>> space = WeightSpace.from_axes(axes, model)
    >>> space.groups, bool(space.verify(model, x) < 1e-10)
    ({'h': 5}, True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, get_args

from torch import Tensor, nn

from nfn_opt.weight_space.axis_notation import (
    AxisDescription,
    Descriptions,
    WrittenAxis,
    WrittenFactor,
    check_unused,
    read_axes,
    solve_sizes,
)
from nfn_opt.weight_space.spec import Axis, Role, TensorSpec


def describe_by_hand(
    axes: Descriptions,
    tensors: nn.Module | Mapping[str, Any],
    *,
    sizes: Mapping[str, int] | None,
    roles: Mapping[str, Sequence[Role]] | None,
    inputs: Sequence[Sequence[AxisDescription]] | None,
    outputs: Sequence[Sequence[AxisDescription]] | None,
    symmetry: str,
) -> dict[str, Any]:
    """The records of a weight space; see :meth:`WeightSpace.from_axes`."""
    if symmetry not in ("hidden", "all"):
        raise ValueError(f"symmetry is {symmetry!r}, expected 'hidden' (HNP) or 'all' (NP)")
    shapes, buffers, aliases = _shapes(tensors)
    axes = _complete(axes, shapes, buffers, aliases)
    stored = {name: read_axes(name, axes[name], shapes[name]) for name in shapes}
    ends = {
        f"{kind} {i}": read_axes(f"{kind} {i}", description, None)
        for kind, given in (("input", inputs), ("output", outputs))
        for i, description in enumerate(((None,),) if given is None else given)
    }
    solved = solve_sizes([place for places in stored.values() for place in places], dict(sizes or {}))
    check_unused(sizes or {}, [*stored.values(), *ends.values()])
    fixed = _ends(ends) if symmetry == "hidden" else {}
    roles = _checked_roles(roles or {}, stored)
    records = {
        name: _record(name, shapes[name], places, solved, fixed, roles.get(name))
        for name, places in stored.items()
    }
    limits = {name: _end_record(name, places, solved, fixed) for name, places in ends.items()}
    return {
        "parameters": tuple(record for name, record in records.items() if name not in buffers),
        "buffers": tuple(record for name, record in records.items() if name in buffers),
        "inputs": tuple(record for name, record in limits.items() if name.startswith("input")),
        "outputs": tuple(record for name, record in limits.items() if name.startswith("output")),
        "symmetry": symmetry,
        "aliases": tuple(aliases.items()),
    }


def _shapes(
    tensors: nn.Module | Mapping[str, Any],
) -> tuple[dict[str, tuple[int, ...]], set[str], dict[str, str]]:
    """Shapes by name, which of them are buffers, and further names of tied tensors."""
    if not isinstance(tensors, nn.Module):
        given = {
            n: tuple(t.shape) if isinstance(t, Tensor) else tuple(map(int, t)) for n, t in tensors.items()
        }
        return given, set(), {}
    stored = tensors.state_dict(keep_vars=True)
    parameters = dict(tensors.named_parameters())
    buffers = {name: buffer for name, buffer in tensors.named_buffers() if name in stored}
    shapes = {name: tuple(tensor.shape) for name, tensor in {**parameters, **buffers}.items()}
    owners = {id(tensor): name for name, tensor in {**parameters, **buffers}.items()}
    aliases = {n: owners[id(t)] for n, t in stored.items() if n not in shapes and id(t) in owners}
    return shapes, set(buffers), aliases


def _complete(
    axes: Descriptions, shapes: Mapping[str, Any], buffers: set[str], aliases: Mapping[str, str]
) -> dict[str, Sequence[AxisDescription]]:
    """A description for every tensor: buffers that are left out are fixed."""
    tied = [f"{name} (the same tensor as {aliases[name]})" for name in axes if name in aliases]
    unknown = tied + [name for name in axes if name not in shapes and name not in aliases]
    missing = [name for name in shapes if name not in axes and name not in buffers]
    if unknown or missing:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(unknown)}"] if unknown else []
        raise ValueError(
            f"the described axes do not fit the tensors: {'; '.join(parts)}. Expected the names {', '.join(shapes)}; "
            "describe every parameter once, with None for each axis that is fixed"
        )
    return {name: axes.get(name, (None,) * len(shape)) for name, shape in shapes.items()}


# Records


def _checked_roles(
    roles: Mapping[str, Sequence[Role]], stored: Mapping[str, Sequence[WrittenAxis]]
) -> Mapping[str, Sequence[Role]]:
    for name, given in roles.items():
        if name not in stored:
            raise ValueError(f"roles has {name!r}, expected names of parameters: {', '.join(stored)}")
        if len(given) != len(stored[name]) or any(role not in get_args(Role) for role in given):
            raise ValueError(
                f"{name}: the roles are {tuple(given)!r}, expected 'out', 'in' or 'space' for each of its "
                f"{len(stored[name])} axes; leave them out where they are (out, in, space, ...)"
            )
    return roles


def _ends(ends: Mapping[str, Sequence[WrittenAxis]]) -> dict[str, str]:
    """The groups of inputs and outputs, which the symmetry of hidden neurons fixes, each with the reason."""
    return {
        factor.key: name.split()[0]
        for name, places in ends.items()
        for place in places
        for part in place.parts
        for factor in part
    }


def _record(
    name: str,
    shape: tuple[int, ...],
    places: Sequence[WrittenAxis],
    sizes: Mapping[str, int],
    fixed: Mapping[str, str],
    roles: Sequence[Role] | None,
) -> TensorSpec:
    axes: list[Axis] = []
    for place in places:
        by_position: Role = "out" if place.position == 0 else "in" if place.position == 1 else "space"
        role = roles[place.position] if roles else by_position
        parts = [tuple(_axis(f, role, sizes, fixed) for f in part) for part in place.parts]
        axes += parts[0] if len(parts) == 1 else [Axis.concatenated(parts, role)]
    return TensorSpec(name, shape, tuple(axes))


def _axis(factor: WrittenFactor, role: Role, sizes: Mapping[str, int], fixed: Mapping[str, str]) -> Axis:
    size = sizes[factor.key]
    movable = size > 1 and not factor.fixed and factor.key not in fixed
    reason = "by hand" if factor.fixed else fixed.get(factor.key, "size 1")
    return Axis(factor.key, size, movable, role, "" if movable else reason)


def _end_record(
    name: str, places: Sequence[WrittenAxis], sizes: Mapping[str, int], fixed: Mapping[str, str]
) -> TensorSpec:
    """The record of an input or output; the batch counts as one entry, and may be of any size."""
    moves = any(not f.fixed and f.key not in fixed for place in places for part in place.parts for f in part)
    known: dict[str, int] = dict(sizes)
    for place in places:
        for factor in (factor for part in place.parts for factor in part):
            if factor.key not in known:
                known[factor.key] = factor.size or _unknown_size(place, factor, moves)
    shape = tuple(sum(prod(known[f.key] for f in part) for part in place.parts) for place in places)
    return _record(name, shape, places, known, fixed, None)


def _unknown_size(place: WrittenAxis, factor: WrittenFactor, moves: bool) -> int:
    if not moves or (factor.fixed and place.position == 0):
        return 1
    raise ValueError(
        f"{place} is described by {place.formula} of unknown size, expected a name that a parameter has, or a number; "
        "only the first axis, the batch, may be of any size"
    )
