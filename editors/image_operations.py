"""The functions behind the named edits: images (B, H, W, C) in [0, 1] to images of the same shape and range.

All are batched and deterministic, and work for every floating dtype and on every device. Channels are processed one by
one, except where colours are the point (`saturate`, `sepia`). The border counts as repeated or as absent, as each says.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.data.images import LUMA

__all__ = [
    "blur",
    "brighten",
    "close",
    "dilate",
    "edges",
    "erode",
    "flip",
    "gamma",
    "gradient",
    "invert",
    "median",
    "open_",
    "pixelate",
    "posterize",
    "rotate",
    "saturate",
    "sepia",
    "sharpen",
    "solarize",
    "threshold",
    "translate",
    "vignette",
    "zoom",
]

SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
"""Old red, green and blue to those of the brown tone, as photo editors have it."""

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
"""Derivative along a row, times 8 pixels."""


def brighten(images: Tensor, *, amount: float) -> Tensor:
    """`amount` added to each value, limited to [0, 1]."""
    return (images + amount).clamp(0, 1)


def gamma(images: Tensor, *, exponent: float) -> Tensor:
    """Each value to the power of `exponent`."""
    return images**exponent


def invert(images: Tensor) -> Tensor:
    """1 minus each value."""
    return 1 - images


def threshold(images: Tensor, *, level: float) -> Tensor:
    """1 where the value is at least `level`, 0 elsewhere."""
    return (images >= level).to(images.dtype)


def dilate(images: Tensor, *, size: int) -> Tensor:
    """Maximum over `size` x `size` pixels; those outside the border do not count."""
    return _pixels(F.max_pool2d(_planes(images), size, stride=1, padding=size // 2))


def erode(images: Tensor, *, size: int) -> Tensor:
    """Minimum over `size` x `size` pixels; those outside the border do not count."""
    return -dilate(-images, size=size)


def open_(images: Tensor, *, size: int) -> Tensor:
    """Erosion, then dilation."""
    return dilate(erode(images, size=size), size=size)


def close(images: Tensor, *, size: int) -> Tensor:
    """Dilation, then erosion."""
    return erode(dilate(images, size=size), size=size)


def gradient(images: Tensor, *, size: int) -> Tensor:
    """Dilation minus erosion."""
    return dilate(images, size=size) - erode(images, size=size)


def blur(images: Tensor, *, sigma: float) -> Tensor:
    """Gaussian filter that ends at three standard deviations, borders repeated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    planes = _padded_planes(images, radius)
    return _pixels(F.conv2d(F.conv2d(planes, kernel), kernel.mT), images.shape[0]).clamp_(0, 1)


def sharpen(images: Tensor, *, amount: float, sigma: float) -> Tensor:
    """Unsharp mask: `amount` times the difference to the blurred image added, limited to [0, 1]."""
    return (images + amount * (images - blur(images, sigma=sigma))).clamp(0, 1)


def median(images: Tensor, *, size: int) -> Tensor:
    """Median of `size` x `size` pixels, borders repeated."""
    batch, height, width, channels = images.shape
    windows = F.unfold(_padded_planes(images, size // 2), size)
    return _pixels(windows.median(1).values.view(batch * channels, 1, height, width), batch)


def edges(images: Tensor, *, gain: float) -> Tensor:
    """Length of the Sobel gradient, borders repeated; a straight step from 0 to 1 gives `gain`, limited to 1."""
    kernel = images.new_tensor(SOBEL) / 4
    slopes = F.conv2d(_padded_planes(images, 1), torch.stack([kernel, kernel.mT]).unsqueeze(1))
    length = torch.hypot(slopes[:, :1], slopes[:, 1:])
    return _pixels(gain * length, images.shape[0]).clamp_(0, 1)


def flip(images: Tensor, *, direction: str) -> Tensor:
    """Mirror image, left to right (horizontal) or top to bottom (vertical)."""
    return images.flip(2 if direction == "horizontal" else 1)


def rotate(images: Tensor, *, angle: float) -> Tensor:
    """Counter-clockwise rotation about the centre by `angle` degrees, black outside."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return _affine(images, ((cos, -sin), (sin, cos)))


def translate(images: Tensor, *, right: float, down: float) -> Tensor:
    """Shift by `right` and `down` pixels, black outside."""
    return _affine(images, ((1.0, 0.0), (0.0, 1.0)), shift=(-right, -down))


def zoom(images: Tensor, *, factor: float) -> Tensor:
    """Enlargement about the centre by `factor`, black outside."""
    return _affine(images, ((1 / factor, 0.0), (0.0, 1 / factor)))


def pixelate(images: Tensor, *, size: int) -> Tensor:
    """Mean of each block of `size` x `size` pixels; those at the lower and right border may be smaller."""
    blocks = F.avg_pool2d(_planes(images), size, ceil_mode=True)
    whole = blocks.repeat_interleave(size, 2).repeat_interleave(size, 3)
    return _pixels(whole[..., : images.shape[1], : images.shape[2]]).clamp_(0, 1)


def posterize(images: Tensor, *, levels: int) -> Tensor:
    """Values rounded to `levels` evenly spaced ones, 0 and 1 among them."""
    return (images * (levels - 1)).round() / (levels - 1)


def saturate(images: Tensor, *, factor: float) -> Tensor:
    """Difference of colour images (B, H, W, 3) to their gray value times `factor`, limited to [0, 1]."""
    gray = (images @ images.new_tensor(LUMA)).unsqueeze(-1)
    return (gray + factor * (images - gray)).clamp(0, 1)


def sepia(images: Tensor, *, amount: float) -> Tensor:
    """Colour images (B, H, W, 3) mixed with their brown tone: `amount` 0 leaves them, 1 replaces them."""
    tone = (images @ images.new_tensor(SEPIA).mT).clamp(0, 1)
    return torch.lerp(images, tone, amount)


def solarize(images: Tensor, *, level: float) -> Tensor:
    """1 minus the value where it is at least `level`."""
    return torch.where(images >= level, 1 - images, images)


def vignette(images: Tensor, *, amount: float) -> Tensor:
    """Darkening with the square of the distance to the centre, by `amount` at the corners of the image."""
    height, width = images.shape[1:3]
    y, x = (
        (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * (2 / size) - 1
        for size in (height, width)
    )
    return images * (1 - amount * (y[:, None] ** 2 + x**2) / 2).unsqueeze(-1)


def _planes(images: Tensor) -> Tensor:
    """Channels first: (B, C, H, W)."""
    return images.movedim(-1, 1)


def _pixels(planes: Tensor, batch: int | None = None) -> Tensor:
    """Channels last: (B, H, W, C), of planes (B, C, H, W), or (B * C, 1, H, W) where `batch` is B."""
    if batch is not None:
        planes = planes.reshape(batch, -1, *planes.shape[2:])
    return planes.movedim(1, -1).contiguous()


def _padded_planes(images: Tensor, radius: int) -> Tensor:
    """Each channel on its own, (B * C, 1, H + 2 radius, W + 2 radius), borders repeated."""
    planes = _planes(images).flatten(0, 1).unsqueeze(1)
    return F.pad(planes, (radius, radius, radius, radius), mode="replicate")


def _affine(
    images: Tensor,
    matrix: tuple[tuple[float, float], tuple[float, float]],
    shift: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Bilinear interpolation, black outside; from (x, y), seen from the centre in pixels, to where it is read."""
    batch, height, width, _ = images.shape
    (xx, xy), (yx, yy) = matrix
    # affine_grid measures each axis in half sides.
    rows = [
        [xx, xy * (height / width), 2 * shift[0] / width],
        [yx * (width / height), yy, 2 * shift[1] / height],
    ]
    grid = F.affine_grid(
        images.new_tensor(rows).expand(batch, 2, 3), list(_planes(images).shape), align_corners=False
    )
    moved = F.grid_sample(_planes(images), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _pixels(moved).clamp_(0, 1)
