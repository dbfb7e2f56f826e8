"""The printed form of a weight space."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfn_opt.weight_space.space import WeightSpace
    from nfn_opt.weight_space.spec import TensorSpec


def describe(space: WeightSpace) -> str:
    """One line for the space, then one for each parameter and moving buffer: shape as viewed, group of each axis."""
    groups = ", ".join(f"{name} ({size})" for name, size in space.groups.items()) or "none"
    head = f"WeightSpace: {len(space.parameters)} parameters, {space.numel:,} weights, symmetry={space.symmetry!r}"
    moving = [spec for spec in space.buffers if any(axis.permutable for axis in spec.leaves())]
    lines = [(spec.name, _viewed(spec), _notes(spec)) for spec in (*space.parameters, *moving)]
    wide = max(len(name) for name, _, _ in lines)
    tall = max(len(viewed) for _, viewed, _ in lines)
    rows = [f"  {name:<{wide}}  {viewed:<{tall}}  {notes}".rstrip() for name, viewed, notes in lines]
    return "\n".join([head, f"  groups: {groups}", *rows])


def _viewed(spec: TensorSpec) -> str:
    return "(" + ", ".join(str(axis) for axis in spec.axes) + ("," if len(spec.axes) == 1 else "") + ")"


def _notes(spec: TensorSpec) -> str:
    """What fixed the fixed axes, each reason once."""
    notes = dict.fromkeys(
        axis.note for axis in spec.leaves() if not axis.permutable and axis.size > 1 and axis.note
    )
    return f"fixed: {', '.join(notes)}" if notes else ""
