"""Tasks that draw by seeds, for fair comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.meta.tasks import Params, Task, TaskWrapper
from nfn_opt.meta.trees import map_data


class SeededTask(TaskWrapper):
    """A task that draws from its own generators, one for each seed, not from the one it is called with.

    Several networks may have the same seed: what is drawn for it is drawn once and repeated. Network
    ``repeat * len(seeds) + i`` has the seed ``i``. Each is at the first place, where a task goes by places.

    Args:
        task: The task.
        seeds: Seeds.
        repeats: Number of networks of each seed.
    """

    def __init__(self, task: Task, seeds: Sequence[int], repeats: int = 1) -> None:
        super().__init__(task)
        self.seeds, self.repeats = tuple(seeds), repeats
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @property
    def networks(self) -> int:
        """How many networks are trained at once."""
        return self.repeats * len(self.seeds)

    def init(self, generator: torch.Generator, n: int) -> Params:
        """Initial parameters of all networks; the arguments are not used."""
        drawn = [self.task.init(own, 1) for own in self.generators]
        return {name: self._repeat([params[name] for params in drawn]) for name in drawn[0]}

    def batch(self, generator: torch.Generator, n: int) -> Any:
        """A minibatch for each network; the arguments are not used."""
        drawn = [self.task.batch(own, 1) for own in self.generators]
        return map_data(lambda *parts: self._repeat(list(parts)), *drawn)

    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Task`."""
        if not self.by_place:
            return self.task.full_losses(params)
        alone = ({name: p[i : i + 1] for name, p in params.items()} for i in range(self.networks))
        return torch.cat([self.task.full_losses(one) for one in alone])

    def _repeat(self, parts: list[Tensor]) -> Tensor:
        once = torch.cat(parts)
        return once.repeat(self.repeats, *(1,) * (once.dim() - 1))
