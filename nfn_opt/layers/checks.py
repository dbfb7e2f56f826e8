"""Refusing weight features that a layer cannot take."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nfn_opt.weight_space import TensorSpec, WeightSpace
from nfn_opt.weight_space.checks import check_features


def check_channels(**channels: int) -> None:
    """Refuse numbers of channels below 1, given by the names of the arguments that hold them."""
    for name, value in channels.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1; give the number of feature channels")


def check_input(
    space: WeightSpace,
    features: Mapping[str, Tensor],
    channels: int | None = None,
    weight: Tensor | None = None,
) -> None:
    """Check names, shapes and channels of features, and that their type and device are those of a layer's weight.

    Under autocast types may differ.

    Args:
        space: The weight space that the layer is used for.
        features: What it was given.
        channels: Channels that it takes; any number by default.
        weight: One of its weights, if it has some.

    Raises:
        ValueError: If something does not fit. The message names the parameter; where the features belong to another
            weight space, it says whether a layer with ``sharing="by_relation"`` takes them.
        TypeError: If the features are no dict, or one of them is not a tensor.
    """
    if not isinstance(features, Mapping):
        raise TypeError(
            f"features is a {type(features).__name__}, expected weight features, a dict {{name: (B, *axes, C)}}; "
            "build them with space.features([model, ...])"
        )
    if not _fits(space.parameters, features, channels):
        _refuse(space, features, channels)
    if weight is None:
        return
    tensor = features[space.parameters[0].name]
    same = tensor.dtype == weight.dtype or torch.is_autocast_enabled(tensor.device.type)
    if not same or tensor.device != weight.device:
        raise ValueError(
            f"features are {tensor.dtype} on {tensor.device}, expected {weight.dtype} on {weight.device} as the "
            "layer's weights; convert the features or the layer with .to(...)"
        )


def _fits(specs: tuple[TensorSpec, ...], features: Mapping[str, Tensor], channels: int | None) -> bool:
    """Whether all is well; written for speed, as every layer asks at every call."""
    first = features.get(specs[0].name)
    if len(features) != len(specs) or not isinstance(first, Tensor) or first.dim() < 2:
        return False
    batch, last = first.shape[0], first.shape[-1] if channels is None else channels
    dtype, device = first.dtype, first.device
    for spec in specs:
        tensor = features.get(spec.name)
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.device != device:
            return False
        if tensor.shape != (batch, *[axis.size for axis in spec.axes], last):
            return False
    return True


def _refuse(space: WeightSpace, features: Mapping[str, Tensor], channels: int | None) -> None:
    """Say what is wrong, and what to do about it."""
    try:
        check_features(space, features, channels)
    except ValueError as error:
        tensors = {name: tensor for name, tensor in features.items() if isinstance(tensor, Tensor)}
        raise ValueError(f"{error}{_axis(space, tensors)}{_advice(space, tensors, channels)}") from None


def _axis(space: WeightSpace, features: Mapping[str, Tensor]) -> str:
    """The first axis with another number of entries, if parameters and axes are the same."""
    for spec in space.parameters:
        tensor = features.get(spec.name)
        if tensor is None or tensor.dim() != len(spec.axes) + 2:
            return ""
        for position, (axis, got) in enumerate(zip(spec.axes, tensor.shape[1:-1], strict=True)):
            if axis.size != got:
                return f". Axis {position} of {spec.name} ({axis}) has {got} entries"
    return ""


def _advice(space: WeightSpace, features: Mapping[str, Tensor], channels: int | None) -> str:
    """Whether a layer shared by relation would take features of another weight space."""
    shapes = {name: tensor.shape for name, tensor in features.items()}
    expected = {spec.name: spec.view_shape for spec in space.parameters}
    if {name: tuple(shape[1:-1]) for name, shape in shapes.items()} == expected:
        return ""
    text = ". These are features of another weight space than the layer's: "
    if {len(shape) > 1 and (shape[0], shape[-1]) for shape in shapes.values()} != {_ends(shapes, channels)}:
        return text + "sharing='by_relation' would not help, as batch and channels do not fit either"
    return text + (
        "a layer with sharing='by_relation' takes them as forward(features, space=other), where other is the space of "
        "their network; a layer with weights for each parameter does not"
    )


def _ends(shapes: Mapping[str, torch.Size], channels: int | None) -> tuple[int, int]:
    """Batch and channels that all tensors should have."""
    first = next(iter(shapes.values()), torch.Size((1, 1)))
    return first[0] if first else 1, channels or (first[-1] if first else 1)
