"""Layers that may run under ``torch.compile``."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def transformed() -> bool:
    """Whether the code runs under a compiler or a function transform, which see plain operators only."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _own(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with code of its own: the compiler counts recompilations by code, which all layers would share."""
    function = method.__func__  # type: ignore[attr-defined]
    code, rest = function.__code__.replace(), (function.__defaults__, function.__closure__)
    copied = types.FunctionType(code, function.__globals__, function.__name__, *rest)
    return types.MethodType(copied, method.__self__)  # type: ignore[attr-defined]


class Compilable(nn.Module):
    """A layer with a switch that has its main function compiled when it is first called.

    Attributes:
        compiled: Whether the function is compiled; false again once that has failed.
    """

    def __init__(self, *, compile: bool) -> None:  # noqa: A002  (torch's own word)
        super().__init__()
        self.compiled = compile
        self._compiled_function: Callable[..., Any] | None = None

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call one of the layer's functions, always the same, compiled if wanted and possible."""
        if not self.compiled or transformed():
            return function(*args)
        if self._compiled_function is None:
            self._compiled_function = torch.compile(_own(function))
        try:
            return self._compiled_function(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            warnings.warn(
                f"the layer could not be compiled and runs as it is ({str(error).splitlines()[0]}); install a C++ "
                "compiler, or pass compile=False",
                stacklevel=4,
            )
            self.compiled = False
            return function(*args)

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled code, which belongs to one process and one object."""
        return {**super().__getstate__(), "_compiled_function": None}
