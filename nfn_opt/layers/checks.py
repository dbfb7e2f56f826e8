"""Refusing weight features that a layer cannot take."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nfn_opt.weight_space import WeightSpace
from nfn_opt.weight_space.checks import check_features


def check_input(
    space: WeightSpace, features: Mapping[str, Tensor], channels: int | None, weight: Tensor
) -> None:
    """Check names, shapes and channels of features, and that their type and device are those of a layer's weight.

    Under autocast types may differ.

    Raises:
        ValueError: If something does not fit; the message names the parameter.
    """
    check_features(space, features, channels)
    tensor = features[space.names[0]]
    same = tensor.dtype == weight.dtype or torch.is_autocast_enabled(tensor.device.type)
    if not same or tensor.device != weight.device:
        raise ValueError(
            f"features are {tensor.dtype} on {tensor.device}, expected {weight.dtype} on {weight.device} as the "
            "layer's weights; convert the features or the layer with .to(...)"
        )
