"""Readers of the public sets of INRs, which turn them into this library's form.

Three sets are understood, known by the names of their files:

* ``mnist-inrs`` of arXiv:2301.12780 (DWSNets):
  ``mnist_png_<training|testing>_<label>_<number>/checkpoints/model_final.pth``;
* ``fmnist_inrs`` of the same: ``<train|test>/model_<number>.pth``, the label in the file;
* ``siren_wts`` of arXiv:2302.14040 (NFN; MNIST, Fashion-MNIST and CIFAR-10):
  ``randinit_smaller_<label>s/net<number>.pth``, and further fits of the same images from other initial parameters,
  ``randinit_smaller_aug<i>_<label>s/net<number>.pth``.

All are SIRENs with ``h <- sin(30 (W h + b))``. The first two take coordinates as (column, row) and predict
``x - 1/2`` of the pixel value ``x``; this library takes (row, column) and predicts ``2 x - 1``. So the columns of the
first weight are swapped, and the last layer is doubled: both exact, whatever the precision. The third needs neither.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from editors.inr_set import InrSet
from editors.siren import SirenConfig
from nfn_opt.artifacts import ArtifactError

__all__ = ["PublicInr", "list_public_inrs", "load_public_inrs"]

Split = Literal["train", "val", "test"]

SIZES = {1: (28, 28), 3: (32, 32)}
"""Size of the images by the channels of the network: MNIST and Fashion-MNIST, CIFAR-10."""

SPLIT_POINTS = (45_000, 50_000)
"""First number of the validation and of the test images in `siren_wts`, as its authors split."""


@dataclasses.dataclass(frozen=True, order=True, kw_only=True)
class PublicInr:
    """One file of a public set.

    Attributes:
        copy: Which fit of the image: -1 for the plain one, i for that of a folder ``..._aug<i>_...``.
        half: "train" or "test" where the set is divided so, else "".
        number: Number of the image in that half of its data set; in `siren_wts` that in both, one after the other.
        label: Class; None where it is in the file.
        path: The file.
    """

    copy: int = -1
    half: str = ""
    number: int
    label: int | None = None
    path: Path


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a set names its files, and what its networks are.

    Attributes:
        pattern: Of the last parts of a file's path, named as the fields of `PublicInr`.
        glob: Of the files that must be of that pattern.
        names: Prefixes of the keys of the layers, one after the other.
        column_first: Whether coordinates are (column, row).
        centred: Whether ``x - 1/2`` is predicted rather than ``2 x - 1``.
    """

    pattern: re.Pattern[str]
    glob: str
    names: Sequence[str]
    column_first: bool
    centred: bool

    def parse(self, path: PurePosixPath | Path) -> PublicInr | None:
        """What the name of a file says, if it is of this layout."""
        found = self.pattern.search(path.as_posix())
        if found is None:
            return None
        said = found.groupdict()
        return PublicInr(
            copy=-1 if said.get("copy") is None else int(said["copy"]),
            half=(said.get("half") or "").removesuffix("ing"),
            number=int(said["number"]),
            label=int(said["label"]) if "label" in said else None,
            path=Path(path),
        )


_DWSNETS = ("seq.0", "seq.1", "seq.2")

LAYOUTS = {
    "mnist-inrs": _Layout(
        re.compile(
            r"(?:^|/)mnist_png_(?P<half>training|testing)_(?P<label>\d+)_(?P<number>\d+)/checkpoints/model_final\.pth$"
        ),
        "mnist_png_*/**/*.pth",
        _DWSNETS,
        column_first=True,
        centred=True,
    ),
    "fmnist_inrs": _Layout(
        re.compile(r"(?:^|/)(?P<half>train|test)/model_(?P<number>\d+)\.pth$"),
        "t*/*.pth",
        _DWSNETS,
        column_first=True,
        centred=True,
    ),
    "siren_wts": _Layout(
        re.compile(r"(?:^|/)randinit_smaller_(?:aug(?P<copy>\d+)_)?(?P<label>\d+)s/net(?P<number>\d+)\.pth$"),
        "randinit_smaller_*/*.pth",
        ("net.0.linear", "net.1.linear", "net.2"),
        column_first=False,
        centred=False,
    ),
}


def list_public_inrs(
    folder: str | os.PathLike[str],
    *,
    split: Split | None = None,
    splits: str | os.PathLike[str] | None = None,
    copies: Collection[int] | Literal["all"] = (-1,),
) -> list[PublicInr]:
    """The files of a public set, in the order in which `load_public_inrs` reads them.

    Args:
        folder: Folder of one of the sets that the module names, unpacked.
        split: "train", "val" or "test"; None stands for all files. Where the set comes with no file of splits,
            "train" and "test" are the halves of ``mnist-inrs`` and ``fmnist_inrs``, and those of ``siren_wts`` are
            cut at images 45,000 and 50,000.
        splits: JSON file of splits, ``{split: [path, ...]}`` or ``{split: {"path": [path, ...], ...}}``; the last
            parts of the paths count. None stands for ``splits.json`` in the folder, if there is one.
        copies: Which fits of each image: -1 for the plain one, i for that in ``randinit_smaller_aug<i>_*``. They are
            fits of the *same* images: beware of having one in training and another in test.

    Returns:
        The files by copy, half and number.

    Raises:
        FileNotFoundError: If there is no such folder, or no file that a split names; says which.
        ValueError: If the folder holds none of the sets, or a foreign ``.pth`` file, or there is no such split or copy.
    """
    layout, found = _files(Path(folder))
    held = {inr.copy for inr in found}
    wanted = held if copies == "all" else set(copies)
    if not wanted or not wanted <= held:
        raise ValueError(f"copies must be some of {sorted(held)}, or 'all', got {sorted(wanted)}")
    found = sorted(inr for inr in found if inr.copy in wanted)
    if split is None:
        return found
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be 'train', 'val', 'test' or None, got {split!r}")
    file = Path(folder) / "splits.json" if splits is None else Path(splits)
    if splits is not None or file.exists():
        return _from_splits(found, LAYOUTS[layout], file, split)
    if layout != "siren_wts":
        if split == "val":
            raise ValueError(
                f"{folder}: {layout} has no validation split of its own; give the JSON file of one (splits)"
            )
        return [inr for inr in found if inr.half == split]
    start, stop = {
        "train": (0, SPLIT_POINTS[0]),
        "val": SPLIT_POINTS,
        "test": (SPLIT_POINTS[1], None),
    }[split]
    return [inr for inr in found if inr.number >= start and (stop is None or inr.number < stop)]


def load_public_inrs(
    folder: str | os.PathLike[str],
    *,
    split: Split | None = None,
    splits: str | os.PathLike[str] | None = None,
    copies: Collection[int] | Literal["all"] = (-1,),
    limit: int | None = None,
    progress: bool = False,
) -> InrSet:
    """Read a public set of INRs: ``mnist-inrs``, ``fmnist_inrs`` or the ``siren_*_wts``.

    The images that the INRs render are those of the original networks, exactly. No code in the files is run. If any
    file is not what it should be, nothing is loaded.

    Args:
        folder: As in `list_public_inrs`.
        split: As in `list_public_inrs`.
        splits: As in `list_public_inrs`.
        copies: As in `list_public_inrs`.
        limit: Read the first so many; all if None.
        progress: Show a progress bar.

    Returns:
        The INRs in the order of `list_public_inrs`, with labels, in the precision of the files. How well they fit is
        not in the files: ``.psnr`` is NaN.

    Raises:
        FileNotFoundError: As `list_public_inrs`.
        ValueError: As `list_public_inrs`, or if nothing would be read.
        ArtifactError: If a file is truncated, corrupt, or not a network of that set; it is named.

    Example:
        >>> load_public_inrs("nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no folder 'nowhere'; ...
    """
    inrs = list_public_inrs(folder, split=split, splits=splits, copies=copies)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1 or None, got {limit}")
    chosen = inrs[:limit]
    if not chosen:
        raise ValueError(f"{os.fspath(folder)} has no INRs of split {split!r}; choose another")
    name, layout = _layout_of(chosen[0])
    networks: list[dict[str, Tensor]] = []
    labels: list[int] = []
    for inr in tqdm(chosen, desc="reading INRs", unit="INR", disable=not progress):
        tensors, label = _read(inr, layout)
        if networks and (fault := _unlike(tensors, networks[0])):
            raise ArtifactError(
                f"{inr.path}: {fault}, unlike {chosen[0].path}; remove the file that is foreign"
            )
        networks.append(tensors)
        labels.append(label)
    params = {key: torch.stack([tensors[key] for tensors in networks]) for key in networks[0]}
    width, channels = params["layers.0.bias"].shape[1], params["layers.2.bias"].shape[1]
    return InrSet(
        _converted(params, layout),
        SirenConfig(hidden_width=width, hidden_layers=2, out_channels=channels, omega_0=30.0),
        torch.full((len(chosen),), torch.nan),
        SIZES[channels],
        labels=torch.tensor(labels),
        meta={"source": {"name": Path(folder).resolve().name, "layout": name, "split": split}},
    )


def _files(folder: Path) -> tuple[str, list[PublicInr]]:
    """The set in a folder and all its files."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {os.fspath(folder)!r}; check the path, and unpack the archive"
        )
    for name, layout in LAYOUTS.items():
        found = []
        for path in folder.glob(layout.glob):
            inr = layout.parse(path)
            if inr is None:
                raise ValueError(f"{path} is no file of {name}, which the folder seems to hold; remove it")
            found.append(inr)
        if found:
            return name, found
    raise ValueError(
        f"{os.fspath(folder)!r} holds no public set of INRs; expected the folder of one of {', '.join(LAYOUTS)}, with "
        f"files such as {', '.join(layout.glob for layout in LAYOUTS.values())}"
    )


def _layout_of(inr: PublicInr) -> tuple[str, _Layout]:
    return next((name, layout) for name, layout in LAYOUTS.items() if layout.parse(inr.path) is not None)


def _from_splits(found: Sequence[PublicInr], layout: _Layout, file: Path, split: str) -> list[PublicInr]:
    """Those of the files that a file of splits names."""
    try:
        content = json.loads(file.read_text())
        entry = content[split]
        paths = entry["path"] if isinstance(entry, Mapping) else entry
        named = [layout.parse(PurePosixPath(path)) for path in paths]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} is no file of splits with {split!r}: {{split: [path, ...]}} ({type(error).__name__}: {error})"
        ) from error
    there = {(inr.half, inr.number) for inr in found}
    wanted = set()
    for path, inr in zip(paths, named, strict=True):
        if inr is None or (inr.half, inr.number) not in there:
            raise FileNotFoundError(
                f"{file} names {path!r}, which is not in the folder; unpack the whole archive"
            )
        wanted.add((inr.half, inr.number))
    return [inr for inr in found if (inr.half, inr.number) in wanted]


def _read(inr: PublicInr, layout: _Layout) -> tuple[dict[str, Tensor], int]:
    """The parameters in a file, by this library's names but not converted, and the label."""
    try:
        content = torch.load(inr.path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes make of torch's reader can be of almost any class
        raise ArtifactError(
            f"{inr.path} is no complete file of tensors ({type(error).__name__}: {error}); unpack or download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise ArtifactError(
            f"{inr.path} holds a {type(content).__name__}, expected the parameters of a network"
        )
    content = dict(content)
    label = content.pop("label", inr.label) if inr.label is None else inr.label
    if isinstance(label, Tensor) and label.numel() == 1:
        label = label.item()
    if not isinstance(label, int) or label < 0:
        raise ArtifactError(f"{inr.path}: 'label' must be an integer from 0, got {label!r}")
    if fault := _fault(content, layout):
        raise ArtifactError(f"{inr.path}: {fault}; it is no network of this set")
    keys = [f"{name}.{kind}" for name in layout.names for kind in ("weight", "bias")]
    return {
        f"layers.{place // 2}.{key.rsplit('.', 1)[1]}": content[key].detach()
        for place, key in enumerate(keys)
    }, label


def _fault(content: Mapping[str, Any], layout: _Layout) -> str | None:
    """What is wrong with the parameters in a file, if anything."""
    expected = [f"{name}.{kind}" for name in layout.names for kind in ("weight", "bias")]
    if content.keys() != set(expected):
        return f"expected {', '.join(expected)}, got {', '.join(map(str, content)) or 'nothing'}"
    for key, value in content.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.isfinite().all():
            return f"{key!r} must be a tensor of finite floating-point numbers"
    width, channels = content[expected[1]].numel(), content[expected[5]].numel()
    sizes = ((width, 2), (width,), (width, width), (width,), (channels, width), (channels,))
    for key, size in zip(expected, sizes, strict=True):
        if tuple(content[key].shape) != size:
            return f"{key!r} must have shape {size}, got {tuple(content[key].shape)}"
    return None if channels in SIZES else f"{expected[5]!r} must have 1 or 3 numbers, got {channels}"


def _unlike(tensors: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> str | None:
    """What keeps two networks of one set from being of one batch, if anything."""
    for name, value in tensors.items():
        if value.shape != first[name].shape or value.dtype != first[name].dtype:
            return f"{name} has shape {tuple(value.shape)} and {value.dtype}"
    return None


def _converted(params: dict[str, Tensor], layout: _Layout) -> dict[str, Tensor]:
    """The same images by this library's conventions."""
    if layout.column_first:
        params["layers.0.weight"] = params["layers.0.weight"].flip(-1)
    if layout.centred:
        for name in ("layers.2.weight", "layers.2.bias"):
            params[name] = 2 * params[name]
    return params
