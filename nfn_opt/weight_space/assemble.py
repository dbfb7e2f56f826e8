"""From traced axes to the records of a weight space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from nfn_opt.weight_space.atoms import Atom, Factors, fix_all, flat_segments, resolve
from nfn_opt.weight_space.merging import Run, join, joined_axes, joined_factors, primes, whole
from nfn_opt.weight_space.spec import Axis, Role, TensorSpec
from nfn_opt.weight_space.traced import TracedTensor

if TYPE_CHECKING:
    from nfn_opt.weight_space.tracing import SymmetryTracer


_PARTS = "parts side by side"


def assemble(
    model: nn.Module,
    traced: dict[str, TracedTensor],
    inputs: list[TracedTensor],
    outputs: list[TracedTensor],
    tracer: SymmetryTracer,
    symmetry: str,
) -> dict[str, Any]:
    """Fix what the chosen symmetry fixes, name the atoms and build one record a tensor."""
    stored = model.state_dict(keep_vars=True)
    _mark(inputs, outputs, symmetry)
    _fix_unmoved(model, traced, tracer.used, stored)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    seen = [*tracer.runs, *(whole(tensor.axes) for tensor in (*traced.values(), *inputs, *outputs))]
    _fix_left_over(seen, tracer.read, traced, [*inputs, *outputs])
    namer = _Namer(tracer.roles, join(seen, [traced[name] for name in shapes]))
    parameters = tuple(namer.spec(name, shape, traced[name]) for name, shape in shapes.items())
    buffers = tuple(
        namer.spec(name, tuple(tensor.shape), traced[name])
        for name, tensor in model.named_buffers()
        if name in stored
    )
    namer.closed = True
    return {
        "parameters": parameters,
        "buffers": buffers,
        "inputs": tuple(namer.spec(f"input {i}", t.shape, t) for i, t in enumerate(inputs)),
        "outputs": tuple(namer.spec(f"output {i}", t.shape, t) for i, t in enumerate(outputs)),
        "symmetry": symmetry,
        "aliases": _aliases(stored, {*shapes, *(spec.name for spec in buffers)}),
    }


def _mark(inputs: list[TracedTensor], outputs: list[TracedTensor], symmetry: str) -> None:
    for tensor in outputs:
        for axis in tensor.axes:
            for atom in axis.atoms:
                atom.mark(is_output=True)
    if symmetry == "hidden":
        for note, tensors in (("input", inputs), ("output", outputs)):
            for tensor in tensors:
                for axis in tensor.axes:
                    fix_all(axis.atoms, note)


def _fix_unmoved(
    model: nn.Module, traced: dict[str, TracedTensor], used: set[str], stored: dict[str, Any]
) -> None:
    """Fix the axes of what plays no part, and of buffers that permuting a ``state_dict`` does not reach."""
    for name, tensor in traced.items():
        for axis in tensor.axes if name not in used else ():
            fix_all(axis.atoms, "not used in the forward pass")
    for name, _ in model.named_buffers():
        for axis in traced[name].axes if name not in stored else ():
            fix_all(axis.atoms, f"buffer {name!r} is not in the state_dict")


def _fix_left_over(
    seen: list[Run],
    read: list[tuple[Factors, Factors]],
    traced: dict[str, TracedTensor],
    ends: list[TracedTensor],
) -> None:
    """Fix what slices have cut off: what no operator has touched on its own, or has summed over with the rest."""
    used = {root for atoms, _ in seen for root in resolve(atoms)}
    for given, results in read:
        used.update(set(primes(given)).difference(primes(results)))
    used.update(prime for tensor in ends for axis in tensor.axes for prime in primes(axis.atoms))
    for tensor in traced.values():
        for axis in tensor.axes:
            for atom in primes(axis.atoms):
                if atom not in used:
                    atom.fix("not used in the forward pass")


def _aliases(stored: dict[str, Any], names: set[str]) -> tuple[tuple[str, str], ...]:
    """Names of tied tensors in the ``state_dict``, with the name that stands for each."""
    owners = {id(tensor): name for name, tensor in stored.items() if name in names}
    return tuple((name, owners[id(t)]) for name, t in stored.items() if name not in names and id(t) in owners)


class _Namer:
    """Gives each atom one name, in the order in which the parameters show them."""

    def __init__(self, roles: Mapping[tuple[str, int], str], joined: Mapping[Atom, Atom | None]) -> None:
        self._roles, self._joined = roles, joined
        self.closed = False  # once closed, atoms that no parameter has count as fixed
        self._names: dict[Atom, str] = {}
        self._counts: dict[str, int] = {}

    def _name(self, atom: Atom) -> str:
        if atom not in self._names:
            kind = (
                "f"
                if atom.fixed or not atom.size
                else "in"
                if atom.is_input
                else "out"
                if atom.is_output
                else "h"
            )
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._names[atom] = f"{kind}{self._counts[kind]}"
        return self._names[atom]

    def spec(self, name: str, shape: tuple[int, ...], tensor: TracedTensor) -> TensorSpec:
        """The record of one tensor: each stored axis as the axes that it is viewed as."""
        axes: list[Axis] = []
        for position, atoms in joined_axes(tensor.axes, self._joined):
            default: Role = "out" if position == 0 else "in" if position == 1 else "space"
            role = self._roles.get((name, position), default)
            axes += self._axes(atoms, role, f"{name}.{position}")  # type: ignore[arg-type]
        return TensorSpec(name, shape, tuple(axes))

    def _axes(self, atoms: Factors, role: Role, label: str) -> list[Axis]:
        """The axes of one stored axis; neighbouring fixed factors become one."""
        axes: list[Axis] = []
        for atom in atoms:
            for axis in (
                self._concatenation(atom, role, label) if atom.segments else [self._prime(atom, role, label)]
            ):
                if axes and _fixed(axis) and _fixed(axes[-1]):
                    axis = self._joined_fixed(axes.pop(), axis, label)
                axes.append(axis)
        return axes or [Axis(label, 1, False, role, "size 1")]

    def _prime(self, atom: Atom, role: Role, label: str) -> Axis:
        if atom.fixed or not atom.size or (self.closed and atom not in self._names):
            return Axis(label if self.closed else self._name(atom), atom.size, False, role, atom.note)
        return Axis(self._name(atom), atom.size, True, role)

    def _joined_fixed(self, left: Axis, right: Axis, label: str) -> Axis:
        name = label if self.closed else f"{left.name}*{right.name}"
        note = right.note if left.note in ("", _PARTS) else left.note
        return Axis(name, left.size * right.size, False, left.role, note)

    def _concatenation(self, atom: Atom, role: Role, label: str) -> list[Axis]:
        """Segments that are all alike are a fixed axis and one of them; otherwise a concatenated axis."""
        segments = [joined_factors(segment, self._joined) for segment in flat_segments(atom)]
        if all(segment == segments[0] for segment in segments):
            number = Atom(len(segments), fixed=True, note=_PARTS)
            return [
                self._prime(number, role, label),
                *(self._axes(segments[0], role, label) if segments[0] else []),
            ]
        parts = _merged([self._axes(segment, role, label) for segment in segments])
        if len(parts) == 1:
            return list(parts[0])
        return [Axis.concatenated(parts, role)]


def _fixed(axis: Axis) -> bool:
    return not axis.permutable and not axis.parts


def _merged(parts: list[list[Axis]]) -> list[tuple[Axis, ...]]:
    """Parts of a concatenation, neighbours that are all fixed as one."""
    merged: list[tuple[Axis, ...]] = []
    for part in parts:
        if merged and all(_fixed(axis) for axis in (*part, *merged[-1])):
            (left,), (right,) = merged.pop(), part
            axis = Axis(
                f"{left.name}+{right.name}", left.size + right.size, False, left.role, left.note or right.note
            )
            merged.append((axis,))
        else:
            merged.append(tuple(part))
    return merged
