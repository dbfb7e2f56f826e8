"""``--kind small-cnn``: the options of a zoo of small CNNs of one architecture."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro
from torch import Tensor

from nfn_opt.data import load_images
from nfn_opt.data.zoos.building import build_zoo
from nfn_opt.data.zoos.hyperparameters import ZooOptions
from nfn_opt.data.zoos.kinds.base import ZooReport, ZooRun, quantile_line
from nfn_opt.data.zoos.picture import draw_zoo
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.processes import Processes

__all__ = ["SmallCnnRun"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallCnnRun(ZooRun[Zoo]):
    """A zoo of small CNNs of one architecture.

    Attributes:
        images: Any source of nfn_opt.data.load_images: a name, an .npz file, a folder of pictures.
        size: Height and width to resize the images to, in pixels.
        gray: Turn the images gray.
        options: What each network draws its hyperparameters from.
        test_fraction: Share of the images that is kept for the test scores.
        score_images: Score on so many test images, and a quarter as many training images, at most.
        chunk_size: Networks trained in step, at most.
        shard_size: Networks that are written at once, about.
    """

    images: str
    size: int | None = None
    gray: bool = False
    options: Annotated[ZooOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=ZooOptions)
    test_fraction: float = 1 / 6
    score_images: int = 10_000
    chunk_size: int = 24
    shard_size: int = 64

    def build(self, command: str, processes: Processes) -> Zoo:
        """Load the images and train."""
        return build_zoo(
            load_images(self.images, size=self.size, gray=self.gray),
            self.file,
            count=self.count,
            options=self.options,
            test_fraction=self.test_fraction,
            score_images=self.score_images,
            chunk_size=self.chunk_size,
            shard_size=self.shard_size,
            resume=self.resume,
            processes=processes,
            meta={"command": command},
            progress=True,
        )

    def report(self, zoo: Zoo) -> ZooReport:
        """How good the networks are, how many failed, and their picture."""
        good = zoo.finite()
        lines, files = [repr(good)], [self.file, self.file.with_suffix(".csv")]
        if zoo.failed.any():
            lines.append(
                f"{int(zoo.failed.sum())} of {len(zoo)} networks are not finite: they are in the file, and Zoo.load "
                "leaves them out"
            )
        accuracy = good.table["test_accuracy"]
        if len(good) and isinstance(accuracy, Tensor):
            lines.append(quantile_line("test accuracy", accuracy))
            files.append(draw_zoo(zoo, self.file.with_suffix(".png")))
        return ZooReport(lines, files)
