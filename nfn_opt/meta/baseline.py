"""Tuned Adam on the held-out tasks of a run: computed once, then kept beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nfn_opt.artifacts import load_artifact, save_artifact
from nfn_opt.meta.evaluate import Curves, Tuned
from nfn_opt.meta.outer import below

KIND = "tuned_adam"


def save_baseline(path: Path, adam: Mapping[str, Tuned]) -> None:
    """Write what :func:`~nfn_opt.meta.tuned_adam` gave for each task.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "adam.safetensors"
        >>> curves = Curves(torch.rand(2, 5), torch.rand(2))
        >>> save_baseline(path, {"a/0": Tuned({1e-3: curves}, 1e-3)})
        >>> loaded = load_baseline(path)["a/0"]
        >>> loaded.best, torch.equal(loaded.best_curves.losses, curves.losses)
        (0.001, True)
    """
    tensors = {
        f"{index}/{lr!r}/{part}": values
        for index, tuned in enumerate(adam.values())
        for lr, curves in tuned.curves.items()
        for part, values in vars(curves).items()
        if values is not None
    }
    tasks = {name: tuned.best for name, tuned in adam.items()}
    save_artifact(path, tensors, kind=KIND, metadata={"tasks": list(tasks), "best": list(tasks.values())})


def load_baseline(path: Path) -> dict[str, Tuned]:
    """Read what :func:`save_baseline` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ArtifactError: If it is damaged.
    """
    tensors, metadata = load_artifact(path, kind=KIND)
    found = {}
    for index, (name, best) in enumerate(zip(metadata["tasks"], metadata["best"], strict=True)):
        parts: dict[float, dict[str, Tensor]] = {}
        for key, tensor in below(tensors, f"{index}/").items():
            lr, part = key.split("/")
            parts.setdefault(float(lr), {})[part] = tensor
        found[name] = Tuned({lr: Curves(**parts[lr]) for lr in sorted(parts)}, best)
    return found
