"""Small helpers for running other people's modules without changing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""What a model may return beside tensors."""


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what users give as example inputs.

    Example:
        >>> call_arguments((1, 2)), call_arguments({"x": 1}), call_arguments(3)
        (((1, 2), {}), ((), {'x': 1}), ((3,), {}))
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def output_tensors(model: nn.Module, result: Any) -> list[Tensor]:
    """The tensors among what a model returned.

    Raises:
        ValueError: If there are none, or if something in the result may hide some.
    """
    leaves = tree_leaves(result)
    opaque = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *_PLAIN))]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if opaque or not tensors:
        raise ValueError(
            f"{type(model).__name__} returns {', '.join(opaque) or 'no tensor'}, expected tensors, alone or in tuples, "
            "lists and dicts; wrap the model in a module that returns its tensors"
        )
    return tensors


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every attribute of its modules back as it was afterwards.

    Hooks such as those of pruning, and forward passes that keep what they computed, set attributes. Some forward passes
    add hooks the first time; these are taken away again, or they would be added twice.
    """
    attributes = {module: dict(module.__dict__) for module in model.modules()}
    hooks = [
        (value, dict(value))
        for before in attributes.values()
        for name, value in before.items()
        if name.endswith("_hooks") and isinstance(value, dict)
    ]
    model.eval()
    try:
        yield
    finally:
        for module, before in attributes.items():
            for name in module.__dict__.keys() - before.keys():
                del module.__dict__[name]
            module.__dict__.update(before)
        for current, entries in hooks:
            current.clear()
            current.update(entries)


@contextmanager
def module_paths(model: nn.Module) -> Iterator[list[str]]:
    """Keep a list of the dotted names of the modules that are running, innermost last.

    A module that raises stays on the list, so that an error can name it. Scripted modules take no hooks; they count as
    a part of the module around them.
    """
    path: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(lambda *_, n=name: path.append(n)))
        handles.append(module.register_forward_hook(lambda *_: (path.pop(), None)[1]))
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Have attention and recurrent layers computed by plain products, splits and elementwise operators.

    Their fused kernels hide what happens to the axes inside.
    """
    mha: Any = torch.backends.mha
    mkldnn: Any = torch.backends.mkldnn
    before = mha.get_fastpath_enabled(), mkldnn.enabled
    mha.set_fastpath_enabled(False)
    mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before[0])
        mkldnn.enabled = before[1]


def moving_buffers(model: nn.Module) -> set[str]:
    """Names of buffers that are computed from the weights and follow their neurons: those of spectral norms."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in _spectral_vectors(module)
    }


def _spectral_vectors(module: nn.Module) -> Iterator[str]:
    """The singular vectors that a module keeps, as a parametrization or for its own hooks."""
    if type(module).__name__ == "_SpectralNorm":
        yield from (name for name, _ in module.named_buffers(recurse=False))
    for hook in getattr(module, "_forward_pre_hooks", {}).values():
        if type(hook).__name__ == "SpectralNorm" and type(hook).__module__.startswith("torch.nn.utils"):
            yield from (f"{hook.name}_u", f"{hook.name}_v")
