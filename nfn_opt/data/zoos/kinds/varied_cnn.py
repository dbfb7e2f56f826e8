"""``--kind varied-cnn``: the options of a zoo of CNNs of many architectures."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro
from torch import Tensor

from nfn_opt.data import load_images
from nfn_opt.data.zoos.kinds.base import ZooReport, ZooRun, quantile_line
from nfn_opt.data.zoos.picture import draw_varied_zoo
from nfn_opt.data.zoos.varied import VariedZoo
from nfn_opt.data.zoos.varied_options import VariedOptions
from nfn_opt.data.zoos.varied_training import build_varied_zoo
from nfn_opt.meta.processes import Processes

__all__ = ["VariedCnnRun"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariedCnnRun(ZooRun[VariedZoo]):
    """A zoo of CNNs of many architectures.

    Attributes:
        images: Any source of nfn_opt.data.load_images: a name, an .npz file, a folder of pictures.
        size: Height and width to resize the images to, in pixels. Small images make a zoo that a processor trains.
        gray: Turn the images gray.
        options: What architectures and networks are drawn from.
        test_fraction: Share of the images that is kept for the test scores.
        score_images: Score on so many training and test images, at most.
        shard_size: Networks that are written at once, about.
    """

    images: str
    size: int | None = 16
    gray: bool = False
    options: Annotated[VariedOptions, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=VariedOptions
    )
    test_fraction: float = 1 / 6
    score_images: int = 2000
    shard_size: int = 32

    def build(self, command: str, processes: Processes) -> VariedZoo:
        """Load the images and train."""
        return build_varied_zoo(
            load_images(self.images, size=self.size, gray=self.gray),
            self.file,
            count=self.count,
            options=self.options,
            test_fraction=self.test_fraction,
            score_images=self.score_images,
            shard_size=self.shard_size,
            resume=self.resume,
            processes=processes,
            meta={"command": command},
            progress=True,
        )

    def report(self, zoo: VariedZoo) -> ZooReport:
        """How good the networks are, how many failed, and their picture."""
        good = zoo.finite()
        lines, files = [repr(good)], [self.file, self.file.with_suffix(".csv")]
        accuracy = good.table["test_accuracy"]
        if len(good) and isinstance(accuracy, Tensor):
            lines.append(quantile_line("test accuracy", accuracy))
            files.append(draw_varied_zoo(zoo, self.file.with_suffix(".png")))
        return ZooReport(lines, files)
