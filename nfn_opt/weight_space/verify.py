"""Checking a weight space on the model it was found for."""

from __future__ import annotations

from contextlib import nullcontext
from math import inf, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from nfn_opt.weight_space.modules import call_arguments, evaluation_mode, output_tensors
from nfn_opt.weight_space.spec import Permutation, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfn_opt.weight_space.space import WeightSpace


def verify(
    space: WeightSpace,
    model: nn.Module,
    example_inputs: Any,
    generator: torch.Generator | None,
    trials: int,
    tolerance: float | None,
    dtype: torch.dtype | None,
) -> float:
    """See :meth:`WeightSpace.verify`."""
    if trials < 1:
        raise ValueError(f"trials is {trials}, expected at least 1; without a permutation nothing is checked")
    generator = generator or torch.Generator().manual_seed(0)
    tensors = {name: _cast(p.detach(), dtype) for name, p in model.named_parameters()}
    buffers = {name: _cast(b.detach(), dtype) for name, b in model.named_buffers()}
    moving = {s.name for s in space.buffers} & buffers.keys()
    tensors.update({name: buffers.pop(name) for name in moving})
    arguments = tree_map_only(Tensor, lambda t: _cast(t.detach(), dtype), call_arguments(example_inputs))
    _check_count("inputs", tree_leaves(arguments), space.inputs)
    worst = 0.0
    with torch.no_grad(), evaluation_mode(model):
        expected = _run(model, {**tensors, **buffers}, arguments, dtype)
        _check_count("outputs", expected, space.outputs)
        for permutation in _permutations(space, generator, trials):
            moved = {**space.permute(tensors, permutation), **buffers}
            outputs = _run(model, moved, _permute_leaves(arguments, space.inputs, permutation), dtype)
            for spec, got, want in zip(space.outputs, outputs, expected, strict=True):
                worst = max(worst, _relative_change(got, _permuted(spec, want, permutation)))
    used = dtype or next(iter(tensors.values())).dtype
    limit = tolerance if tolerance is not None else 1e-10 if used == torch.float64 else 1e-4
    if worst > limit:
        raise ValueError(
            f"permuting the neurons changes an output by {worst:.3g} relative to the largest output, expected at most "
            f"{limit:.3g}: the weight space does not belong to this model, or the model is not deterministic"
        )
    return worst


def _permutations(space: WeightSpace, generator: torch.Generator, trials: int) -> Iterator[Permutation]:
    """Permutations that move every group, then some that each move half of the groups.

    Any group is moved, and of any two groups one is moved without the other: neither a group that should not be one,
    nor two that should be one, can hide behind the identity.
    """
    for _ in range(trials):
        yield _moving(space, generator)
    names = list(space.groups)
    for bit in range((len(names) - 1).bit_length()):
        moved = dict(_moving(space, generator).indices)
        for rank, name in enumerate(names):
            if not rank >> bit & 1:
                moved[name] = torch.arange(len(moved[name]))
        yield Permutation(moved)


def _moving(space: WeightSpace, generator: torch.Generator) -> Permutation:
    """A random permutation that is the identity on no group of two or more."""
    indices = dict(space.random_permutation(generator).indices)
    for name, index in indices.items():
        while len(index) > 1 and torch.equal(index, torch.arange(len(index))):
            index = torch.randperm(len(index), generator=generator)
        indices[name] = index
    return Permutation(indices)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


def _run(
    model: nn.Module, tensors: dict[str, Tensor], arguments: Any, dtype: torch.dtype | None
) -> list[Tensor]:
    """The outputs of the model, run on copies: what it writes into is its own."""
    tensors, (args, kwargs) = tree_map_only(Tensor, torch.clone, (tensors, arguments))
    try:
        with _Precision(dtype) if dtype else nullcontext():
            result = torch.func.functional_call(model, tensors, args, kwargs)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} fails on the example inputs, computing in {dtype or 'its own type'}: "
            f"{type(error).__name__}: {error}. Expected inputs that model(...) accepts; pass dtype=None where the "
            "model computes in a fixed floating-point type"
        ) from error
    outputs = output_tensors(model, result)
    _check_comparable(outputs)
    return outputs


class _Precision(TorchDispatchMode):
    """Keeps a model that converts to a lower floating-point type inside from doing so."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("dtype")
        if wanted is not None and wanted.is_floating_point and wanted.itemsize < self._dtype.itemsize:
            kwargs["dtype"] = self._dtype
        return func(*args, **kwargs)


def _check_comparable(outputs: list[Tensor]) -> None:
    if any(output.is_meta for output in outputs):
        raise ValueError("the model is on the meta device, expected one with values; load its weights first")
    if not any(output.numel() for output in outputs):
        raise ValueError("the outputs have no entries, expected some to compare; give inputs with entries")


def _check_count(what: str, leaves: list[Any], specs: tuple[TensorSpec, ...]) -> None:
    got = sum(isinstance(leaf, Tensor) for leaf in leaves)
    if got != len(specs):
        raise ValueError(
            f"the model's {what} hold {got} tensors, expected {len(specs)} as when its symmetry was found; "
            "call it in the same way"
        )


def _permute_leaves(arguments: Any, specs: tuple[TensorSpec, ...], permutation: Permutation) -> Any:
    """Permute the tensors among the arguments; the batch may differ in size from the traced one."""
    remaining = iter(specs)

    def permute(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return _permuted(next(remaining), leaf, permutation)

    return tree_map(permute, arguments)


def _permuted(spec: TensorSpec, tensor: Tensor, permutation: Permutation) -> Tensor:
    """Permute a model input or output, whose first axis (the batch) may have another size than the traced one."""
    if not any(axis.permutable for axis in spec.leaves()):
        return tensor
    batch_dims = 0
    if tensor.dim() and spec.shape and tensor.shape[0] != spec.shape[0]:
        batch_dims, split = 1, 1
        while prod(axis.size for axis in spec.axes[:split]) < spec.shape[0]:
            split += 1
        spec = TensorSpec(spec.name, spec.shape[1:], spec.axes[split:])
    if tuple(tensor.shape[batch_dims:]) != spec.shape:
        raise ValueError(
            f"{spec.name} has shape {tuple(tensor.shape)}, expected {spec.shape} after the batch, as when the "
            "symmetry was found; give inputs of that shape"
        )
    return spec.unview(spec.permute(spec.view(tensor, batch_dims), permutation, batch_dims), batch_dims)


def _relative_change(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest absolute value; infinite if an output is no longer finite."""
    if not (want.is_floating_point() or want.is_complex()):
        return float((got != want).any())
    if not torch.isfinite(want).all():
        raise ValueError(
            "the model's outputs are not finite, expected finite outputs; verify on other inputs or weights"
        )
    if not torch.isfinite(got).all():
        return inf
    scale = want.abs().max().clamp_min(torch.finfo(want.dtype).tiny) if want.numel() else 1.0
    return float((got - want).abs().max() / scale) if want.numel() else 0.0
