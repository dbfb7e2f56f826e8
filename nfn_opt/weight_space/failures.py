"""What a user reads when a model cannot be traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_leaves


def failure(
    model: nn.Module, arguments: Any, path: list[str], error: Exception, failed: tuple[Exception, str] | None
) -> str:
    """What failed, where, and what to do about it.

    Args:
        model: The model.
        arguments: What it was called with.
        path: Dotted names of the modules that were running, innermost last.
        error: What the forward pass raised.
        failed: The last error that an operator raised, and the operator's name.
    """
    shapes = [tuple(x.shape) for x in tree_leaves(arguments) if isinstance(x, Tensor)]
    causes = list(_causes(error))
    name = path[-1] if path else ""
    inside = model.get_submodule(name) if name else model  # a scripted model has no get_submodule
    where = f"module {name or '(root)'!r} ({type(inside).__name__})"
    if failed and failed[0] in causes:
        where += f", operator {failed[1]}"
    message = str(error).splitlines()[0].removesuffix(".") if str(error) else repr(error)
    return (
        f"{type(model).__name__} cannot be traced with example_inputs of shapes {shapes}: {type(error).__name__} in "
        f"{where}: {message}. {_remedy(causes)}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _remedy(causes: list[BaseException]) -> str:
    by_hand = "or describe the axes by hand with WeightSpace.from_axes"
    if any(isinstance(e, DataDependentOutputException | DynamicOutputShapeException) for e in causes):
        return (
            "Expected a forward pass that does not depend on tensor values, as .item(), float(tensor), a branch on a "
            f"tensor and a selection by a mask do; use torch.where in place of a branch, {by_hand}"
        )
    if any(isinstance(e, UnsupportedOperatorException) for e in causes):
        return (
            "Expected operators that know their output's shape; add it with torch.library.register_fake, "
            f"{by_hand}"
        )
    return (
        "Expected inputs that model(...) accepts and a forward pass that computes in PyTorch; pass a tuple for several "
        f"arguments, a dict for keywords, {by_hand}"
    )
