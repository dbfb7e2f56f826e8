"""The folder of a run: refused if it holds another, with the configuration and the circumstances beside it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

import nfn_opt
from nfn_opt.artifacts import ArtifactError, atomic_write, read_header
from nfn_opt.meta.config import differences


class RunFolder:
    """Names of the files of a meta-training run.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.previous = self.path / "checkpoint_before.safetensors"
        self.train_log = self.path / "train.csv"
        self.task_log = self.path / "tasks.csv"
        self.evaluation_log = self.path / "evaluation.csv"
        self.tensorboard = self.path / "tensorboard"
        self.adam = self.path / "adam.safetensors"
        self.diverged = self.path / "diverged.txt"
        self.rules = self.path / "rules"
        self.rule = self.path / "rule.safetensors"
        self.curves = self.path / "curves.png"
        self.result = self.path / "result.json"

    def claim(self, record: Mapping[str, Any], command: str) -> None:
        """Make the folder that of a new run, and write its configuration.

        Args:
            record: The configuration.
            command: How the run was started.

        Raises:
            FileExistsError: If the folder holds something already.
            NotADirectoryError: If it is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                f"{self.path} is a file, expected a folder to write to; give another name"
            )
        if self.path.is_dir() and any(self.path.iterdir()):
            what = "another run" if self.config.exists() else "other files"
            raise FileExistsError(
                f"the folder {self.path} holds {what}, expected a new or empty one; give another name, or resume "
                "the run that it holds (--resume)"
            )
        write_json(self.config, {"command": command, "config": record, "environment": environment()})

    def reopen(self, record: Mapping[str, Any]) -> None:
        """Check that the folder holds a run of this configuration.

        Raises:
            FileNotFoundError: If it holds no run.
            ValueError: If the configuration differs; the message names what does. Also if its file is damaged.
        """
        if not self.config.exists():
            raise FileNotFoundError(
                f"there is no run to resume in {self.path}: it has no {self.config.name}; check the name, or start "
                "a new run without --resume"
            )
        stored = self._stored()
        changed = differences(stored, json.loads(json.dumps(record)))
        if changed:
            raise ValueError(
                f"the run in {self.path} has another configuration: {'; '.join(changed)}; resume it with the options "
                "that it was started with, or give a new folder"
            )

    def _stored(self) -> Mapping[str, Any]:
        """The configuration that the run was started with."""
        try:
            stored = json.loads(self.config.read_text())["config"]
            if not isinstance(stored, Mapping):
                raise TypeError(f"its configuration is a {type(stored).__name__}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.config} is not the configuration of a run ({error!r}); it was damaged or changed: restore it, "
                "or start a new run with the checkpoint as start_from"
            ) from error
        return stored

    def keep_checkpoint(self) -> None:
        """Keep the last checkpoint as the one before, if it was made while outer gradients were finite."""
        if self.checkpoint.exists() and _good(self.checkpoint):
            with atomic_write(self.previous) as temporary:
                shutil.copyfile(self.checkpoint, temporary)

    def last_good(self) -> Path | None:
        """The last checkpoint made while outer gradients were finite, if there is one."""
        kept = (path for path in (self.checkpoint, self.previous) if path.exists() and _good(path))
        return next(kept, None)

    def why_diverged(self) -> str | None:
        """Why the run was given up, if it was."""
        return self.diverged.read_text().strip() if self.diverged.exists() else None

    def snapshot(self, step: int) -> Path:
        """File of the rule as it was after an outer step."""
        return self.rules / f"step_{step:07d}.safetensors"


def _good(checkpoint: Path) -> bool:
    try:
        return read_header(checkpoint)[1]["progress"]["in_a_row"] == 0
    except (ArtifactError, KeyError):
        return False


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically, indented, keys in the given order."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Versions, git revision and hardware, to be saved beside a result.

    Example:
        >>> sorted(environment())
        ['cpu', 'git_revision', 'gpu', 'platform', 'threads', 'versions']
    """
    return {
        "versions": {
            "nfn_opt": nfn_opt.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": numpy.__version__,
        },
        "git_revision": git_revision(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def git_revision() -> str | None:
    """The commit of this library's source tree, ``-dirty`` if files differ; ``None`` if it is no checkout."""
    root = Path(nfn_opt.__file__).parent.parent
    if not (root / ".git").exists():  # installed, perhaps somewhere below another project's checkout
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
