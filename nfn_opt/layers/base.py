"""What the equivariant linear layers have in common: checks, compilation, checkpointing, size of initial weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from nfn_opt.layers.checks import check_channels, check_input
from nfn_opt.layers.compilation import Compilable, transformed
from nfn_opt.weight_space import Features, WeightSpace

OWN_SHARE, OTHER_SHARE = 0.95, 0.08
_MAX_ORTHOGONAL = 2048


def variance_shares(others: int) -> tuple[float, float]:
    r"""Shares of an output's variance at initialisation: of its own entry, and of each of the other terms.

    Inputs of unit variance may be independent, and then all means of many entries vanish, or equal along an axis,
    as after an earlier layer, and then means are as large as the entries. By Jensen's inequality no mean is larger.
    So if an entry takes :math:`s` of its own variance and :math:`t` of that of all means together, the variance is
    multiplied by something between :math:`s` and :math:`s + t`. With :math:`s = 0.95`, :math:`t = 0.08` it stays
    between :math:`0.95^8 = 0.66` and :math:`1.03^8 = 1.27` through 8 layers, whatever the weight space.

    Args:
        others: How many terms there are besides an entry's own.
    """
    return (OWN_SHARE, OTHER_SHARE / others) if others else (1.0, 0.0)


def normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=generator)


def orthogonal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """A matrix that turns rows of unit variance into rows of unit variance, without chance where it can.

    Orthogonal matrices keep the length of every vector, so that nothing adds up through many layers. Beyond 2048
    rows or columns normal numbers do as well and need no decomposition.
    """
    if max(rows, columns) > _MAX_ORTHOGONAL:
        return normal((rows, columns), generator) / rows**0.5
    turned = nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)
    return turned * max(columns / rows, 1.0) ** 0.5


class LinearBase(Compilable, ABC):
    """An equivariant linear layer; see the two kinds, :class:`PerParameterLinear` and :class:`RelationLinear`."""

    def __init__(
        self,
        space: WeightSpace,
        in_channels: int,
        out_channels: int,
        *,
        compile: bool,  # noqa: A002  (torch's own word)
        checkpoint: bool,
    ) -> None:
        super().__init__(compile=compile)
        check_channels(in_channels=in_channels, out_channels=out_channels)
        self.space, self.in_channels, self.out_channels = space, in_channels, out_channels
        self.checkpoint = checkpoint

    @property
    @abstractmethod
    def _weight(self) -> Tensor:
        """A weight, for its type and device."""

    @abstractmethod
    def _map(self, features: Mapping[str, Tensor], program: Any) -> Features:
        """The map itself, for features that have been checked."""

    def _program_of(self, space: WeightSpace | None) -> Any:
        """What :meth:`_map` needs to know of a space."""
        return None

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map weight features with ``in_channels`` to weight features with ``out_channels``."""
        return self._checked(features, None)

    def _checked(self, features: Mapping[str, Tensor], space: WeightSpace | None) -> Features:
        check_input(space or self.space, features, self.in_channels, self._weight)
        features = {name: features[name] for name in (space or self.space).names}
        program = self._program_of(space)
        if self.checkpoint and torch.is_grad_enabled() and not transformed():
            return recompute(self._run, features, program, use_reentrant=False, preserve_rng_state=False)
        return self._run(features, program)

    def _run(self, features: Features, program: Any) -> Features:
        result: Features = self._call(self._map, features, program)
        return result
