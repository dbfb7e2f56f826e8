"""Reader of the public CNN Wild Park (https://doi.org/10.5281/zenodo.12797219, of arXiv:2403.12143).

The collection is a folder ``<run>/checkpoint_<number>/checkpoint.pt`` for each checkpoint, a file of `torch.save` with

* ``model``: the parameters, ``layers.<i>.weight``, ``layers.<i>.bias``, ``fc.weight``, ``fc.bias``;
* ``config``: the architecture: n_layers, n_classes, channels (those of the images first), kernel_size, stride, padding,
  residual, activation, each with one value a layer;
* ``last_result``: ``test/acc`` and ``test/loss``; and ``iteration``, the number of epochs.

Such files are pickles. The configuration may be an object of OmegaConf, which plain reading of tensors refuses. Here
its classes, and no others, are replaced by empty ones, so that no code of the file or of another package runs.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.zoos.table import Column
from nfn_opt.data.zoos.varied import VariedGroup, VariedZoo
from nfn_opt.data.zoos.varied_architecture import VariedArchitecture

__all__ = ["load_cnn_park"]

FILE = "checkpoint.pt"
"""Name of the file of each checkpoint."""

EMPTY_MODULES = ("omegaconf.", "experiments.cnn_generalization.dataset.")
"""Classes of these modules are read as empty ones that only keep their attributes."""

EMPTY_NAMES = (
    "typing.Any",
    "typing.Union",
    "collections.defaultdict",
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
)
"""And so are these, which OmegaConf's objects name as types."""


def load_cnn_park(
    folder: str | os.PathLike[str],
    *,
    checkpoints: Literal["last", "all"] = "last",
    splits: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    damaged: Literal["refuse", "skip"] = "refuse",
    unsafe_pickle: bool = False,
) -> VariedZoo:
    """Read the public CNN Wild Park, or a part of it, whose networks take normalised colour images.

    Args:
        folder: The unpacked folder, or one above it.
        checkpoints: The last of each run, or all.
        splits: The published ``cnn_park_splits.json``: only checkpoints named there are read, and the column "split"
            says in which part each is.
        limit: Read the first so many files, by their names; all if None.
        damaged: What to do about files that are damaged or have another content: refuse the collection, or skip them;
            ``meta["skipped"]`` names them then, and ``left_out`` counts them.
        unsafe_pickle: Read files with objects of any classes, which can run any code that their maker likes.

    Returns:
        The zoo, with the columns ``path``, ``run``, ``iteration``, ``test_accuracy``, ``depth`` and ``parameters``, and
        ``test_loss`` if it is given. Networks that are not finite are left out and counted.

    Raises:
        FileNotFoundError: If there are no such files, or no file that the splits name.
        ArtifactError: If a file is damaged or holds something else; it is named.
        ValueError: If `limit` is below 1.

    Example:
        >>> load_cnn_park("no such folder")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no checkpoint.pt ...
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1 or None, got {limit}")
    folder = Path(folder)
    found = _files(folder, checkpoints, _read_splits(splits), limit)
    read: list[tuple[Path, str, _Checkpoint]] = []
    skipped: list[str] = []
    for path, part in found:
        try:
            read.append((path, part, _Checkpoint(path, unsafe_pickle)))
        except ArtifactError:
            if damaged == "refuse":
                raise
            skipped.append(path.relative_to(folder).as_posix())
    if not read:
        raise ArtifactError(f"none of the {len(found)} files in {folder} could be read; download them again")
    groups: dict[VariedArchitecture, list[int]] = {}
    for row, (_, _, checkpoint) in enumerate(read):
        groups.setdefault(checkpoint.architecture, []).append(row)
    members = tuple(
        VariedGroup(
            architecture,
            {
                name: torch.stack([read[row][2].params[name] for row in rows])
                for name in architecture.parameter_shapes
            },
            torch.tensor(rows),
        )
        for architecture, rows in groups.items()
    )
    meta = {"source": {"collection": "cnn_wild_park", "folder": folder.resolve().name}, "skipped": skipped}
    zoo = VariedZoo(members, _table(folder, read, splits is not None), len(skipped), meta)
    return zoo.finite()


def _files(
    folder: Path, checkpoints: str, splits: Mapping[str, str], limit: int | None
) -> list[tuple[Path, str]]:
    """Files to read, and the part of the splits that each is in."""
    paths = sorted(folder.rglob(FILE))
    if not paths:
        raise FileNotFoundError(
            f"there is no {FILE} in {os.fspath(folder)!r} or the folders below; check the path, and unpack the archive"
        )
    if splits:
        paths = [path for path in paths if _key(path) in splits]
        if not paths:
            raise FileNotFoundError(f"none of the {len(splits)} files that the splits name is in {folder}")
    if checkpoints == "last":
        paths = list({path.parent.parent: path for path in paths}.values())
    return [(path, splits.get(_key(path), "")) for path in paths[:limit]]


def _key(path: str | Path) -> str:
    """Run and checkpoint, by which files are known wherever the collection lies."""
    return "/".join(Path(path).parts[-3:])


def _read_splits(path: str | os.PathLike[str] | None) -> dict[str, str]:
    """The part that each file is in."""
    if path is None:
        return {}
    try:
        parts = json.loads(Path(path).read_text())
        return {_key(file): part for part, columns in parts.items() for file in columns["path"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{os.fspath(path)} is not the JSON of splits ({error!r}): expected "
            '{"train": {"path": [...], ...}, ...}'
        ) from error


class _Checkpoint:
    """One file, checked.

    Args:
        path: The file.
        unsafe_pickle: Whether it may run code.

    Raises:
        ArtifactError: If it is damaged or holds something else.
    """

    def __init__(self, path: Path, unsafe_pickle: bool) -> None:
        content = _load(path, unsafe_pickle)
        try:
            self.architecture = _architecture(_plain(content["config"]))
            self.params = {
                name: content["model"][name].detach().float() for name in self.architecture.parameter_shapes
            }
            self.result = {
                name: float(_plain(value))
                for name, value in content.get("last_result", {}).items()
                if name in ("test/acc", "test/loss")
            }
            self.iteration = int(content.get("iteration", -1))
            shapes = {name: tuple(value.shape) for name, value in self.params.items()}
            if shapes != self.architecture.parameter_shapes or len(content["model"]) != len(shapes):
                raise ValueError(
                    f"its config asks for {self.architecture.parameter_shapes}, its model has {shapes}"
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path} is no checkpoint of the CNN Wild Park ({error!r}); expected model, config and last_result"
            ) from error


def _load(path: Path, unsafe_pickle: bool) -> Mapping[str, Any]:
    try:
        if unsafe_pickle:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            with torch.serialization.safe_globals(_stand_ins(path)):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ArtifactError(f"{path} is damaged ({reason}); download it again") from error
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{path} holds a {type(content).__name__}, expected a dict")
    return content


def _stand_ins(path: Path) -> list[Any]:
    """An empty class for each class that the file names and tensors do not need.

    Raises:
        ArtifactError: If it names others than those of the published files.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    foreign = [name for name in names if not name.startswith(EMPTY_MODULES) and name not in EMPTY_NAMES]
    if foreign:
        raise ArtifactError(
            f"{path} holds objects of {', '.join(foreign)}, and reading them can run any code; the published files "
            "have none. If you trust its maker, say unsafe_pickle=True"
        )
    return [(type("_Empty", (_Empty,), {}), name) for name in names]


class _Empty:
    """Stands for an object of another package: keeps its attributes and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Empty:
        del arguments, options
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def _plain(value: Any) -> Any:
    """Dicts, lists, numbers and words from OmegaConf's objects, real or empty, and from dataclasses."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    attributes = getattr(value, "__dict__", None)
    if attributes is None or isinstance(value, Tensor):
        return value
    for inner in ("_content", "_val"):
        if inner in attributes:
            return _plain(attributes[inner])
    return {name: _plain(each) for name, each in attributes.items()}


def _architecture(config: Mapping[str, Any]) -> VariedArchitecture:
    channels = [int(width) for width in config["channels"]]
    depth = len(channels) - 1

    def each(name: str) -> tuple[Any, ...]:
        value = config[name]
        return (
            tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,) * depth
        )

    return VariedArchitecture(
        in_channels=channels[0],
        widths=tuple(channels[1:]),
        kernel_sizes=each("kernel_size"),
        strides=each("stride"),
        paddings=each("padding"),
        residuals=each("residual"),
        activations=each("activation"),
        classes=int(config["n_classes"]),
    )


def _table(folder: Path, read: list[tuple[Path, str, _Checkpoint]], splits: bool) -> dict[str, Column]:
    def numbers(name: str) -> Tensor:
        return torch.tensor([one.result.get(name, float("nan")) for _, _, one in read], dtype=torch.float64)

    table: dict[str, Column] = {
        "path": tuple(path.relative_to(folder).as_posix() for path, _, _ in read),
        "run": tuple(path.parent.parent.name for path, _, _ in read),
        "iteration": torch.tensor([one.iteration for _, _, one in read]),
        "test_accuracy": numbers("test/acc"),
        "depth": torch.tensor([len(one.architecture.widths) for _, _, one in read]),
        "parameters": torch.tensor([one.architecture.parameters for _, _, one in read]),
    }
    if any("test/loss" in one.result for _, _, one in read):
        table["test_loss"] = numbers("test/loss")
    return table | ({"split": tuple(part for _, part, _ in read)} if splits else {})
