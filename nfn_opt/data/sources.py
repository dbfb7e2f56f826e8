"""Where image sets come from: scikit-learn, ``.npz`` files, folders of pictures, OpenML."""

from __future__ import annotations

import difflib
import importlib.util
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from nfn_opt.data.images import ImageData, as_size, resize_images
from nfn_opt.data.pictures import as_channels, is_picture, read_image

__all__ = ["load_images"]

DIGITS = tuple("0123456789")

OPENML: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "mnist_784": ((1, 28, 28), DIGITS),
    "Fashion-MNIST": (
        (1, 28, 28),
        (
            "t-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
    "CIFAR_10": (
        (3, 32, 32),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
}
"""Sets of OpenML: shape (C, H, W) in which a row of pixels is stored, and names of the classes 0, 1, ..."""


def load_images(
    source: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    gray: bool = False,
    data_home: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Load a set of images.

    Args:
        source: One of

            * ``"digits"``: 1,797 handwritten digits of 8 x 8, bundled with scikit-learn;
            * ``"mnist_784"``, ``"Fashion-MNIST"`` or ``"CIFAR_10"``: downloaded from OpenML by scikit-learn
              at the first use, and kept in its cache;
            * path of an ``.npz`` file with ``images``, (N, H, W) or (N, H, W, C), bytes or floats in [0, 1],
              and ``labels``, (N,), integers from 0 or strings;
            * path of a folder with one sub-folder of pictures for each class, or of pictures, which are then one
              class. Classes and pictures are taken in alphabetical order; if some are coloured, all become so.
              Other files are ignored.
        size: Resize to (height, width), or to a square; needed for a folder of pictures of several sizes.
        gray: Convert to gray.
        data_home: Folder of scikit-learn's cache; None stands for its default, ``~/scikit_learn_data``.

    Returns:
        The whole set; cut it with ``.split``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name is unknown, or the data are damaged, incomplete, or of a wrong shape or range.
        OSError: If a set of OpenML can be neither read from the cache nor downloaded.

    Example:
        >>> load_images("digits")
        ImageData('digits', 1797 images of 8 x 8 x 1, 10 classes)
        >>> load_images("digit")
        Traceback (most recent call last):
        ...
        ValueError: there is no image set 'digit'; did you mean 'digits'? Known are digits, mnist_784, ...
    """
    name, path = os.fspath(source), Path(source)
    if name == "digits":
        data = _load_digits()
    elif name in OPENML:
        data = _load_openml(name, data_home)
    elif path.is_dir():
        data = _load_folder(path, None if size is None else as_size(size))
    elif path.suffix == ".npz":
        data = _load_npz(path)
    else:
        raise _unknown(name, path)
    data = data.gray() if gray else data
    return data if size is None else data.resize(size)


def _unknown(name: str, path: Path) -> Exception:
    """The error for a source that is neither a known name nor a file or folder of a known form."""
    if path.is_file():
        return ValueError(f"{name!r} is no .npz file; give an .npz file or a folder of pictures")
    if path.suffix or len(path.parts) > 1:
        return FileNotFoundError(f"there is no file or folder {name!r}; check the path")
    known = {_simplified(each): each for each in ("digits", *OPENML)}
    close = difflib.get_close_matches(_simplified(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {known[close[0]]!r}?" if close else ";"
    return ValueError(
        f"there is no image set {name!r}{hint} Known are {', '.join(known.values())}, "
        f"and paths of .npz files and of folders"
    )


def _simplified(name: str) -> str:
    """`name` in lower case, letters and digits only."""
    return "".join(filter(str.isalnum, name.lower()))


def _load_digits() -> ImageData:
    """The digits bundled with scikit-learn."""
    from sklearn.datasets import load_digits  # takes a second, so not at import

    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(-1)
    return ImageData(images, torch.tensor(bunch.target, dtype=torch.int64), DIGITS, "digits")


def _load_openml(name: str, data_home: str | os.PathLike[str] | None) -> ImageData:
    """A set of OpenML, through scikit-learn's cache."""
    from sklearn.datasets import fetch_openml

    home = None if data_home is None else os.fspath(data_home)
    # The faster parser needs pandas, which is no dependency of this library.
    parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"
    try:
        bunch = fetch_openml(name, version=1, data_home=home, as_frame=False, parser=parser)
    except OSError as error:
        raise OSError(
            f"could not get {name!r} from OpenML ({error}); connect to the internet, or give the "
            f"data_home of a cache that has it, or an .npz file"
        ) from error
    shape, class_names = OPENML[name]
    rows = np.asarray(bunch.data, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != np.prod(shape):
        raise ValueError(
            f"{name}: rows must have {np.prod(shape)} pixels, got an array of shape {rows.shape}"
        )
    images = np.moveaxis(rows.reshape(-1, *shape), 1, -1) / 255
    labels = torch.tensor([int(label) for label in bunch.target], dtype=torch.int64)
    return ImageData(torch.from_numpy(np.ascontiguousarray(images)), labels, class_names, name)


def _load_npz(path: Path) -> ImageData:
    """The arrays ``images`` and ``labels`` of an ``.npz`` file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}; check the path")
    try:
        # numpy leaves a damaged file open if it opened it.
        with path.open("rb") as file, _archive(file) as archive:
            missing = {"images", "labels"} - set(archive.files)
            if missing:
                raise ValueError(f"it has {archive.files or 'nothing'}, not {sorted(missing)}")
            images, labels = archive["images"], archive["labels"]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"cannot read {os.fspath(path)!r} ({error}); it must be an .npz file with the arrays 'images' "
            f"and 'labels', as numpy.savez(path, images=..., labels=...) writes it"
        ) from error
    label_numbers, class_names = _as_labels(labels, path.name)
    return ImageData(_as_unit_range(images, path.name), label_numbers, class_names, path.name)


def _archive(file: BinaryIO) -> NpzFile:
    """The archive of arrays in a file."""
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, NpzFile):
        raise ValueError("it holds a single array")
    return archive


def _as_unit_range(images: np.ndarray, where: str) -> Tensor:
    """Float32 images (N, H, W, C) from bytes or floats, with or without a channel axis."""
    if images.dtype == np.bool_ or np.issubdtype(images.dtype, np.floating):
        scale = 1.0
    elif np.issubdtype(images.dtype, np.integer):
        scale = 65535.0 if images.dtype == np.uint16 else 255.0
    else:
        raise ValueError(f"{where}: images must be numbers (bytes, or floats in [0, 1]), got {images.dtype}")
    images = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32) / np.float32(scale))


def _as_labels(labels: np.ndarray, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers and class names, from numbers or strings."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind in "US":
        names, numbers = np.unique(labels.astype(str), return_inverse=True)
        return torch.from_numpy(numbers.astype(np.int64)), tuple(map(str, names))
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{where}: labels must be integers or strings, got {labels.dtype}")
    count = int(labels.max()) + 1 if labels.size else 0
    return torch.from_numpy(labels.astype(np.int64)), tuple(map(str, range(count)))


def _load_folder(folder: Path, size: tuple[int, int] | None) -> ImageData:
    """A folder with one sub-folder of pictures for each class, or of pictures, which are one class."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = classes or [folder]
    images: list[Tensor] = []
    labels: list[int] = []
    for label, each in enumerate(classes):
        paths = sorted(path for path in each.iterdir() if path.is_file() and is_picture(path))
        if not paths:
            raise ValueError(f"{os.fspath(each)!r} has no pictures; add some, or give another folder")
        images += [_read(path, size) for path in paths]
        labels += [label] * len(paths)
    sizes: dict[tuple[int, ...], int] = {}
    for image in images:
        sizes[tuple(image.shape[:2])] = sizes.get(tuple(image.shape[:2]), 0) + 1
    if len(sizes) > 1:
        raise ValueError(
            f"the pictures in {os.fspath(folder)!r} have several sizes, {_some(sizes)}; "
            f"give a size to which all are resized, for example size=32"
        )
    channels = max(image.shape[-1] for image in images)
    stacked = torch.stack([as_channels(image, channels) for image in images])
    return ImageData(stacked, torch.tensor(labels), tuple(each.name for each in classes), folder.name)


def _read(path: Path, size: tuple[int, int] | None) -> Tensor:
    """One picture, at the given size if any."""
    image = read_image(path)
    return image if size is None else resize_images(image.unsqueeze(0), size)[0]


def _some(sizes: dict[tuple[int, ...], Any]) -> str:
    """The first few of some sizes, in words."""
    shown = ", ".join(f"{height} x {width}" for height, width in list(sizes)[:3])
    return shown + (", ..." if len(sizes) > 3 else "")
