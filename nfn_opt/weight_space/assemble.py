"""From traced axes to the records of a weight space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from nfn_opt.weight_space.atoms import Atom, Factors, TracedTensor, fix_all, sizes
from nfn_opt.weight_space.merging import join, joined_axes, whole
from nfn_opt.weight_space.spec import Axis, Role, TensorSpec

if TYPE_CHECKING:
    from nfn_opt.weight_space.tracing import SymmetryTracer


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
        "inputs": tuple(namer.spec(f"input {i}", sizes(t.axes), t) for i, t in enumerate(inputs)),
        "outputs": tuple(namer.spec(f"output {i}", sizes(t.axes), t) for i, t in enumerate(outputs)),
        "symmetry": symmetry,
        "aliases": _aliases(stored, {*shapes, *(spec.name for spec in buffers)}),
    }


def _mark(inputs: list[TracedTensor], outputs: list[TracedTensor], symmetry: str) -> None:
    for tensor in outputs:
        for axis in tensor.axes:
            for root in axis.roots:
                root.is_output = True
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
            kind = "f" if atom.fixed else "in" if atom.is_input else "out" if atom.is_output else "h"
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
        runs: list[list[Atom]] = []
        for atom in atoms:
            movable = not atom.fixed and not (self.closed and atom not in self._names)
            if runs and not movable and runs[-1][-1].fixed:
                runs[-1].append(atom)
            else:
                runs.append([atom])
        axes = []
        for run in runs:
            movable = not run[0].fixed and not (self.closed and run[0] not in self._names)
            size = 1
            for atom in run:
                size *= atom.size
            names = "*".join(self._name(atom) for atom in run) if movable or not self.closed else label
            axes.append(Axis(names, size, movable, role, "" if movable else run[0].note))
        return axes or [Axis(label, 1, False, role, "size 1")]
