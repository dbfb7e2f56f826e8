"""Edits of images: the targets that learned edits of weights are trained to reach.

An edit is a function from images to images of the same shape, (B, H, W, C) with values in [0, 1]. The named ones are
in the table `EDITS`; `get_edit` also takes any function of a user's.

Example:
    >>> images = torch.zeros(1, 5, 5, 1)
    >>> images[0, 2, 2] = 1
    >>> int(get_edit("dilate")(images).sum())
    9
    >>> get_edit("dilat")
    Traceback (most recent call last):
    ...
    ValueError: there is no edit 'dilat'; did you mean 'dilate'? Known are blur, contrast, dilate, ...
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from editors.contrast import equalize_contrast

__all__ = ["EDITS", "Edit", "get_edit"]

ROTATION = 30.0
"""Angle of the edit ``rotate``, counter-clockwise, in degrees."""

BLUR_SIGMA = 1.0
"""Standard deviation of the edit ``blur``, in pixels; the kernel ends at three of them."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """A named edit of images; calling it applies it, with its input and output checked.

    Attributes:
        name: Name, as `get_edit` finds it.
        doc: What it does, in one line.
        apply: The edit itself: images (B, H, W, C) in [0, 1] to images of the same shape and range.
        local: Whether a pixel depends only on pixels near it, so that a picture can be edited tile by tile.
    """

    name: str
    doc: str
    apply: Callable[[Tensor], Tensor]
    local: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """Edit images.

        Args:
            images: Pixel values in [0, 1], shape (B, H, W, C).

        Returns:
            The edited images, of the same shape.

        Raises:
            ValueError: If `images` is not of that shape and range, or what the edit makes of them is not.
        """
        _check(images, f"images given to the edit {self.name!r}")
        edited = self.apply(images)
        _check(edited, f"images made by the edit {self.name!r}", expected=images.shape)
        return edited


def get_edit(edit: str | Edit | Callable[[Tensor], Tensor]) -> Edit:
    """The edit of a name, or the edit that applies a function.

    Args:
        edit: Name in `EDITS`, an `Edit`, or a function from images (B, H, W, C) in [0, 1] to the same.

    Raises:
        ValueError: If there is no edit of that name.
        TypeError: If `edit` is none of these.
    """
    if isinstance(edit, Edit):
        return edit
    if callable(edit):
        name = getattr(edit, "__name__", type(edit).__name__)
        return Edit(name, (edit.__doc__ or "").strip().split("\n")[0], edit)
    if not isinstance(edit, str):
        raise TypeError(f"edit must be a name, an Edit or a function of images, got {type(edit).__name__}")
    if edit not in EDITS:
        close = difflib.get_close_matches(edit.lower(), EDITS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ValueError(f"there is no edit {edit!r}{hint} Known are {', '.join(EDITS)}")
    return EDITS[edit]


def _check(images: Tensor, what: str, expected: torch.Size | None = None) -> None:
    """Refuse what is not a batch of images in [0, 1], or not of the expected shape."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"{what} must have shape (B, H, W, C) with C = 1 or 3, got {tuple(images.shape)}")
    if expected is not None and images.shape != expected:
        raise ValueError(f"{what} must keep the shape {tuple(expected)}, got {tuple(images.shape)}")
    low, high = (bound.item() for bound in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{what} must lie in [0, 1], got values from {low:g} to {high:g}; clamp or rescale them"
        )


def _dilate(images: Tensor) -> Tensor:
    """Maximum over 3 x 3 pixels."""
    return F.max_pool2d(images.movedim(-1, 1), 3, stride=1, padding=1).movedim(1, -1).contiguous()


def _blur(images: Tensor) -> Tensor:
    """Separable Gaussian filter with repeated borders."""
    radius = math.ceil(3 * BLUR_SIGMA)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / BLUR_SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    batch, height, width, channels = images.shape
    planes = images.movedim(-1, 1).reshape(batch * channels, 1, height, width)
    planes = F.pad(planes, (radius, radius, radius, radius), mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel), kernel.mT)
    return planes.view(batch, channels, height, width).movedim(1, -1).contiguous().clamp_(0, 1)


def _rotate(images: Tensor) -> Tensor:
    """Rotation about the centre by bilinear interpolation, black outside."""
    batch, height, width, _ = images.shape
    angle = math.radians(ROTATION)
    cos, sin = math.cos(angle), math.sin(angle)
    # Affine maps here take (x, y) to (x, y) in units of half the span between the centres of the border pixels.
    aspect = max(height - 1, 1) / max(width - 1, 1)
    matrix = images.new_tensor([[cos, -sin * aspect, 0], [sin / aspect, cos, 0]]).expand(batch, 2, 3)
    planes = images.movedim(-1, 1)
    grid = F.affine_grid(matrix, list(planes.shape), align_corners=True)
    rotated = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return rotated.movedim(1, -1).contiguous().clamp_(0, 1)


def _table(*edits: Edit) -> Mapping[str, Edit]:
    """Edits by name, read-only."""
    return MappingProxyType({edit.name: edit for edit in edits})


EDITS: Mapping[str, Edit] = _table(
    Edit("blur", "Gaussian blur, standard deviation 1 pixel, borders repeated", _blur),
    Edit(
        "contrast",
        "contrast-limited adaptive histogram equalisation of the lightness",
        equalize_contrast,
        local=False,
    ),
    Edit("dilate", "brightest of 3 x 3 pixels; outside the border counts as absent", _dilate),
    Edit("erode", "darkest of 3 x 3 pixels; outside the border counts as absent", lambda x: -_dilate(-x)),
    Edit("invert", "negative: 1 minus the value", lambda x: 1 - x),
    Edit(
        "rotate",
        "rotation by 30 degrees counter-clockwise about the centre, black outside",
        _rotate,
        local=False,
    ),
)
"""The named edits."""
