"""Small helpers for running other people's modules without changing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


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


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every sub-module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def module_paths(model: nn.Module) -> Iterator[list[str]]:
    """Keep a list of the dotted names of the modules that are running, innermost last.

    A module that raises stays on the list, so that an error can name it.
    """
    path: list[str] = []
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, n=name: path.append(n)))
        handles.append(module.register_forward_hook(lambda *_: (path.pop(), None)[1]))
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()
