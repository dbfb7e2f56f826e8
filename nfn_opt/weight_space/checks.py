"""Refusing tensors and features that do not belong to a weight space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nfn_opt.weight_space.space import WeightSpace
    from nfn_opt.weight_space.spec import Permutation


def _check_names(given: Iterable[str], required: Iterable[str], known: Iterable[str], what: str) -> None:
    given, known = set(given), set(known)
    missing = [name for name in required if name not in given]
    extra = sorted(given - known)
    if missing or extra:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(extra)}"] if extra else []
        raise ValueError(
            f"{what} do not fit the weight space: {'; '.join(parts)}. Expected the names {', '.join(required)}; "
            "use the space of the network that they come from"
        )


def _check_is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor; convert it first")


def check_tensors(space: WeightSpace, tensors: Mapping[str, Tensor], batch_dims: int = 0) -> None:
    """Check names and stored shapes of one network's tensors, or of a batch; buffers and aliases are optional."""
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"tensors is a {type(tensors).__name__}, expected a dict of tensors; pass model.state_dict() for a model"
        )
    specs = space.specs_by_name()
    _check_names(tensors, space.names, specs, "tensors")
    for name, tensor in tensors.items():
        _check_is_tensor(name, tensor)
        got = tuple(tensor.shape)
        if got[batch_dims:] != specs[name].shape:
            expected = (
                f"(batch, {', '.join(map(str, specs[name].shape))})" if batch_dims else specs[name].shape
            )
            raise ValueError(
                f"{name} has shape {got}, expected {expected}; use the weight space of the network that it comes from"
            )


def check_features(space: WeightSpace, features: Mapping[str, Tensor], channels: int | None = None) -> None:
    """Check names, shapes, channels, dtypes and devices of weight features."""
    _check_names(features, space.names, space.names, "weight features")
    first_name = space.names[0]
    first = features[first_name]
    for spec in space.parameters:
        tensor = features[spec.name]
        _check_is_tensor(f"features of {spec.name}", tensor)
        shape = tuple(tensor.shape)
        batch, last = (first.shape[0], first.shape[-1]) if first.dim() > 1 else (1, 1)
        expected = (batch, *spec.view_shape, last if channels is None else channels)
        if shape != expected:
            raise ValueError(
                f"features of {spec.name} have shape {shape}, expected (batch, *axes, channels) = {expected}; "
                "build them with space.features or space.as_features of the same space"
            )
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"features of {spec.name} are {tensor.dtype} on {tensor.device}, expected "
                f"{first.dtype} on {first.device} as those of {first_name}; convert all of them with .to(...)"
            )


def check_alike(space: WeightSpace, dicts: Sequence[Mapping[str, Tensor]], what: str) -> None:
    """Check that dicts of parameters agree in shapes, dtypes and devices, so that they can be stacked."""
    for number, tensors in enumerate(dicts):
        for name in space.names:
            got, first = tensors[name], dicts[0][name]
            if (got.shape, got.dtype, got.device) != (first.shape, first.dtype, first.device):
                raise ValueError(
                    f"{name} of {what} {number} is {got.dtype} of shape {tuple(got.shape)} on {got.device}, "
                    f"expected {first.dtype} of shape {tuple(first.shape)} on {first.device} as that of {what} 0; "
                    "convert them first"
                )


def check_permutation(space: WeightSpace, permutation: Permutation) -> None:
    """Check that a permutation belongs to a space; groups that it leaves out stay as they are."""
    indices = getattr(permutation, "indices", None)
    if not isinstance(indices, Mapping):
        raise TypeError(
            f"permutation is a {type(permutation).__name__}, expected a Permutation; draw it with "
            "space.random_permutation, or write Permutation({group: indices})"
        )
    specs = (*space.parameters, *space.buffers, *space.inputs, *space.outputs)
    sizes = {axis.name: axis.size for spec in specs for axis in spec.leaves() if axis.permutable}
    for name, index in indices.items():
        if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
            kind = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(
                f"the indices of group {name!r} are {kind}, expected a tensor of whole numbers (torch.int64); "
                "draw them with torch.randperm"
            )
        if name not in sizes:
            raise ValueError(
                f"the permutation moves the group {name!r}, expected some of {', '.join(sizes) or 'no group at all'}; "
                "draw it with space.random_permutation of this space"
            )
        if not torch.equal(index.sort().values, torch.arange(sizes[name], device=index.device)):
            raise ValueError(
                f"the indices of group {name!r} are no permutation of 0 to {sizes[name] - 1}, expected each number "
                "once; draw them with torch.randperm"
            )
