"""Finding the permutation symmetry of a module by propagating axis identities through one forward pass."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import lgamma
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nfn_opt.weight_space import operators
from nfn_opt.weight_space.assemble import assemble
from nfn_opt.weight_space.atoms import Factors, fix_all
from nfn_opt.weight_space.constants import Constants
from nfn_opt.weight_space.failures import failure
from nfn_opt.weight_space.merging import Run, runs
from nfn_opt.weight_space.modules import (
    call_arguments,
    evaluation_mode,
    module_paths,
    moving_buffers,
    output_tensors,
    plain_kernels,
)
from nfn_opt.weight_space.packing import Hints, find_hints, parameter_axes
from nfn_opt.weight_space.traced import TracedAxis, TracedTensor, fresh

_INDEXING = {torch.ops.aten.index, torch.ops.aten._unsafe_index}
_NORMS = {packet for packet, rule in operators.RULES.items() if rule is operators.batch_norm}


class UnknownOperatorWarning(UserWarning):
    """An operator without a rule was met; the axes that it touches count as fixed."""


class SymmetryTracer(TorchDispatchMode):
    """Watches every operator of a forward pass and keeps the axes of every tensor.

    Attributes:
        roles: What each stored parameter axis does, as ``(parameter, axis) -> role``.
        used: Names of the parameters and buffers that an operator has read.
        runs: The runs of factors that each operator treated as one.
        read: All factors of the arguments and of the results of each operator that does not just cut.
        failed: The last error that an operator raised, and the operator's name.
    """

    def __init__(self, fake: FakeTensorMode, module_path: list[str], moving: Collection[str] = ()) -> None:
        super().__init__()
        self._fake = fake
        self._moving = moving
        self.roles: dict[tuple[str, int], str] = {}
        self.used: set[str] = set()
        self.runs: list[Run] = []
        self.read: list[tuple[Factors, Factors]] = []
        self.failed: tuple[Exception, str] | None = None
        self._module_path = module_path
        self._known: dict[int, tuple[Tensor, TracedTensor]] = {}
        self._names: dict[int, str] = {}
        self._storages: dict[int, TracedTensor] = {}
        self._secondary: dict[int, operators.Call] = {}
        self._warned: set[str] = set()
        self._constants = Constants()

    def register(self, tensor: Tensor, traced: TracedTensor) -> None:
        """Enter a tensor."""
        self._known[id(tensor)] = (tensor, traced)

    def register_stored(self, real: Tensor, fake: Tensor, traced: TracedTensor, name: str) -> None:
        """Enter a parameter or buffer: the fake one that stands for it, and the memory of the real one."""
        self.register(fake, traced)
        self._names[id(fake)] = name
        if traced.buffer and real.dtype is torch.bool:
            self._constants.lend(fake, real)
        if real.layout is torch.strided:
            self._storages[real.untyped_storage()._cdata] = traced

    def lookup(self, tensor: Tensor) -> TracedTensor:
        """The axes of a tensor; one that was never seen is a constant of unknown entries."""
        if id(tensor) in self._secondary:
            call = self._secondary.pop(id(tensor))
            call.fix_everything(f"second result of {call.name} is used")
        if id(tensor) not in self._known:
            self.register(tensor, TracedTensor(self._constant(tensor)))
        return self._known[id(tensor)][1]

    def _constant(self, tensor: Tensor) -> list[TracedAxis]:
        """Axes of a tensor that the forward pass found elsewhere than among its arguments and parameters."""
        if isinstance(tensor, FakeTensor):
            raise NotImplementedError("a tensor of the forward pass was made where it could not be watched")
        if tensor.layout is torch.strided:
            owner = self._storages.get(tensor.untyped_storage()._cdata)
            for axis in owner.axes if owner else []:
                fix_all(axis.atoms, "also read as a plain tensor")
        return fresh(tensor.shape, "constant in the forward pass")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = operators.find_rule(func)
        if rule is None and (out := self._taken_apart(func, args, kwargs)) is not NotImplemented:
            return out
        args = self._without_masks(func, args)
        former_stride = args[0].stride() if torch.Tag.inplace_view in func.tags else None
        out = self._run(func, args, kwargs)
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not results and not func._schema.is_mutable:
            return out
        self._note_use(func, tree_leaves((args, kwargs)))
        self._constants.note_writing(func, args, kwargs)
        named = _named_arguments(func, args, kwargs)
        reader = self._constants.reader(self.lookup, results)
        call = operators.Call(func, named, results, reader, self.roles, former_stride)
        if rule is None:
            rule = operators.unknown
            self._warn(call)
        given = call.tensors()
        before = [axes for tensor in given for axes in tensor.alternatives]
        traced = self._traced_results(call, rule(call))
        after = [axes for tensor in traced for axes in tensor.alternatives]
        self.runs += runs(rule, [*before, *after])
        if rule not in operators.CUTS:
            self.read.append((_atoms(before), _atoms(after)))
        if results:
            self._enter_results(call, traced, any(tensor.active for tensor in given))
            self._note_uniform(func, rule, args, kwargs, results)
        return out

    def _without_masks(self, func: Any, args: Any) -> Any:
        """The arguments of an indexing, with the numbers of the entries that they choose for constant masks."""
        if getattr(func, "overloadpacket", None) not in _INDEXING:
            return args
        indices: list[Tensor | None] = []
        for index in args[1]:
            mask = isinstance(index, Tensor) and index.dtype is torch.bool
            numbers = self._constants.numbers(index) if mask else None
            if numbers is None:
                indices.append(index)
                continue
            self._note_use(func, [index])
            for number in numbers:
                fake = self._fake.from_tensor(number)
                self.register(fake, TracedTensor(fresh(fake.shape, "chosen by a mask")))
                indices.append(fake)
        return (args[0], indices, *args[2:])

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on fake tensors, and on the values of constants; these answer what fake ones cannot."""
        try:
            out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if (out := self._constants.evaluate(func, args, kwargs)) is None:
                self.failed = error, str(func).rsplit(".", 1)[0]
                raise
            return tree_map_only(Tensor, self._fake.from_tensor, out)
        except Exception as error:
            self.failed = error, str(func).rsplit(".", 1)[0]
            raise
        self._constants.follow(func, args, kwargs, [x for x in tree_leaves(out) if isinstance(x, Tensor)])
        return out

    def _note_uniform(
        self, func: Any, rule: operators.Rule, args: Any, kwargs: Any, results: list[Tensor]
    ) -> None:
        """Equal entries stay equal when they are copied, arranged or combined entry by entry."""
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = rule is operators.constant and not func._schema.is_mutable
        kept = rule in operators.KEEP_UNIFORM and given and all(map(self._constants.is_uniform, given))
        if made or kept:
            self._constants.add_uniform(results)

    def _taken_apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a composite operator as its parts, which come here whole in inference mode."""
        if not isinstance(func, torch._ops.OpOverload):
            raise NotImplementedError(f"{func} runs a function of its own, which cannot be watched")
        if func.namespace != "aten":
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)

    def _traced_results(
        self, call: operators.Call, found: list[TracedAxis] | operators.Results
    ) -> list[TracedTensor]:
        """What a rule says of the results; those of the shape of the first are taken to have its axes."""
        if isinstance(found, operators.Results):
            return found.tensors
        traced = []
        for result in call.results:
            if result.shape == call.out.shape:
                traced.append(TracedTensor(found))
            else:
                traced.append(TracedTensor(fresh(result.shape, f"second result of {call.name}")))
                self._secondary[id(result)] = call
        return traced

    def _enter_results(self, call: operators.Call, traced: list[TracedTensor], active: bool) -> None:
        """Register what an operator gave back."""
        self._match_overwritten(call, traced[0])
        for result, tensor in zip(call.results, traced, strict=True):
            shape = tuple(result.shape)
            assert tensor.shape == shape, f"the rule of {call.name} gives {tensor.shape} for {shape}"
            tensor.active = active
            self.register(result, tensor)

    def _match_overwritten(self, call: operators.Call, written: TracedTensor) -> None:
        """A tensor that was written into has views with its former axes: these must be the new ones too."""
        if id(call.out) not in self._known or torch.Tag.inplace_view in call.func.tags:
            return
        former = self.lookup(call.out)
        if former.shape == written.shape:
            for old, new in zip(former.axes, written.axes, strict=True):
                call.unify(old, new)
        else:
            for axis in (*former.axes, *written.axes):
                call.fix(axis)

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

    def _moves(self, buffer: str, func: Any) -> bool:
        """Whether a buffer follows the neurons: running statistics and the vectors of a spectral norm do."""
        return getattr(func, "overloadpacket", None) in _NORMS or buffer in self._moving

    def _note_use(self, func: Any, leaves: list[Any]) -> None:
        """Mark parameters as used, and fix buffers that anything but a normalisation reads."""
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or id(leaf) not in self._names:
                continue
            self.used.add(self._names[id(leaf)])
            traced = self.lookup(leaf)
            if traced.buffer and not self._moves(traced.buffer, func):
                for axis in traced.axes:
                    fix_all(axis.atoms, f"buffer {traced.buffer!r} is not permuted")


def _atoms(tensors: list[list[TracedAxis]]) -> Factors:
    return tuple(dict.fromkeys(atom for axes in tensors for axis in axes for atom in axis.atoms))


def _named_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name in schema order, defaults filled in."""
    named: dict[str, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.is_out:
            continue  # written to, not read
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
    arguments = call_arguments(example_inputs)
    found = _trace(model, arguments, {})
    # Where entries of an axis were picked, what lies behind each may differ: trace again with that in mind.
    hints = find_hints(found.traced)
    spaces = [assemble(model, **vars(found), symmetry=symmetry)]
    if hints:
        again = _trace(model, arguments, hints)
        spaces.insert(0, assemble(model, **vars(again), symmetry=symmetry))
    return max(spaces, key=_log_order)


def _log_order(space: Mapping[str, Any]) -> float:
    """Logarithm of the number of permutations of a space, rounded so that equal ones are."""
    leaves = (axis for spec in (*space["parameters"], *space["buffers"]) for axis in spec.leaves())
    sizes = {axis.name: axis.size for axis in leaves if axis.permutable}
    return round(sum(lgamma(size + 1) for size in sizes.values()), 6)


@dataclass
class _Trace:
    """What one traced forward pass found."""

    tracer: SymmetryTracer
    traced: dict[str, TracedTensor]
    inputs: list[TracedTensor]
    outputs: list[TracedTensor]


def _trace(model: nn.Module, arguments: Any, hints: Hints) -> _Trace:
    """Run the model once on fake tensors and watch it."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with module_paths(model) as path, evaluation_mode(model), _quiet(), plain_kernels():
        tracer = SymmetryTracer(fake, path, moving_buffers(model))
        tensors, traced = _fake_tensors(model, fake, tracer, hints)
        # Detached, a tensor that is given twice becomes two inputs.
        args, kwargs = tree_map_only(Tensor, lambda t: fake.from_tensor(t.detach()), arguments)
        inputs = _register_inputs(tracer, (args, kwargs))
        try:
            with torch.no_grad(), fake, tracer:
                result = torch.func.functional_call(model, tensors, args, kwargs)
        except Exception as error:
            raise ValueError(failure(model, (args, kwargs), path, error, tracer.failed)) from error
    outputs = [tracer.lookup(tensor) for tensor in output_tensors(model, result)]
    return _Trace(tracer, traced, inputs, outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyTorch's own report of a call that fails on fake tensors: the error says it all."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _fake_tensors(
    model: nn.Module, fake: FakeTensorMode, tracer: SymmetryTracer, hints: Hints
) -> tuple[dict[str, Tensor], dict[str, TracedTensor]]:
    """Fake stand-ins for all parameters and buffers, entered in the tracer."""
    tensors: dict[str, Tensor] = {}
    traced: dict[str, TracedTensor] = {}
    parameters = dict(model.named_parameters())
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        tensors[name] = fake.from_tensor(tensor.detach())
        axes = parameter_axes(name, tensor.shape, hints)
        traced[name] = TracedTensor(axes, buffer="" if name in parameters else name)
        tracer.register_stored(tensor, tensors[name], traced[name], name)
    return tensors, traced


def _register_inputs(tracer: SymmetryTracer, arguments: Any) -> list[TracedTensor]:
    """Enter the model's inputs, each axis unknown but marked as an input."""
    inputs = []
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, Tensor):
            traced = TracedTensor(fresh(leaf.shape), active=True)
            for axis in traced.axes:
                for atom in axis.atoms:
                    atom.mark(is_input=True)
            tracer.register(leaf, traced)
            inputs.append(traced)
    return inputs
