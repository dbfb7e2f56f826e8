"""Reader of the public Small CNN Zoo of arXiv:2002.11448.

Each of its four sets (MNIST, Fashion-MNIST, CIFAR-10 and SVHN, the last two in gray) is a folder with

* ``weights.npy``: one row of 4,970 numbers for each checkpoint, nine checkpoints for each network;
* ``layout.csv``: ``varname, start_idx, end_idx, shape``, which columns of the matrix are which tensor of TensorFlow;
* ``metrics.csv.gz`` (or unpacked, ``metrics.csv``): one line a row: hyperparameters (``config.*``), ``step``, scores.

TensorFlow keeps kernels as (height, width, in, out) and dense weights as (in, out); both are turned round.
"""

from __future__ import annotations

import ast
import csv
import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.zoos.architecture import CnnArchitecture
from nfn_opt.data.zoos.table import Column
from nfn_opt.data.zoos.zoo import Zoo

__all__ = ["load_small_cnn_zoo"]


def load_small_cnn_zoo(
    folder: str | os.PathLike[str],
    *,
    step: int | None = 86,
    limit: int | None = None,
    unsafe_pickle: bool = False,
) -> Zoo:
    """Read one set of the public Small CNN Zoo, whose networks take gray images in [-1, 1].

    Args:
        folder: The folder of the set, unpacked.
        step: Read the checkpoints after so many epochs: 0, 1, 2, 3, 20, 40, 60, 80 or 86, the end. None for all.
        limit: Read the first so many of them; all if None.
        unsafe_pickle: Read weights that are stored as pickled objects, which can run any code that their maker likes.
            The published files are none; without this, such a file is refused.

    Returns:
        The zoo. Columns have the names of the table without ``config.``, and ``row`` is the row of ``weights.npy``, by
        which published splits are given. Networks that are not finite are left out and counted.

    Raises:
        FileNotFoundError: If a file is missing; it is named.
        ArtifactError: If a file is damaged, or the files do not fit together.
        ValueError: If there is no such step, or `limit` is below 1.

    Example:
        >>> load_small_cnn_zoo("runs")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no ...
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1 or None, got {limit}")
    folder = Path(folder)
    layout, metrics = _read_layout(folder), _read_metrics(folder)
    weights = _open_weights(_existing(folder, "weights.npy"), unsafe_pickle)
    rows = len(metrics["step"])
    if weights.shape != (rows, sum(end - start for start, end, _ in layout.values())):
        raise ArtifactError(
            f"{folder}: weights.npy has shape {weights.shape}, but metrics.csv has {rows} lines and layout.csv "
            f"{sum(end - start for start, end, _ in layout.values())} columns; unpack or download the set again"
        )
    steps = [float(value) for value in metrics["step"]]
    chosen = [row for row, found in enumerate(steps) if step is None or found == step]
    if not chosen:
        raise ValueError(
            f"there is no step {step}; there are {', '.join(f'{found:g}' for found in sorted(set(steps)))}"
        )
    chosen = chosen[:limit]
    table: dict[str, Column] = {"row": torch.tensor(chosen)}
    for name, words in metrics.items():
        table[name.removeprefix("config.")] = _column([words[row] for row in chosen])
    params = _params(np.asarray(weights[chosen], dtype=np.float32), layout)
    zoo = Zoo(
        {name: params[name] for name in _architecture(params, folder).parameter_shapes},
        _architecture(params, folder),
        table,
        meta={"source": {"name": folder.resolve().name, "collection": "small_cnn_zoo", "step": step}},
    )
    return zoo.finite()


def _existing(folder: Path, *names: str) -> Path:
    """The first of some files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"there is no {' or '.join(names)} in {os.fspath(folder)!r}; check the path, and unpack the archive"
    )


def _read_layout(folder: Path) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """Start, end and shape of each tensor, in their order."""
    path = _existing(folder, "layout.csv")
    layout: dict[str, tuple[int, int, tuple[int, ...]]] = {}
    try:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                shape = tuple(int(size) for size in ast.literal_eval(line["shape"]))
                start, end = int(line["start_idx"]), int(line["end_idx"])
                if start != sum(torch.Size(other).numel() for _, _, other in layout.values()):
                    raise ValueError(f"{line['varname']} starts at {start}")
                if end - start != torch.Size(shape).numel():
                    raise ValueError(f"{line['varname']} has {end - start} columns for the shape {shape}")
                layout[line["varname"]] = (start, end, shape)
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ArtifactError(
            f"{path} is no table of varname, start_idx, end_idx and shape, one after the other ({error!r}); unpack or "
            "download it again"
        ) from error
    return layout


def _read_metrics(folder: Path) -> dict[str, list[str]]:
    """The columns of the table as text."""
    path = _existing(folder, "metrics.csv.gz", "metrics.csv")
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            header, *lines = list(csv.reader(file))
        if any(len(line) != len(header) for line in lines):
            raise ValueError("lines have different numbers of values")
        columns = {name: list(values) for name, values in zip(header, zip(*lines, strict=True), strict=True)}
        for name in ("step", "config.activation"):
            if name not in columns:
                raise ValueError(f"it has no column {name!r}")
        [float(value) for value in columns["step"]]
    except (ValueError, EOFError, OSError, zlib.error, csv.Error) as error:
        raise ArtifactError(
            f"{path} is damaged or another table ({error}); unpack or download it again"
        ) from error
    columns.pop("", None)  # pandas' row numbers
    return columns


def _open_weights(path: Path, unsafe_pickle: bool) -> np.ndarray:
    """The matrix, left on the disk if it is a plain one."""
    try:
        weights: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if _is_pickled(path):
            if unsafe_pickle:
                return np.stack(list(np.load(path, allow_pickle=True))).astype(np.float32)
            raise ArtifactError(
                f"{path} holds pickled objects, and reading them can run any code; the published file does not. If "
                "you trust its maker, say unsafe_pickle=True"
            ) from error
        raise ArtifactError(f"{path} is no complete array ({error}); unpack or download it again") from error
    if weights.ndim != 2 or weights.dtype.kind != "f":
        raise ArtifactError(
            f"{path} must hold a matrix of floats, got {weights.dtype} of shape {weights.shape}"
        )
    return weights


def _is_pickled(path: Path) -> bool:
    """Whether the file says of itself that it holds Python objects, or is a bare pickle."""
    with path.open("rb") as file:
        start = file.read(256)
    return b"'descr': '|O'" in start or start[:1] == b"\x80"


def _params(
    weights: np.ndarray, layout: dict[str, tuple[int, int, tuple[int, ...]]]
) -> dict[str, torch.Tensor]:
    """Tensors by this library's names and in torch's order of axes."""
    # TensorFlow names a tensor by its layer: ".../conv2d_1/kernel:0".
    prefixes = {name: name.rpartition("/")[0] for name in layout}
    dense = {prefixes[name] for name, (_, _, shape) in layout.items() if len(shape) == 2}
    convolutions = [prefix for prefix in dict.fromkeys(prefixes.values()) if prefix not in dense]
    params: dict[str, torch.Tensor] = {}
    for name, (start, end, shape) in layout.items():
        prefix = prefixes[name]
        place = "fc" if prefix in dense else f"layers.{convolutions.index(prefix)}"
        value = torch.from_numpy(weights[:, start:end].reshape(-1, *shape).copy())
        if len(shape) == 1:
            params[f"{place}.bias"] = value
        else:
            turned = value.permute(0, 2, 1) if len(shape) == 2 else value.permute(0, 4, 3, 1, 2)
            params[f"{place}.weight"] = turned.contiguous()
    return params


def _architecture(params: dict[str, torch.Tensor], folder: Path) -> CnnArchitecture:
    """The architecture that the tensors are of."""
    widths = tuple(
        value.shape[1] for name, value in params.items() if name.startswith("layers") and "bias" in name
    )
    try:
        first = params["layers.0.weight"]
        found = CnnArchitecture(
            in_channels=first.shape[2],
            widths=widths,
            kernel_size=first.shape[3],
            classes=params["fc.bias"].shape[1],
        )
        fits = {name: tuple(value.shape[1:]) for name, value in params.items()} == found.parameter_shapes
    except (KeyError, IndexError, ValueError) as error:
        raise ArtifactError(f"{folder}/layout.csv is not that of a small CNN ({error!r})") from error
    if not fits:
        raise ArtifactError(f"{folder}/layout.csv is not that of a small CNN: {found}")
    return found


def _column(words: Sequence[str]) -> Column:
    """Numbers where all are some, else words."""
    try:
        return torch.tensor([float(word) if word else float("nan") for word in words], dtype=torch.float64)
    except ValueError:
        return tuple(words)
