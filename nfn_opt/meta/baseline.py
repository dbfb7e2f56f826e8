"""Tuned Adam on the held-out tasks of a run: computed once, then kept beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nfn_opt.artifacts import load_artifact, save_artifact
from nfn_opt.meta.evaluate import Curves, Tuned

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
    tensors: dict[str, Tensor] = {}
    for index, tuned in enumerate(adam.values()):
        for lr, curves in tuned.curves.items():
            tensors |= {f"{index}/{lr!r}/losses": curves.losses, f"{index}/{lr!r}/final": curves.final}
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
        rates = [
            key.split("/")[1] for key in tensors if key.startswith(f"{index}/") and key.endswith("/final")
        ]
        curves = {
            float(lr): Curves(tensors[f"{index}/{lr}/losses"], tensors[f"{index}/{lr}/final"])
            for lr in sorted(rates, key=float)
        }
        found[name] = Tuned(curves, best)
    return found
