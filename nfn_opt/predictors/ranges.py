"""The range of the networks that a predictor was trained on, and which networks lie outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nfn_opt.layers.kinds import KINDS, kind_of
from nfn_opt.predictors.scaling import relative
from nfn_opt.weight_space import WeightSpace

__all__ = ["TrainingRange"]

MARGIN = 1.5
"""How many times beyond the training networks a statistic may be before it is said to be outside."""

ROOT_MEAN_SQUARE, LARGEST = "root mean square", "largest absolute value"


class TrainingRange:
    """Smallest and largest value of simple statistics of each parameter over the training networks.

    A predictor is a fit to its training networks, and says nothing of networks that are unlike all of them. Simple
    statistics do not find all of these; those that they find are certain.

    Args:
        limits: For each statistic, by its name, its smallest and largest value.
        shared: Whether statistics are those of all vectors and of all matrices, whatever the architecture.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2)})
        >>> seen = TrainingRange.of([(space, {"w": torch.tensor([[1.0, -1.0], [2.0, 2.0]])})], shared=False)
        >>> seen.outside({"w": torch.tensor([[1.5, 1.5], [9.0, 0.0]])}, space)
        [[], ['w: root mean square 6.36, in training 1 to 2', 'w: largest absolute value 9, in training 1 to 2']]
    """

    def __init__(self, limits: Mapping[str, tuple[float, float]], *, shared: bool) -> None:
        self.limits = {name: (float(low), float(high)) for name, (low, high) in limits.items()}
        self.shared = shared

    @classmethod
    def of(cls, groups: Sequence[tuple[WeightSpace, Mapping[str, Tensor]]], *, shared: bool) -> TrainingRange:
        """The range of networks, given group by group as their space and ``{name: (B, *shape)}``."""
        limits: dict[str, tuple[float, float]] = {}
        for space, params in groups:
            for name, values in _statistics(params, space, shared).items():
                low, high = limits.get(name, (float("inf"), 0.0))
                limits[name] = (min(low, values.min().item()), max(high, values.max().item()))
        return cls(limits, shared=shared)

    def outside(self, params: Mapping[str, Tensor], space: WeightSpace) -> list[list[str]]:
        """For each network in what it lies outside the range, as sentences; none if it lies inside.

        Args:
            params: Weights ``{name: (B, *shape)}``.
            space: Their weight space.
        """
        found: list[list[str]] = [[] for _ in range(len(params[space.names[0]]))]
        for name, values in _statistics(params, space, self.shared).items():
            low, high = self.limits.get(name, (0.0, 0.0))
            for network, value in enumerate(values.tolist()):
                if value > MARGIN * high or (ROOT_MEAN_SQUARE in name and value < low / MARGIN):
                    found[network].append(f"{name} {value:.3g}, in training {low:.3g} to {high:.3g}")
        return found


def _statistics(params: Mapping[str, Tensor], space: WeightSpace, shared: bool) -> dict[str, Tensor]:
    """Statistics of each network, none of them negative, shape (B,) each."""
    found: dict[str, Tensor] = {}
    for key, value in _tensors(params, space, shared).items():
        found[f"{key}: {ROOT_MEAN_SQUARE}"] = value.square().mean(1).sqrt()
        found[f"{key}: {LARGEST}"] = value.abs().amax(1)
    if shared:
        count = len(params[space.names[0]])
        found["number of weights"] = torch.full((count,), float(space.numel))
        found["number of tensors"] = torch.full((count,), float(len(space.parameters)))
    return found


def _tensors(params: Mapping[str, Tensor], space: WeightSpace, shared: bool) -> dict[str, Tensor]:
    """The numbers of each parameter, or of each kind of parameter, shape (B, entries)."""
    flat = {
        spec.name: relative(params[spec.name], spec, shared).flatten(1).double() for spec in space.parameters
    }
    if not shared:
        return flat
    kinds = {kind: [flat[spec.name] for spec in space.parameters if kind_of(spec) == kind] for kind in KINDS}
    return {f"all {kind} parameters": torch.cat(some, 1) for kind, some in kinds.items() if some}
