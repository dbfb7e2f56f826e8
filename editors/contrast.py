"""Contrast-limited adaptive histogram equalisation (CLAHE), batched.

The image is cut into tiles; each tile has a look-up table, its own cumulative histogram with the counts limited, and
a pixel's new level is interpolated between the tables of the four nearest tiles (K. Zuiderveld, "Contrast limited
adaptive histogram equalization", Graphics Gems IV, 1994). Details (8-bit levels, how clipped counts are handed
out, reflected padding) follow OpenCV, whose CLAHE with clip limit 1 and 3 x 3 tiles defines the contrast task of
arXiv:2302.14040. Colour images are equalised in the lightness of CIELAB, as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["equalize_contrast"]

LEVELS = 256
"""Gray levels; every image is rounded to them."""

RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear sRGB to CIE XYZ (D65)."""

LAB_KNEE = 6 / 29
"""Where the cube root of CIELAB goes over into a straight line."""


def equalize_contrast(images: Tensor, *, tiles: int = 3, clip_limit: float = 1.0) -> Tensor:
    """Equalise the contrast of images.

    Args:
        images: Pixel values in [0, 1], shape (B, H, W, C) with C = 1 or 3, each side more than `tiles`.
        tiles: Number of tiles along each side.
        clip_limit: Largest count of a level in a tile, relative to the mean count; at least one pixel.

    Returns:
        Pixel values in [0, 1], of the same shape.

    Raises:
        ValueError: If a side has too few pixels.

    Example:
        >>> ramp = torch.linspace(0.4, 0.6, 28).expand(1, 28, 28).unsqueeze(-1)
        >>> bool(equalize_contrast(ramp).std() > 1.1 * ramp.std())
        True
    """
    if min(images.shape[1:3]) <= tiles:
        raise ValueError(
            f"contrast needs images of more than {tiles} x {tiles} pixels, got {tuple(images.shape[1:3])}; "
            f"resize them first"
        )
    if images.shape[-1] == 1:
        return _equalize(images[..., 0], tiles, clip_limit).unsqueeze(-1)
    lightness, *color = _rgb_to_lab(images).unbind(-1)
    equalized = 100 * _equalize(lightness / 100, tiles, clip_limit)
    return _lab_to_rgb(torch.stack([equalized, *color], -1))


def _equalize(gray: Tensor, tiles: int, clip_limit: float) -> Tensor:
    """CLAHE of gray images in [0, 1], shape (B, H, W)."""
    levels = (gray * (LEVELS - 1)).round().clamp(0, LEVELS - 1)
    batch, height, width = levels.shape
    padded = levels
    if height % tiles or width % tiles:
        extra = (0, tiles - width % tiles, 0, tiles - height % tiles)
        padded = F.pad(levels.unsqueeze(1), extra, mode="reflect").squeeze(1)
    rows, columns = padded.shape[1] // tiles, padded.shape[2] // tiles
    blocks = padded.view(batch, tiles, rows, tiles, columns).transpose(2, 3).flatten(3)
    tables = _tables(blocks.long(), clip_limit).to(gray.dtype)
    return _interpolate(tables, levels.long(), rows, columns) / (LEVELS - 1)


def _tables(blocks: Tensor, clip_limit: float) -> Tensor:
    """Look-up tables (B, tiles, tiles, LEVELS) of levels (B, tiles, tiles, pixels of a tile)."""
    pixels = blocks.shape[-1]
    counts = blocks.new_zeros((*blocks.shape[:-1], LEVELS)).scatter_add_(-1, blocks, torch.ones_like(blocks))
    limit = max(int(clip_limit * pixels / LEVELS), 1)
    clipped = (counts - limit).clamp(min=0).sum(-1, keepdim=True)
    remainder = clipped % LEVELS
    # What was clipped goes to all levels alike; the remainder, one each, to levels a fixed stride apart.
    stride = (LEVELS // remainder.clamp(min=1)).clamp(min=1)
    level = torch.arange(LEVELS, device=blocks.device)
    extra = (level % stride == 0) & (level // stride < remainder)
    counts = counts.clamp(max=limit) + clipped // LEVELS + extra
    return (counts.cumsum(-1) * ((LEVELS - 1) / pixels)).round().clamp(max=LEVELS - 1)


def _interpolate(tables: Tensor, levels: Tensor, rows: int, columns: int) -> Tensor:
    """New level of each pixel: its level in the tables of the four nearest tiles, weighted bilinearly."""
    batch, tiles = tables.shape[:2]
    _, height, width = levels.shape
    axes = []
    for pixels, tile in ((height, rows), (width, columns)):
        place = torch.arange(pixels, device=levels.device, dtype=tables.dtype) / tile - 0.5
        before = place.floor()
        axes.append((before.long(), place - before))
    (row, row_weight), (column, column_weight) = axes
    batch_index = torch.arange(batch, device=levels.device).view(-1, 1, 1)
    result = torch.zeros_like(levels, dtype=tables.dtype)
    for step_row, weight_row in ((0, 1 - row_weight), (1, row_weight)):
        for step_column, weight_column in ((0, 1 - column_weight), (1, column_weight)):
            near_row = (row + step_row).clamp(0, tiles - 1).view(1, -1, 1)
            near_column = (column + step_column).clamp(0, tiles - 1).view(1, 1, -1)
            value = tables[batch_index, near_row, near_column, levels]
            result += weight_row.view(1, -1, 1) * weight_column.view(1, 1, -1) * value
    return result.round()


def _rgb_to_lab(images: Tensor) -> Tensor:
    """SRGB in [0, 1] to CIELAB (lightness 0 to 100), white point of D65."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    matrix = images.new_tensor(RGB_TO_XYZ)
    scaled = linear @ (matrix / matrix.sum(1, keepdim=True)).mT
    root = torch.where(
        scaled > LAB_KNEE**3, scaled.clamp(min=0) ** (1 / 3), scaled / (3 * LAB_KNEE**2) + 4 / 29
    )
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _lab_to_rgb(lab: Tensor) -> Tensor:
    """CIELAB to sRGB, limited to [0, 1]."""
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], -1)
    scaled = torch.where(root > LAB_KNEE, root**3, 3 * LAB_KNEE**2 * (root - 4 / 29))
    matrix = lab.new_tensor(RGB_TO_XYZ)
    linear = scaled @ torch.linalg.inv(matrix / matrix.sum(1, keepdim=True)).mT
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).clamp(0, 1)
