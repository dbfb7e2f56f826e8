"""Flat functions of tensors as compiled kernels, with and without gradient."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

Kernel = Callable[[Sequence[Any]], Any]
"""From the leaves of arguments to the result of a function."""


def kernel(
    function: Callable[..., Any],
    structure: pytree.TreeSpec,
    leaves: Sequence[Any],
    *,
    differentiable: bool,
    backend: str,
) -> Kernel:
    """A kernel that computes ``function`` for arguments of one form.

    Without gradient, what it gives for the example is compared with what the function gives.

    Args:
        function: Pure function of trees of tensors; may itself differentiate.
        structure: Of the tuple of its arguments.
        leaves: The leaves of example arguments: tensors, or constants such as ``None``. Shapes, types and which
            of them require gradients are part of the form.
        differentiable: Whether gradients flow through the kernel; a second kernel computes them.
        backend: Of :func:`torch.compile`, for the flat graphs of tensor operations; ``"eager"`` runs them as
            they are.
    """
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    results: list[pytree.TreeSpec] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        values = list(constants)
        for i, tensor in zip(places, tensors, strict=True):
            values[i] = tensor
        given, spec = pytree.tree_flatten(function(*pytree.tree_unflatten(values, structure)))
        results[:] = [spec]
        # In the layout that the next call takes.
        return [tensor.contiguous() if isinstance(tensor, Tensor) else tensor for tensor in given]

    def tensors_of(values: Sequence[Any]) -> list[Tensor]:
        return [values[i].contiguous() for i in places]  # kernels are made for one layout

    if differentiable:
        compiled = _with_gradient(flat, backend)
        # Traced with leaves, as the tracer looks at the gradients of its arguments.
        compiled(*(leaf.detach().requires_grad_(leaf.requires_grad) for leaf in tensors_of(leaves)))
    else:
        example = [leaf.detach() for leaf in tensors_of(leaves)]
        graph = make_fx(flat)(*example)
        compiled = _checked(_compile(graph, example, backend), graph, example, backend)
    return lambda values: pytree.tree_unflatten(compiled(*tensors_of(values)), results[0])


def _compile(graph: torch.fx.GraphModule, example: Sequence[Tensor], backend: str) -> Callable[..., Any]:
    """A graph as kernels, for arguments of the form of the example that require no gradients."""
    if backend == "eager":
        return graph
    if backend == "inductor":
        # Without what torch.compile puts in front, to trace and to look at the arguments of every call; and with
        # compiled calls of the kernels.
        for node in graph.graph.nodes:
            node.meta.pop("val", None)  # recorded tensor by tensor, which the compiler refuses
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler is imported late, and parts of it are deprecated
            importlib.import_module("torch._inductor.compile_fx")
        options = {"cpp_wrapper": all(tensor.device.type == "cpu" for tensor in example)}
        compiled: Callable[..., Any] = torch._inductor.compile(graph, [*example], options=options)
        return compiled
    return torch.compile(graph, dynamic=False, fullgraph=True, backend=backend)


def _checked(
    compiled: Callable[..., Any], graph: torch.fx.GraphModule, example: Sequence[Tensor], backend: str
) -> Callable[..., Any]:
    """The compiled function, or the graph itself, with a warning, if they differ by more than rounding."""
    for one, other in zip(compiled(*example), graph(*example), strict=True):
        largest = torch.nan_to_num(other.double(), 0.0, 0.0, 0.0).abs().max() if other.numel() else 0.0
        if not torch.allclose(one.double(), other.double(), 1e-3, 1e-3 * float(largest), equal_nan=True):
            warnings.warn(
                f"a compiled step gives other numbers than the eager one, a fault of the {backend!r} compiler; this "
                "step runs uncompiled, which is slower",
                RuntimeWarning,
                stacklevel=6,
            )
            return graph
    return compiled


def _with_gradient(flat: Callable[..., list[Tensor]], backend: str) -> Callable[..., Any]:
    """Trace forward and backward pass together, and cut where the least has to be kept in between.

    A graph of the forward pass alone would not do where it holds inner gradients: what autograd saves for these
    is cut off from its past in such a graph, so that their derivative would miss terms.
    """
    from functorch import compile as aot  # slow to import

    def boxed(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[[list[Tensor]], Any]:
        compiled = _compile(graph, [tensor.detach() for tensor in example], backend)
        # Kernels must not see that what they are given belongs to a graph.
        call: Callable[[list[Tensor]], Any] = aot.make_boxed_func(
            lambda *tensors: compiled(*(tensor.detach() for tensor in tensors))
        )
        return call

    compiled: Callable[..., Any] = aot.aot_function(
        flat,
        fw_compiler=boxed,
        bw_compiler=boxed,
        partition_fn=aot.min_cut_rematerialization_partition,
    )
    return compiled
