"""Finding the permutation symmetry of a module by propagating axis identities through one forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nfn_opt.weight_space import operators
from nfn_opt.weight_space.assemble import assemble
from nfn_opt.weight_space.atoms import TracedAxis, TracedTensor, fix_all, fresh
from nfn_opt.weight_space.modules import call_arguments, evaluation_mode, module_paths

_NORMS = {packet for packet, rule in operators.RULES.items() if rule is operators.batch_norm}


class UnknownOperatorWarning(UserWarning):
    """An operator without a rule was met; the axes that it touches count as fixed."""


class SymmetryTracer(TorchDispatchMode):
    """Watches every operator of a forward pass and keeps the axes of every tensor.

    Attributes:
        roles: What each stored parameter axis does, as ``(parameter, axis) -> role``.
        used: Names of the parameters and buffers that an operator has read.
    """

    def __init__(self, module_path: list[str]) -> None:
        super().__init__()
        self.roles: dict[tuple[str, int], str] = {}
        self.used: set[str] = set()
        self._module_path = module_path
        self._known: dict[int, tuple[Tensor, TracedTensor]] = {}
        self._names: dict[int, str] = {}
        self._warned: set[str] = set()

    def register(self, tensor: Tensor, traced: TracedTensor, name: str = "") -> None:
        """Enter a tensor, by name where it is a parameter or buffer."""
        self._known[id(tensor)] = (tensor, traced)
        if name:
            self._names[id(tensor)] = name

    def lookup(self, tensor: Tensor) -> TracedTensor:
        """The axes of a tensor; one that was never seen is a constant of unknown entries."""
        if id(tensor) not in self._known:
            self.register(tensor, TracedTensor(fresh(tensor.shape, "constant in the forward pass")))
        return self._known[id(tensor)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not tensors:
            return out
        self._note_use(func, tree_leaves((args, kwargs)))
        call = operators.Call(func, _named_arguments(func, args, kwargs), tensors[0], self.lookup, self.roles)
        axes = self._apply_rule(func, call)
        active = any(tensor.active for tensor in call.tensors())
        self.register(tensors[0], TracedTensor(axes, active))
        for extra in tensors[1:]:
            same = extra.shape == tensors[0].shape
            self.register(extra, TracedTensor(axes if same else self._extra_axes(call, extra), active))
        return out

    def _apply_rule(self, func: Any, call: operators.Call) -> list[TracedAxis]:
        packet = getattr(func, "overloadpacket", func)
        rule = operators.RULES.get(packet)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = operators.pointwise
        if rule is None:
            rule = operators.unknown
            self._warn(call)
        axes = rule(call)
        assert len(axes) == call.out.dim(), (
            f"the rule of {call.name} gives {len(axes)} axes for {call.out.dim()}"
        )
        return axes

    def _warn(self, call: operators.Call) -> None:
        touched = any(axis.roots for tensor in call.tensors() for axis in tensor.axes)
        if touched and call.name not in self._warned:
            self._warned.add(call.name)
            where = self._module_path[-1] if self._module_path else ""
            warnings.warn(
                f"operator {call.name} in module {where or '(root)'!r} has no symmetry rule: the axes that it touches "
                "are taken as fixed, and a symmetry may be missed",
                UnknownOperatorWarning,
                stacklevel=2,
            )

    def _note_use(self, func: Any, leaves: list[Any]) -> None:
        """Mark parameters as used, and fix buffers that anything but a normalisation reads."""
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or id(leaf) not in self._names:
                continue
            self.used.add(self._names[id(leaf)])
            traced = self.lookup(leaf)
            if traced.buffer and getattr(func, "overloadpacket", None) not in _NORMS:
                for axis in traced.axes:
                    fix_all(axis.atoms, f"buffer {traced.buffer!r} is not permuted")

    def _extra_axes(self, call: operators.Call, extra: Tensor) -> list[TracedAxis]:
        """Axes of a second result of another shape (saved statistics): nothing is claimed about them."""
        return fresh(extra.shape, f"second result of {call.name}")


def _named_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name in schema order, defaults filled in."""
    named: dict[str, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args) and not argument.kwarg_only:
            named[argument.name] = args[position]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        else:
            named[argument.name] = argument.default_value if argument.has_default_value() else None
    return named


def trace_module(model: nn.Module, example_inputs: Any, *, symmetry: str) -> dict[str, Any]:
    """Trace a module; see :meth:`WeightSpace.from_module`. Returns the fields of the weight space."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a torch.nn.Module; pass the network itself"
        )
    if symmetry not in ("hidden", "all"):
        raise ValueError(f"symmetry is {symmetry!r}, expected 'hidden' or 'all'; see WeightSpace")
    if not any(True for _ in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has no parameters, expected at least one; nothing to permute"
        )
    args, kwargs = call_arguments(example_inputs)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with module_paths(model) as path, evaluation_mode(model):
        tracer = SymmetryTracer(path)
        tensors, traced = _fake_tensors(model, fake, tracer)
        args, kwargs = tree_map_only(Tensor, fake.from_tensor, (args, kwargs))
        inputs = _register_inputs(tracer, (args, kwargs))
        try:
            with torch.no_grad(), fake, tracer:
                result = torch.func.functional_call(model, tensors, args, kwargs)
        except Exception as error:
            raise ValueError(_failure(model, args, kwargs, path, error)) from error
    outputs = [tracer.lookup(x) for x in tree_leaves(result) if isinstance(x, Tensor)]
    return assemble(model, traced, inputs, outputs, tracer.roles, tracer.used, symmetry)


def _fake_tensors(
    model: nn.Module, fake: FakeTensorMode, tracer: SymmetryTracer
) -> tuple[dict[str, Tensor], dict[str, TracedTensor]]:
    """Fake stand-ins for all parameters and buffers, entered in the tracer."""
    tensors: dict[str, Tensor] = {}
    traced: dict[str, TracedTensor] = {}
    parameters = dict(model.named_parameters())
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        tensors[name] = fake.from_tensor(tensor.detach())
        axes = fresh(tensor.shape)
        for position, axis in enumerate(axes):
            axis.origins = frozenset({(name, position)})
        traced[name] = TracedTensor(axes, buffer="" if name in parameters else name)
        tracer.register(tensors[name], traced[name], name)
    return tensors, traced


def _register_inputs(tracer: SymmetryTracer, arguments: Any) -> list[TracedTensor]:
    """Enter the model's inputs, each axis unknown but marked as an input."""
    inputs = []
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, Tensor):
            traced = TracedTensor(fresh(leaf.shape), active=True)
            for axis in traced.axes:
                for atom in axis.atoms:
                    atom.is_input = True
            tracer.register(leaf, traced)
            inputs.append(traced)
    return inputs


def _failure(model: nn.Module, args: Any, kwargs: Any, path: list[str], error: Exception) -> str:
    shapes = [tuple(x.shape) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    where = f" in module {path[-1]!r}" if path and path[-1] else ""
    return (
        f"{type(model).__name__} cannot be traced with example_inputs of shapes {shapes}: {type(error).__name__}"
        f"{where}: {str(error).splitlines()[0] if str(error) else error!r}. Expected inputs that model(...) accepts "
        "and a forward pass that does not branch on tensor values; pass a tuple for several arguments, a dict for keywords"
    )
