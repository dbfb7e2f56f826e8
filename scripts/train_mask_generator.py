#!/usr/bin/env python
"""Train a generator of masks on a set of winning tickets; a training that was stopped goes on with --resume.

Example:
    python scripts/build_tickets.py --images mnist_784 --count 200 --out runs/tickets.safetensors
    python scripts/train_mask_generator.py --tickets runs/tickets.safetensors --out runs/generator
    python scripts/train_mask_generator.py --tickets runs/tickets.safetensors --model.body pointwise --out runs/plain
"""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro

from nfn_opt.data.tickets import TicketSet, overlap
from nfn_opt.mask_generator import MaskGenerator, MaskGeneratorConfig, train_mask_generator
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.training import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMaskGeneratorRun:
    """A mask generator.

    Attributes:
        tickets: Set of tickets, written by build_tickets.py.
        out: Folder to write to: checkpoints, train.csv, and in the end generator.safetensors.
        model: Shape of the generator.
        training: How it is trained.
        held_out: Share of the networks that is kept to choose the best weights.
        threads: CPU threads; PyTorch's choice if not given.
        resume: Go on with the training in this folder that was stopped; all other options as at its start.
    """

    tickets: Path
    out: Path
    model: MaskGeneratorConfig = dataclasses.field(default_factory=MaskGeneratorConfig)
    training: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(steps=500, batch_size=4, lr=5e-3, warmup=10, validate_every=50)
    )
    held_out: float = 0.1
    threads: int | None = None
    resume: bool = False


def run_training(run: TrainMaskGeneratorRun, command: str) -> str:
    """Train, write the generator, and say how good it is."""
    parts = TicketSet.load(run.tickets).split(
        {"train": 1 - run.held_out, "validation": run.held_out}, seed=run.training.seed
    )
    validation = parts["validation"]
    model = MaskGenerator(
        validation.architecture, run.model, generator=seeded_generator(run.training.seed, "mask generator")
    )
    result = train_mask_generator(
        model,
        parts["train"],
        validation,
        config=run.training,
        folder=run.out,
        resume=run.resume,
        command=command,
        progress=True,
    )
    if result.stopped_by is not None:
        raise KeyboardInterrupt
    sparsity = 1 - sum(float(m[0].sum()) for m in validation.masks.values()) / sum(
        m[0].numel() for m in validation.masks.values()
    )
    masks = model.generate(validation.params, sparsity, seeded_generator(0, "masks"))
    share = overlap(masks, validation.masks).mean().item()
    path = model.save(
        run.out / "generator.safetensors",
        {"command": command, "bound": result.best_score, "overlap": share, "step": result.best_step},
    )
    return (
        f"bound {result.best_score:.4f} nats a weight at step {result.best_step}, {result.seconds:.0f} s; of the "
        f"weights that pruning keeps in {len(validation)} held-out networks, a generated mask of the same sparsity "
        f"keeps {share:.1%}, a random one {1 - sparsity:.1%}\nwritten: {path}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/train_mask_generator.py", *words])
    try:
        run = tyro.cli(
            TrainMaskGeneratorRun,
            args=words,
            prog="train_mask_generator.py",
            description=inspect.getdoc(sys.modules[__name__]),
        )
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        print(run_training(run, command))
    except (OSError, ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = command if "--resume" in words else f"{command} --resume"
        print(f"\nstopped; the last checkpoint is kept. To go on:\n  {again}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
