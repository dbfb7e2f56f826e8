"""``--kind policies``: the options of a zoo of policies of one environment of gymnasium."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro
from torch import Tensor

from nfn_opt.data.policies import PolicyOptions, build_policy_zoo, draw_policy_zoo
from nfn_opt.data.zoos.kinds.base import ZooReport, ZooRun, quantile_line
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.processes import Processes

__all__ = ["PoliciesRun"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoliciesRun(ZooRun[Zoo]):
    """A zoo of policies.

    Attributes:
        count: Number of independent training runs; each gives as many policies as there are snapshots.
        options: The environment, and what each run draws its hyperparameters from.
        episodes: Episodes in gymnasium by which each policy is judged.
        episode_seed: Seed of the reset before the first of them.
        shard_runs: Runs that are trained in step and written at once.
    """

    count: int = 200
    options: Annotated[PolicyOptions, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=PolicyOptions
    )
    episodes: int = 8
    episode_seed: int = 1_000_000
    shard_runs: int = 64

    def build(self, command: str, processes: Processes) -> Zoo:
        """Train and play."""
        if processes.size > 1:
            raise ValueError(
                f"policies are trained by one process, got {processes.size}; start without torchrun, or build several "
                "zoos with other seeds"
            )
        return build_policy_zoo(
            self.file,
            runs=self.count,
            options=self.options,
            episodes=self.episodes,
            episode_seed=self.episode_seed,
            shard_runs=self.shard_runs,
            resume=self.resume,
            meta={"command": command},
            progress=True,
        )

    def report(self, zoo: Zoo) -> ZooReport:
        """How good the policies are, and their picture."""
        good = zoo.finite()
        lines, files = [repr(good)], [self.file, self.file.with_suffix(".csv")]
        returns = good.table["mean_return"]
        if len(good) and isinstance(returns, Tensor):
            lines.append(quantile_line("mean return", returns))
            files.append(draw_policy_zoo(zoo, self.file.with_suffix(".png")))
        return ZooReport(lines, files)
