#!/usr/bin/env python
"""Train a zoo of small networks, to a file; a run that was stopped goes on with --resume.

Example:
    python scripts/build_zoo.py --kind small-cnn --images mnist_784 --count 2000 --out runs/zoo.safetensors
    python scripts/build_zoo.py --kind small-cnn --images CIFAR_10 --gray --count 2000 --out runs/cifar_zoo.safetensors
    torchrun --nproc-per-node 2 scripts/build_zoo.py --images mnist_784 --count 2000 --out runs/zoo.safetensors
"""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from nfn_opt.data import load_images
from nfn_opt.data.zoos import Zoo, ZooOptions, build_zoo, draw_zoo
from nfn_opt.meta.processes import Processes, joined_processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildZooRun:
    """A zoo.

    Attributes:
        images: Any source of nfn_opt.data.load_images: a name, an .npz file, a folder of pictures.
        out: File of the zoo to write, .safetensors if it has no other ending; refused if it exists.
        kind: What the networks are; small-cnn: those of the Small CNN Zoo (arXiv:2002.11448), of 4,970 parameters.
        count: Number of networks.
        size: Height and width to resize the images to, in pixels.
        gray: Turn the images gray.
        options: What each network draws its hyperparameters from.
        test_fraction: Share of the images that is kept for the test scores.
        score_images: Score on so many training and test images, at most.
        chunk_size: Networks trained in step, at most.
        shard_size: Networks that are written at once, about.
        threads: CPU threads; PyTorch's choice if not given. Two processes are faster than two threads.
        resume: Go on with the zoo in this file that was stopped; all other options as at its start.
    """

    images: str
    out: Path
    kind: Literal["small-cnn"] = "small-cnn"
    count: int = 2000
    size: int | None = None
    gray: bool = False
    options: Annotated[ZooOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=ZooOptions)
    test_fraction: float = 1 / 6
    score_images: int = 10_000
    chunk_size: int = 16
    shard_size: int = 64
    threads: int | None = None
    resume: bool = False

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.out if self.out.suffix else self.out.with_suffix(".safetensors")


def run_build(run: BuildZooRun, command: str, processes: Processes) -> Zoo:
    """Load the images and train."""
    return build_zoo(
        load_images(run.images, size=run.size, gray=run.gray),
        run.file,
        count=run.count,
        options=run.options,
        test_fraction=run.test_fraction,
        score_images=run.score_images,
        chunk_size=run.chunk_size,
        shard_size=run.shard_size,
        resume=run.resume,
        processes=processes,
        meta={"command": command},
        progress=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/build_zoo.py", *words])
    started = time.perf_counter()
    try:
        run = tyro.cli(
            BuildZooRun, args=words, prog="build_zoo.py", description=inspect.getdoc(sys.modules[__name__])
        )
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        with joined_processes() as processes:
            zoo = run_build(run, command, processes)
            if not processes.main:
                return 0
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = command if "--resume" in words else f"{command} --resume"
        print(f"\nstopped; the shards that are complete are kept. To go on:\n  {again}", file=sys.stderr)
        return 130
    report(zoo, time.perf_counter() - started)
    written = [run.file, run.file.with_suffix(".csv")]
    if not zoo.failed.all():
        written.append(draw_zoo(zoo, run.file.with_suffix(".png")))
    print(f"written: {', '.join(map(str, written))}")
    return 0


def report(zoo: Zoo, seconds: float) -> None:
    """Say how good the networks are, and how many failed."""
    good = zoo.finite()
    print(f"{good!r}, {seconds:.1f} s")
    if zoo.failed.any():
        print(
            f"{int(zoo.failed.sum())} of {len(zoo)} networks are not finite: they are in the file, and Zoo.load leaves "
            "them out"
        )
    accuracy = good.table["test_accuracy"]
    if len(good) and isinstance(accuracy, torch.Tensor):
        points = torch.quantile(accuracy, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=accuracy.dtype))
        print(
            "test accuracy at 5, 25, 50, 75, 95 %: " + ", ".join(f"{point:.3f}" for point in points.tolist())
        )


if __name__ == "__main__":
    sys.exit(main())
