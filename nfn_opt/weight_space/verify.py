"""Checking a weight space on the model it was found for."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from nfn_opt.weight_space.modules import call_arguments, evaluation_mode
from nfn_opt.weight_space.spec import TensorSpec

if TYPE_CHECKING:
    from nfn_opt.weight_space.space import WeightSpace
    from nfn_opt.weight_space.spec import Permutation


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
    generator = generator or torch.Generator().manual_seed(0)
    tensors = {**dict(model.named_parameters()), **{s.name: model.get_buffer(s.name) for s in space.buffers}}
    tensors = {name: _cast(tensor.detach().clone(), dtype) for name, tensor in tensors.items()}
    arguments = tree_map_only(Tensor, lambda t: _cast(t, dtype), call_arguments(example_inputs))
    others = {name: _cast(b.clone(), dtype) for name, b in model.named_buffers() if name not in tensors}
    worst = 0.0
    with torch.no_grad(), evaluation_mode(model):
        expected = _run(model, {**tensors, **others}, arguments)
        for _ in range(trials):
            permutation = space.random_permutation(generator)
            moved = {**space.permute(tensors, permutation), **others}
            outputs = _run(model, moved, _permute_leaves(arguments, space.inputs, permutation))
            for spec, got, want in zip(space.outputs, outputs, expected, strict=True):
                worst = max(worst, _relative_change(got, _permuted(spec, want, permutation)))
    used = dtype or next(iter(tensors.values())).dtype
    limit = tolerance if tolerance is not None else 1e-10 if used == torch.float64 else 1e-4
    if not worst <= limit:
        raise ValueError(
            f"permuting the neurons changes an output by {worst:.3g} relative to the largest output, expected at most "
            f"{limit:.3g}: the weight space does not belong to this model, or the model is not deterministic"
        )
    return worst


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _run(model: nn.Module, tensors: dict[str, Tensor], arguments: Any) -> list[Tensor]:
    args, kwargs = arguments
    result = torch.func.functional_call(model, tensors, args, kwargs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


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
    if not any(axis.permutable for axis in spec.axes):
        return tensor
    batch_dims = 0
    if tensor.dim() and tensor.shape[0] != spec.shape[0]:
        batch_dims, split = 1, 1
        while prod(axis.size for axis in spec.axes[:split]) < spec.shape[0]:
            split += 1
        spec = TensorSpec(spec.name, spec.shape[1:], spec.axes[split:])
    return spec.unview(spec.permute(spec.view(tensor, batch_dims), permutation, batch_dims), batch_dims)


def _relative_change(got: Tensor, want: Tensor) -> float:
    if not got.is_floating_point():
        return float((got != want).any())
    if not torch.isfinite(want).all():
        raise ValueError(
            "the model's outputs are not finite, expected finite outputs; verify on other inputs or weights"
        )
    scale = want.abs().max().clamp_min(torch.finfo(want.dtype).tiny)
    return float((got - want).abs().max() / scale) if want.numel() else 0.0
