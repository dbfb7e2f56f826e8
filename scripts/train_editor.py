#!/usr/bin/env python
"""Train an editor of INR weights.

Example:
    python scripts/train_editor.py --out runs/dilate --edit dilate --images photos
    python scripts/train_editor.py --out runs/digits --images digits --size None --training.patience 5 --minutes 20
    python scripts/train_editor.py --out runs/mine --images my.npz --no-gray --inrs my_inrs.safetensors
    torchrun --nproc-per-node 2 scripts/train_editor.py --out runs/dilate --edit dilate
"""

from __future__ import annotations

import inspect
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import tyro

from editors import score_table
from editors.training_runs import EditorRunConfig, EditorRunResult, run_training
from nfn_opt.meta.processes import joined_processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/train_editor.py", *words])
    going_on = command if "--resume" in words else f"{command} --resume"
    out: Any = tyro.MISSING

    def run(
        config: Annotated[EditorRunConfig, tyro.conf.arg(name="")] = EditorRunConfig(out=out),  # noqa: B008
        resume: bool = False,
        threads: int | None = None,
    ) -> int:
        """Run.

        Args:
            config: The run.
            resume: Go on with the run in the folder given by --out; all other options as at its start.
            threads: Number of CPU threads; PyTorch's choice if not given.
        """
        if threads is not None:
            if threads < 1:
                raise ValueError(f"threads is {threads}, expected at least 1")
            torch.set_num_threads(threads)
        with joined_processes() as processes:
            try:
                result = run_training(config, resume=resume, command=command, processes=processes)
            except (OSError, ValueError, TypeError, ModuleNotFoundError, FloatingPointError) as error:
                who = "" if processes.main else f" (process {processes.rank})"
                print(f"error{who}: {error}", file=sys.stderr)
                return 3 if isinstance(error, FloatingPointError) else 2
            return _report(result, going_on) if processes.main else 0

    try:
        return tyro.cli(
            run, args=words, prog="train_editor.py", description=inspect.getdoc(sys.modules[__name__])
        )
    except ValueError as error:  # options that are refused before the run
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; INRs that are complete are kept. To go on:\n  {going_on}", file=sys.stderr)
        return 130


def _report(result: EditorRunResult, resume: str) -> int:
    folder = result.folder
    if not result.finished:
        by = "the end of its time" if result.stopped_by is None else signal.Signals(result.stopped_by).name
        print(f"stopped by {by} after step {result.step}; everything is saved. To go on:\n  {resume}")
        return 0 if result.stopped_by is None else 128 + result.stopped_by
    print(f"mean squared error, values in [-1, 1]\n{score_table(result.scores)}")
    print(f"editor   {folder.editor}\nsamples  {folder.samples}\ncurves   {folder.curves}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
