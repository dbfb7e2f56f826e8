"""``--kind gru-adders``: the options of a zoo of GRU networks that add."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro
from torch import Tensor

from nfn_opt.data.zoos.adders import GruAdderArchitecture
from nfn_opt.data.zoos.adding import AdderOptions, build_adder_zoo
from nfn_opt.data.zoos.kinds.base import ZooReport, ZooRun, quantile_line
from nfn_opt.data.zoos.picture import draw_adders_zoo
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.processes import Processes

__all__ = ["GruAddersRun"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GruAddersRun(ZooRun[Zoo]):
    """A zoo of GRU networks that add two numbers.

    Attributes:
        architecture: What the networks are; those of the Tiny RNN Zoo have 128 hidden units, and 5 digits.
        options: What each network draws its hyperparameters from.
        test_problems: Problems that the networks are scored on.
        chunk_size: Networks trained in step, at most.
        shard_size: Networks that are written at once, about.
    """

    architecture: Annotated[GruAdderArchitecture, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=GruAdderArchitecture
    )
    options: Annotated[AdderOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=AdderOptions)
    test_problems: int = 1000
    chunk_size: int = 16
    shard_size: int = 64

    def build(self, command: str, processes: Processes) -> Zoo:
        """Train."""
        return build_adder_zoo(
            self.file,
            count=self.count,
            options=self.options,
            architecture=self.architecture,
            test_problems=self.test_problems,
            chunk_size=self.chunk_size,
            shard_size=self.shard_size,
            resume=self.resume,
            processes=processes,
            meta={"command": command},
            progress=True,
        )

    def report(self, zoo: Zoo) -> ZooReport:
        """How good the networks are, and their picture."""
        good = zoo.finite()
        lines, files = [repr(good)], [self.file, self.file.with_suffix(".csv")]
        success = good.table["test_success"]
        if len(good) and isinstance(success, Tensor):
            lines.append(quantile_line("test success", success))
            files.append(draw_adders_zoo(zoo, self.file.with_suffix(".png")))
        return ZooReport(lines, files)
