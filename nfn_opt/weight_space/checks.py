"""Refusing tensors and features that do not belong to a weight space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from nfn_opt.weight_space.space import WeightSpace


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


def check_tensors(space: WeightSpace, tensors: Mapping[str, Tensor], batch_dims: int = 0) -> None:
    """Check names and stored shapes of one network's tensors, or of a batch; buffers and aliases are optional."""
    specs = space.specs_by_name()
    _check_names(tensors, space.names, specs, "tensors")
    for name, tensor in tensors.items():
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
        shape = tuple(tensor.shape)
        expected = (first.shape[0], *spec.view_shape, first.shape[-1] if channels is None else channels)
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
