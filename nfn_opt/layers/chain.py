"""Layers one after the other, and residual blocks of them; both hand a weight space on to the layers that take one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Features, WeightSpace


@lru_cache(maxsize=256)
def _takes_space(forward: Callable[..., Any]) -> bool:
    """Whether the ``forward`` of a kind of layer has an argument ``space``."""
    return "space" in signature(forward).parameters


def _call(layer: nn.Module, features: Any, space: WeightSpace | None) -> Any:
    if space is None or not _takes_space(type(layer).forward):
        return layer(features)
    return layer(features, space=space)


class Chain(nn.Sequential):
    """Layers one after the other. A weight space given to ``forward`` goes to every layer that takes one.

    With layers that have no weights of a particular space (``sharing="by_relation"``, :class:`ChannelNorm`,
    :class:`SharedScale`, ...) the whole network runs on every weight space.

    Example:
        >>> from nfn_opt.layers import NFLinear, Pointwise
        >>> small, large = (WeightSpace.independent({"w": torch.zeros(n, 3)}) for n in (2, 5))
        >>> network = Chain(NFLinear(small, 1, 4, sharing="by_relation"), Pointwise(nn.ReLU()))
        >>> network({"w": torch.zeros(1, 5, 3, 1)}, space=large)["w"].shape
        torch.Size([1, 5, 3, 4])
    """

    def forward(self, features: Any, space: WeightSpace | None = None) -> Any:
        """What the last layer gives."""
        for layer in self:
            features = _call(layer, features, space)
        return features


class ResidualBlock(nn.Module):
    r"""Add to the features what layers make of them, times a learned number: :math:`x + a f(x)`.

    The number starts small, so that the variance grows by no more than a half through eight blocks whose layers
    keep it; it has no other weights, and serves every weight space that the layers serve.

    Args:
        *layers: The layers of :math:`f`; a norm comes first in the papers' blocks. Channels stay as they are.
        initial: Value of :math:`a` at initialisation.

    Example:
        >>> from nfn_opt.layers import ChannelNorm, Pointwise
        >>> block = ResidualBlock(ChannelNorm(4), Pointwise(nn.Linear(4, 4)), Pointwise(nn.ReLU()))
        >>> block({"w": torch.zeros(2, 3, 4)})["w"].shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, *layers: nn.Module, initial: float = 0.25) -> None:
        super().__init__()
        if not layers:
            raise ValueError("no layers given, expected at least one; they make up the block's change")
        self.body = Chain(*layers)
        self.scale = nn.Parameter(torch.tensor(initial))

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map ``{name: (B, *axes, C)}`` to the same shapes."""
        changes = self.body(features, space)
        for name, tensor in features.items():
            if changes[name].shape != tensor.shape:
                raise ValueError(
                    f"the layers of the block map {name} from {tuple(tensor.shape)} to {tuple(changes[name].shape)}, "
                    "expected the same shape; keep the number of channels"
                )
        return {name: torch.addcmul(tensor, self.scale, changes[name]) for name, tensor in features.items()}
