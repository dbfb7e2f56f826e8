#!/usr/bin/env python
"""Fit one INR to each image of a set, to a file; a run that was stopped goes on with --resume.

Example:
    python scripts/fit_inrs.py --images mnist_784 --count 10000 --out runs/mnist_inrs.safetensors
    python scripts/fit_inrs.py --images mnist_784 --count 10000 --out runs/mnist_inrs.safetensors --resume
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro

from editors import FitOptions, InrSet, SirenConfig, fit_to_file
from nfn_opt.data import load_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitInrsRun:
    """A fit.

    Attributes:
        images: Any source of nfn_opt.data.load_images: a name, an .npz file, a folder of pictures, with or without
            a sub-folder for each class.
        out: File of the INRs to write; refused if it exists.
        size: Height and width to resize the images to, in pixels.
        gray: Turn the images gray.
        count: Take the first so many images; all if not given.
        width: Neurons of each hidden layer.
        layers: Hidden layers.
        omega: Factor on the argument of every sine; what suits the size of the images if not given.
        fit: How to fit.
        shard_size: INRs that are written at once.
        device: Where to fit: cpu, cuda, ...
        threads: CPU threads; PyTorch's choice if not given.
        resume: Go on with the fit to this file that was stopped; all other options as at its start.
    """

    images: str
    out: Path
    size: int | None = None
    gray: bool = False
    count: int | None = None
    width: int = 32
    layers: int = 2
    omega: float | None = None
    fit: Annotated[FitOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=FitOptions)
    shard_size: int = 1000
    device: str = "cpu"
    threads: int | None = None
    resume: bool = False


def run_fit(run: FitInrsRun, command: str) -> InrSet:
    """Load the images and fit."""
    data = load_images(run.images, size=run.size, gray=run.gray)
    data = data if run.count is None else data.subset(run.count)
    suited = SirenConfig.for_images(*data.images.shape[1:])
    omega = suited.omega_0 if run.omega is None else run.omega
    config = dataclasses.replace(suited, hidden_width=run.width, hidden_layers=run.layers, omega_0=omega)
    return fit_to_file(
        data,
        run.out,
        config=config,
        options=run.fit,
        shard_size=run.shard_size,
        resume=run.resume,
        device=run.device,
        meta={"command": command},
        progress=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/fit_inrs.py", *words])
    started = time.perf_counter()
    try:
        run = tyro.cli(FitInrsRun, args=words, prog="fit_inrs.py", description=__doc__)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            inrs = run_fit(run, command)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = command if "--resume" in words else f"{command} --resume"
        print(f"\nstopped; the shards that are complete are kept. To go on:\n  {again}", file=sys.stderr)
        return 130
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    known = inrs.psnr[~inrs.psnr.isnan()]
    print(f"{inrs!r}, {time.perf_counter() - started:.1f} s")
    if len(known):
        print(f"PSNR: mean {known.mean():.2f} dB, at least 40 dB: {(inrs.psnr >= 40).float().mean():.1%}")
    print(f"written: {run.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
