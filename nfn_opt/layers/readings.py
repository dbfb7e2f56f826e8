"""Which readings of which parameters a plan needs, and where they come among the results of :func:`gather`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nfn_opt.layers.movement import Sources
from nfn_opt.layers.patterns import Block, Pattern
from nfn_opt.layers.pool import pool_of
from nfn_opt.weight_space import WeightSpace

_Key = tuple[str, tuple[Block, ...], tuple[int, ...]]


class Readings:
    """The readings that a plan needs, each pooled once.

    Args:
        space: A weight space without concatenated axes.
        patterns: Patterns that are read into small tensors.
        whole: Patterns of parameters that are multiplied as they are.

    Attributes:
        sources: What is read of each parameter, for :func:`nfn_opt.layers.movement.gather`.
    """

    def __init__(self, space: WeightSpace, patterns: Iterable[Pattern], whole: Iterable[Pattern]) -> None:
        wanted: dict[str, dict[_Key, Pattern]] = {name: {} for name in space.names}
        for pattern in patterns:
            wanted[pattern.name].setdefault(_key(pattern), pattern)
        products = {pattern.name for pattern in whole}
        self._places: dict[_Key, int] = {}
        self._whole: dict[str, int] = {}
        sources, place = [], 0
        for name, needed in wanted.items():
            sources.append(Sources(pool_of(tuple(needed.values())), name in products))
            if name in products:
                self._whole[name] = place
                place += 1
            for key in needed:
                self._places[key] = place
                place += 1
        self.sources = tuple(sources)

    def place(self, pattern: Pattern) -> int:
        """Where the reading of a pattern comes among all."""
        return self._places[_key(pattern)]

    def place_whole(self, pattern: Pattern) -> int:
        """Where the features of a pattern's parameter come among all."""
        return self._whole[pattern.name]


def _key(pattern: Pattern) -> _Key:
    """The same for patterns that differ in the order of their indices alone."""
    return pattern.name, pattern.layout, pattern.free_dims


def concatenate(tensors: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Concatenate, by default along channels; one tensor alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)
