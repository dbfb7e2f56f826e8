#!/usr/bin/env python
"""Train a zoo of small networks, to a file; a run that was stopped goes on with --resume.

Every kind has its own options: see --kind KIND --help.

Example:
    python scripts/build_zoo.py --kind small-cnn --images mnist_784 --count 2000 --out runs/zoo.safetensors
    python scripts/build_zoo.py --kind small-cnn --images CIFAR_10 --gray --count 2000 --out runs/cifar_zoo.safetensors
    torchrun --nproc-per-node 2 scripts/build_zoo.py --images mnist_784 --count 2000 --out runs/zoo.safetensors
    python scripts/build_zoo.py --kind varied-cnn --images CIFAR_10 --count 1000 --out runs/varied.safetensors
    python scripts/build_zoo.py --kind gru-adders --count 500 --out runs/adders.safetensors
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
import time
from collections.abc import Sequence

import torch
import tyro

from nfn_opt.data.zoos.kinds import DEFAULT_KIND, KINDS
from nfn_opt.meta.processes import joined_processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/build_zoo.py", *words])
    started = time.perf_counter()
    try:
        kind, rest = chosen_kind(words)
        run = tyro.cli(
            KINDS[kind].run_class(),
            args=rest,
            prog=f"build_zoo.py --kind {kind}",
            description=description(),
        )
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        with joined_processes() as processes:
            zoo = run.build(command, processes)
            if not processes.main:
                return 0
            report = run.report(zoo)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = command if "--resume" in words else f"{command} --resume"
        print(f"\nstopped; the shards that are complete are kept. To go on:\n  {again}", file=sys.stderr)
        return 130
    first, *others = report.lines
    print("\n".join([f"{first}, {time.perf_counter() - started:.1f} s", *others]))
    print(f"written: {', '.join(map(str, report.files))}")
    return 0


def chosen_kind(words: Sequence[str]) -> tuple[str, list[str]]:
    """The kind that the words name, and the other words, which are that kind's options."""
    parser = argparse.ArgumentParser(prog="build_zoo.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--kind", choices=list(KINDS), default=DEFAULT_KIND)
    given, rest = parser.parse_known_args(words)
    return given.kind, rest


def description() -> str:
    """The text above the options: this module's, and the kinds."""
    kinds = "\n".join(f"    {name}: {kind.summary}" for name, kind in KINDS.items())
    return f"{inspect.getdoc(sys.modules[__name__])}\n\nKinds:\n{kinds}"


if __name__ == "__main__":
    sys.exit(main())
