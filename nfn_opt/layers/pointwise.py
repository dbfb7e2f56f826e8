"""Layers that treat every entry of the weight features alike, and learned scales of whole parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.layers.checks import check_input
from nfn_opt.layers.kinds import KINDS, kind_of
from nfn_opt.layers.linear import Sharing
from nfn_opt.weight_space import Features, WeightSpace


class Pointwise(nn.Module):
    """Apply a module to the features of every parameter.

    Args:
        module: Any map from ``(..., C_in)`` to ``(..., C_out)`` that treats the leading axes alike: an activation,
            ``nn.Linear``, ``nn.LayerNorm(channels)``, ``nn.Dropout``, or a ``Sequential`` of these.

    Example:
        >>> layer = Pointwise(nn.Sequential(nn.Linear(1, 4), nn.ReLU()))
        >>> layer({"w": torch.zeros(2, 3, 5, 1)})["w"].shape
        torch.Size([2, 3, 5, 4])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, C_in)}`` to ``{name: (B, *axes, C_out)}``."""
        return {name: self.module(tensor) for name, tensor in features.items()}


class ChannelLinear(nn.Module):
    """Map the channels of every entry on its own, linearly, each parameter by a map of its own.

    What an NF-Layer does without hearing other entries: the baseline of arXiv:2302.14040 that is pointwise.

    Args:
        space: The weight space.
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        sharing: ``"per_parameter"``, or ``"by_relation"`` for one map of all vectors and one of all matrices, for
            every weight space.
        generator: Source of the initial weights.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 2), "b": torch.zeros(3)})
        >>> layer = ChannelLinear(space, 4, 5)
        >>> layer({"w": torch.ones(1, 2, 2, 4), "b": torch.ones(1, 3, 4)})["b"].shape
        torch.Size([1, 3, 5])
    """

    def __init__(
        self,
        space: WeightSpace,
        in_channels: int,
        out_channels: int,
        *,
        sharing: Sharing = "per_parameter",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space, self.sharing = space, sharing
        count = len(KINDS) if sharing == "by_relation" else len(space.names)
        weight = torch.randn(count, out_channels, in_channels, generator=generator)
        self.weight = nn.Parameter(weight / in_channels**0.5)
        self.bias = nn.Parameter(torch.zeros(count, out_channels))

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map ``{name: (B, *axes, C_in)}`` of ``space`` to ``{name: (B, *axes, C_out)}``."""
        space = space or self.space
        check_input(space, features, self.weight.shape[2], self.weight)
        shared = self.sharing == "by_relation"
        places = [KINDS.index(kind_of(spec)) if shared else i for i, spec in enumerate(space.parameters)]
        return {
            spec.name: F.linear(features[spec.name], self.weight[i], self.bias[i])
            for spec, i in zip(space.parameters, places, strict=True)
        }

    def extra_repr(self) -> str:
        """Channels and sharing."""
        return f"{self.weight.shape[2]} -> {self.weight.shape[1]}, {self.sharing}"


class LearnedScale(nn.Module):
    """Multiply the features of every parameter by a learned number of its own.

    Args:
        space: The weight space.
        initial: Value at initialisation; small (0.01) where the features are added to weights as a change.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 2)})
        >>> LearnedScale(space, 0.5)({"w": torch.ones(1, 2, 2, 1)})["w"].sum().item()
        2.0
    """

    def __init__(self, space: WeightSpace, initial: float = 0.01) -> None:
        super().__init__()
        self.space = space
        self.scale = nn.Parameter(torch.full((len(space.names),), initial))

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, C)}`` to the same shapes."""
        check_input(self.space, features)
        return {name: features[name] * self.scale[i] for i, name in enumerate(self.space.names)}

    def extra_repr(self) -> str:
        """Number of parameters of the space."""
        return f"{len(self.space.names)} parameters"


class SharedScale(nn.Module):
    """Multiply the features of all vectors by one learned number and those of all matrices by another.

    The counterpart of :class:`LearnedScale` that has the same two weights for every architecture.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        initial: Value at initialisation.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 2), "b": torch.zeros(3)})
        >>> layer = SharedScale(space, 0.5)
        >>> _ = layer.scale.data.copy_(torch.tensor([3.0, 5.0]))
        >>> out = layer({"w": torch.ones(1, 2, 2, 1), "b": torch.ones(1, 3, 1)})
        >>> out["w"].unique().item(), out["b"].unique().item()
        (5.0, 3.0)
    """

    def __init__(self, space: WeightSpace, initial: float = 0.01) -> None:
        super().__init__()
        self.space = space
        self.scale = nn.Parameter(torch.full((len(KINDS),), initial))

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map ``{name: (B, *axes, C)}`` of ``space`` to the same shapes."""
        space = space or self.space
        check_input(space, features)
        scales = dict(zip(KINDS, self.scale, strict=True))
        return {spec.name: features[spec.name] * scales[kind_of(spec)] for spec in space.parameters}
