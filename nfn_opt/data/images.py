"""A set of images in one form, wherever it came from: values in [0, 1], channels last, integer labels."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ImageData"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the gray value (ITU-R BT.601, as in Pillow and OpenCV)."""

DEFAULT_SPLIT = {"train": 0.8, "val": 0.1, "test": 0.1}
"""Fraction of the set in each part, unless told."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Images with labels. Methods return new sets; nothing is changed in place.

    Attributes:
        images: Pixel values in [0, 1], float32, shape (N, H, W, C) with C = 1 (gray) or 3 (colour).
        labels: Class of each image, int64, shape (N,), each from 0 to ``len(class_names) - 1``.
        class_names: Name of each class.
        source: What was loaded, and what was done to it since.
        checksum: SHA-256 of the images and labels as loaded. Subsets and changed copies keep it: it says
            which data they come from.

    Raises:
        ValueError: If shapes, values or labels do not fit together.
        TypeError: If `images` is not float32 or `labels` not int64.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    source: str
    checksum: str = ""

    def __post_init__(self) -> None:
        _check(self)
        if not self.checksum:
            object.__setattr__(self, "checksum", _checksum(self.images, self.labels))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        return (
            f"ImageData({self.source!r}, {len(self)} images of {height} x {width} x {channels}, "
            f"{len(self.class_names)} classes)"
        )

    def subset(self, index: int | slice | Sequence[int] | Tensor) -> ImageData:
        """Some of the images: the first ones, if `index` is a number, or those that it selects.

        Args:
            index: A number of images, a slice, numbers of images, or a boolean mask.

        Raises:
            ValueError: If nothing, or more images than there are, would be taken.
            IndexError: If a number is out of range.
        """
        if isinstance(index, int):
            if not 1 <= index <= len(self):
                raise ValueError(f"cannot take {index} images of a set of {len(self)}; take 1 to {len(self)}")
            index = slice(index)
        chosen = index if isinstance(index, slice) else torch.as_tensor(index)
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def split(self, sizes: Mapping[str, float] | None = None, *, seed: int = 0) -> dict[str, ImageData]:
        """Cut into disjoint parts, at random, but always the same for the same set, sizes and seed.

        Args:
            sizes: Name and size of each part: either all counts of images (int) or all fractions of the set
                (float). They may sum to less than the whole; the rest is then in no part. None stands for
                train 0.8, val 0.1 and test 0.1.
            seed: Seed of the order in which the images are dealt out, part after part.

        Returns:
            The parts, in the order of `sizes`.

        Raises:
            ValueError: If a part would be empty, or they sum to more than the set.
            TypeError: If counts and fractions are mixed.

        Example:
            >>> from nfn_opt.data import load_images
            >>> parts = load_images("digits").split({"train": 100, "test": 20})
            >>> {name: len(part) for name, part in parts.items()}
            {'train': 100, 'test': 20}
        """
        counts = part_sizes(sizes, len(self), "image")
        # numpy promises that the streams of RandomState never change; torch promises it of none.
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(self)))
        parts, start = {}, 0
        for name, count in counts.items():
            parts[name] = self.subset(order[start : start + count])
            start += count
        return parts

    def gray(self) -> ImageData:
        """The set with one channel: 0.299 red + 0.587 green + 0.114 blue; unchanged if it has one already."""
        if self.images.shape[-1] == 1:
            return self
        images = self.images @ self.images.new_tensor(LUMA).unsqueeze(-1)
        return dataclasses.replace(self, images=images.clamp_(0, 1), source=f"{self.source}, gray")

    def resize(self, size: int | tuple[int, int]) -> ImageData:
        """The set at another size, by bilinear interpolation, antialiased where it shrinks.

        Args:
            size: (height, width), or one number for both.

        Raises:
            ValueError: If a side is below 1.
        """
        height, width = as_size(size)
        if (height, width) == self.images.shape[1:3]:
            return self
        images = resize_images(self.images, (height, width))
        return dataclasses.replace(self, images=images, source=f"{self.source}, {height} x {width}")


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width), checked, from either or one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be at least 1 x 1, got {height} x {width}")
    return height, width


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, H, W, C) in [0, 1] at another size: bilinear, antialiased, corners of the area aligned."""
    planes = images.permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
    return planes.permute(0, 2, 3, 1).clamp(0, 1).contiguous()


def _check(data: ImageData) -> None:
    """Refuse images and labels that do not fit together."""
    images, labels, where = data.images, data.labels, data.source
    if images.dtype != torch.float32 or labels.dtype != torch.int64:
        raise TypeError(f"images must be float32 and labels int64, got {images.dtype} and {labels.dtype}")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"{where}: images must have shape (N, H, W, C), with C = 1 or 3 and at least one pixel, "
            f"got {tuple(images.shape)}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{where}: labels must have shape ({len(images)},), one an image, got {tuple(labels.shape)}"
        )
    low, high = (bound.item() for bound in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{where}: pixels must be finite, got NaN or infinite ones; remove those images")
    if low < 0 or high > 1:
        raise ValueError(f"{where}: pixels must lie in [0, 1], got [{low:g}, {high:g}]; rescale them")
    first, last = (bound.item() for bound in labels.aminmax())
    if first < 0 or last >= len(data.class_names):
        raise ValueError(
            f"{where}: labels must lie in 0..{len(data.class_names) - 1}, one number for each class name, "
            f"got {first}..{last}"
        )


def part_sizes(sizes: Mapping[str, float] | None, total: int, what: str) -> dict[str, int]:
    """How many of `total` things (`what` names one) are in each part; `sizes` as in `ImageData.split`."""
    sizes = DEFAULT_SPLIT if sizes is None else sizes
    kinds = {type(size) for size in sizes.values()}
    if kinds == {float}:
        # Rounding the running sums, not each fraction, makes fractions that sum to 1 use every image.
        ends = [round(end * total) for end in np.cumsum(list(sizes.values())).tolist()]
        counts = dict(zip(sizes, np.diff(ends, prepend=0).tolist(), strict=True))
    elif kinds == {int}:
        counts = {name: int(size) for name, size in sizes.items()}
    else:
        raise TypeError(f"sizes must be all counts (int) or all fractions (float), got {dict(sizes)}")
    if min(counts.values()) < 1 or sum(counts.values()) > total:
        raise ValueError(
            f"sizes {dict(sizes)} of {total} {what}s make parts of {counts}; "
            f"each part needs at least one {what}, and all together at most {total}"
        )
    return counts


def _checksum(images: Tensor, labels: Tensor) -> str:
    """SHA-256 over the shape and the bytes of both, in little-endian order."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for values, kind in ((images, "<f4"), (labels, "<i8")):
        digest.update(np.ascontiguousarray(values.cpu().numpy(), dtype=kind).data)
    return digest.hexdigest()
