#!/usr/bin/env python
"""Prune networks by iterative magnitude pruning, to a set of winning tickets; what was stopped goes on with --resume.

Example:
    python scripts/build_tickets.py --network mlp --images mnist_784 --count 200 --out runs/tickets.safetensors
    python scripts/build_tickets.py --network cnn --images CIFAR_10 --count 200 --out runs/cnn_tickets.safetensors
    python scripts/build_tickets.py --images mnist_784 --widths 128 128 --pruning.rounds 5 --out runs/more.safetensors
"""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro

from nfn_opt.data import ImageData, load_images
from nfn_opt.data.tickets import (
    Architecture,
    MlpArchitecture,
    PruningOptions,
    TicketSet,
    TrainOptions,
    build_tickets,
    kept_share,
)
from nfn_opt.data.zoos import CnnArchitecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildTicketsRun:
    """A set of winning tickets.

    Attributes:
        images: Any source of nfn_opt.data.load_images: a name, an .npz file, a folder of pictures.
        out: File of the set to write, .safetensors if it has no other ending; refused if it exists.
        network: mlp: linear layers on the flattened images; cnn: that of the Small CNN Zoo.
        widths: Hidden neurons, or channels, layer by layer; 64, or 16 16 16, if not given.
        count: Number of networks.
        size: Height and width to resize the images to, in pixels.
        gray: Turn the images gray.
        pruning: Sparsity and rounds.
        training: How each round trains.
        score_images: Score on so many of the images kept for it, at most.
        chunk_size: Networks trained in step.
        seed: Seed of everything.
        threads: CPU threads; PyTorch's choice if not given.
        resume: Go on with the set in this file that was stopped; all other options as at its start.
    """

    images: str
    out: Path
    network: Literal["mlp", "cnn"] = "mlp"
    widths: tuple[int, ...] | None = None
    count: int = 200
    size: int | None = None
    gray: bool = False
    pruning: PruningOptions = dataclasses.field(default_factory=PruningOptions)
    training: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    score_images: int = 2000
    chunk_size: int = 4
    seed: int = 0
    threads: int | None = None
    resume: bool = False

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.out if self.out.suffix else self.out.with_suffix(".safetensors")

    def architecture(self, images: ImageData) -> Architecture:
        """The networks, for images of this shape."""
        _, side, _, channels = images.images.shape
        classes = len(images.class_names)
        if self.network == "mlp":
            return MlpArchitecture(
                in_channels=channels, side=side, widths=self.widths or (64,), classes=classes
            )
        return CnnArchitecture(in_channels=channels, widths=self.widths or (16, 16, 16), classes=classes)


def run_build(run: BuildTicketsRun, command: str) -> TicketSet:
    """Load the images and prune."""
    images = load_images(run.images, size=run.size, gray=run.gray)
    return build_tickets(
        images,
        run.file,
        count=run.count,
        architecture=run.architecture(images),
        pruning=run.pruning,
        training=run.training,
        score_images=run.score_images,
        chunk_size=run.chunk_size,
        seed=run.seed,
        resume=run.resume,
        meta={"command": command},
        progress=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/build_tickets.py", *words])
    started = time.perf_counter()
    try:
        run = tyro.cli(
            BuildTicketsRun,
            args=words,
            prog="build_tickets.py",
            description=inspect.getdoc(sys.modules[__name__]),
        )
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        tickets = run_build(run, command)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = command if "--resume" in words else f"{command} --resume"
        print(f"\nstopped; the shards that are complete are kept. To go on:\n  {again}", file=sys.stderr)
        return 130
    print(f"{tickets!r}, {time.perf_counter() - started:.1f} s")
    print(
        f"test accuracy before pruning {tickets.scores['dense_accuracy'].mean():.3f}; share kept by layer: ",
        end="",
    )
    print(", ".join(f"{name} {kept_share({name: mask}).mean():.3f}" for name, mask in tickets.masks.items()))
    print(f"written: {run.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
