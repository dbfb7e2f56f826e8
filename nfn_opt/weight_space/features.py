"""Networks to weight features and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nfn_opt.weight_space.checks import check_alike, check_features, check_tensors

if TYPE_CHECKING:
    from nfn_opt.weight_space.space import Features, WeightSpace


def stack(space: WeightSpace, models: Sequence[nn.Module | Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the parameters of several networks: ``{name: (B, *shape)}``."""
    if isinstance(models, nn.Module | Mapping) or not models:
        raise ValueError(
            f"models is {'empty' if isinstance(models, Sequence) else 'one network'}, expected a sequence of networks "
            "of one architecture; put a single network into a list"
        )
    tensors = [dict(m.named_parameters()) if isinstance(m, nn.Module) else dict(m) for m in models]
    for single in tensors:
        check_tensors(space, single)
    check_alike(space, tensors, "network")
    return {name: torch.stack([single[name].detach() for single in tensors]) for name in space.names}


def as_features(space: WeightSpace, tensors: Sequence[Mapping[str, Tensor]]) -> Features:
    """Batched tensors ``{name: (B, *shape)}`` to features ``{name: (B, *axes, len(tensors))}``."""
    if not tensors:
        raise ValueError(
            "no tensors given, expected at least one dict; pass the weights, then gradients and so on"
        )
    for batch in tensors:
        check_tensors(space, batch, batch_dims=1)
    check_alike(space, tensors, "channel")
    features = {
        spec.name: torch.stack([spec.view(batch[spec.name], batch_dims=1) for batch in tensors], dim=-1)
        for spec in space.parameters
    }
    check_features(space, features)
    return features


def from_features(space: WeightSpace, features: Mapping[str, Tensor], channel: int) -> dict[str, Tensor]:
    """One channel of features to batched tensors ``{name: (B, *shape)}``."""
    check_features(space, features)
    channels = features[space.names[0]].shape[-1]
    if not -channels <= channel < channels:
        raise ValueError(
            f"channel is {channel}, expected less than {channels}, the number of channels of the features"
        )
    return {
        spec.name: spec.unview(features[spec.name][..., channel], batch_dims=1) for spec in space.parameters
    }


def write(
    space: WeightSpace, features: Mapping[str, Tensor], model: nn.Module, index: int, channel: int
) -> None:
    """Copy one network of the features into a model, after checking that all of it fits."""
    tensors = from_features(space, features, channel)
    batch = tensors[space.names[0]].shape[0]
    if not -batch <= index < batch:
        raise ValueError(
            f"index is {index}, expected less than {batch}, the number of networks in the features"
        )
    parameters = dict(model.named_parameters())
    check_tensors(space, parameters)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor[index])
