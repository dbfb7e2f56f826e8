#!/usr/bin/env python
"""Train an Inr2Array on INRs of a set of images, and a classifier of its arrays.

Example:
    python scripts/train_inr2array.py --images mnist_784 --out runs/inr2array
    python scripts/train_inr2array.py --images mnist_784 --out runs/inr2array --resume
    python scripts/train_inr2array.py --images CIFAR_10 --counts 16000 1000 3000 --views 4 --out runs/inr2array_cifar
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import tyro

from editors.inr2array.run import Inr2ArrayRun, run_inr2array


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/train_inr2array.py", *words])
    again = command if "--resume" in words else f"{command} --resume"
    missing: Any = tyro.MISSING

    def run(
        config: Annotated[Inr2ArrayRun, tyro.conf.arg(name="")] = Inr2ArrayRun(images=missing, out=missing),  # noqa: B008
        threads: int | None = None,
    ) -> int:
        """Run.

        Args:
            config: The run.
            threads: Number of CPU threads; PyTorch's choice if not given.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        result = run_inr2array(config, command=command, say=print, progress=True)
        if not result.finished:
            print(f"stopped; everything is saved. To go on:\n  {again}")
            return 130
        for name, value in result.scores.items():
            print(f"{name} on test INRs: {value:.4f}")
        print(f"written: {config.out}")
        return 0

    try:
        return tyro.cli(
            run, args=words, prog="train_inr2array.py", description=inspect.getdoc(sys.modules[__name__])
        )
    except (OSError, ValueError, TypeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; INRs that are complete are kept. To go on:\n  {again}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
