"""Augmenting inner problems by a change of units: the same network, with parameters on other scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Level = Literal["global", "tensor", "parameter"]


@dataclass(frozen=True, kw_only=True)
class Reparametrization:
    r"""Random rescaling of the optimised variables, one draw for each inner problem.

    Instead of the weights :math:`w` the rule updates :math:`p = w / s`, and the loss is that of :math:`s p`.
    A rule that is trained so learns not to depend on the scale of the weights (task augmentation of
    arXiv:2501.12670).

    Attributes:
        level: One :math:`s` for all parameters of a problem (``"global"``), for each tensor, or for each
            single parameter.
        low: Smallest :math:`s`; :math:`\ln s` is uniform.
        high: Largest :math:`s`.

    Example:
        >>> augmentation = Reparametrization(level="tensor", low=0.1, high=10.0)
        >>> scale = augmentation.sample(torch.Generator().manual_seed(0), {"w": torch.zeros(5, 3, 4)})
        >>> scale["w"].shape, bool(((scale["w"] >= 0.1) & (scale["w"] <= 10)).all())
        (torch.Size([5, 1, 1]), True)
    """

    level: Level = "global"
    low: float = 1e-3
    high: float = 1e3

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level is {self.level!r}, expected one of {', '.join(get_args(Level))}")
        if not 0 < self.low <= self.high:
            raise ValueError(f"low and high are {self.low} and {self.high}, expected 0 < low <= high")

    def sample(self, generator: torch.Generator, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw the scales of ``n`` problems; each broadcasts with its parameter ``(n, *shape)``."""
        n = len(next(iter(params.values())))
        shared = self._draw(generator, (n,)) if self.level == "global" else None
        scales = {}
        for name, p in params.items():
            shape = p.shape if self.level == "parameter" else (n, *(1,) * (p.dim() - 1))
            scale = self._draw(generator, shape) if shared is None else shared.reshape(shape)
            scales[name] = scale.to(p.device, p.dtype)
        return scales

    def _draw(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
        low, high = math.log(self.low), math.log(self.high)
        return torch.exp(low + (high - low) * uniform)


@dataclass(frozen=True, kw_only=True)
class MixedReparametrization:
    """A :class:`Reparametrization` at a level that each inner problem draws.

    Attributes:
        levels: What to draw from, each entry equally likely; ``"none"`` leaves a problem as it is.
        low: Smallest factor.
        high: Largest factor.

    Example:
        >>> augmentation = MixedReparametrization(levels=("none", "tensor"))
        >>> scale = augmentation.sample(torch.Generator().manual_seed(0), {"w": torch.zeros(5, 3, 4)})
        >>> scale["w"].shape, int((scale["w"] == 1).sum())
        (torch.Size([5, 1, 1]), 2)
    """

    levels: tuple[Literal["none"] | Level, ...]
    low: float = 1e-3
    high: float = 1e3

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty, expected at least one, such as ('global',)")
        for level in self.levels:
            if level != "none":
                Reparametrization(level=level, low=self.low, high=self.high)

    def sample(self, generator: torch.Generator, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw the scales of ``n`` problems; each broadcasts with its parameter ``(n, *shape)``."""
        n = len(next(iter(params.values())))
        device = generator.device
        chosen = torch.randint(len(self.levels), (n,), generator=generator, device=device)
        distinct = [level for level in dict.fromkeys(self.levels) if level != "none"]
        scales = {
            name: torch.ones((n, *(1,) * (p.dim() - 1)), dtype=p.dtype, device=p.device)
            for name, p in params.items()
        }
        for level in distinct:
            one = Reparametrization(level=level, low=self.low, high=self.high)
            drawn = one.sample(generator, params)
            here = torch.tensor([entry == level for entry in self.levels], device=device)[chosen]
            for name, scale in scales.items():
                where = here.to(scale.device).reshape(-1, *(1,) * (scale.dim() - 1))
                scales[name] = torch.where(where, drawn[name], scale)
        return scales
