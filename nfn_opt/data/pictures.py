"""Read and write single pictures: PNG, JPEG and whatever else Pillow knows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nfn_opt.artifacts import atomic_write

__all__ = ["is_picture", "read_image", "write_image"]

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of gray pictures with more than 8 bits."""


def is_picture(path: Path) -> bool:
    """Whether the name of a file ends like that of a picture, and is not hidden.

    Example:
        >>> is_picture(Path("a/cat.JPG")), is_picture(Path("notes.txt")), is_picture(Path(".cat.png"))
        (True, False, False)
    """
    return path.suffix.lower() in Image.registered_extensions() and not path.name.startswith(".")


def read_image(path: str | os.PathLike[str], *, channels: int | None = None) -> Tensor:
    """Read a picture as it is meant to be seen.

    The orientation stored in EXIF is applied; transparent parts are laid over white; palettes, CMYK and
    other colour models become RGB; gray pictures keep one channel and up to 16 bits; of an animation
    only the first frame is read.

    Args:
        path: A picture in any format that Pillow reads.
        channels: 1 converts to gray, 3 to colour; None leaves it as it is.

    Returns:
        Pixel values in [0, 1], float32, shape (H, W, C) with C = 1 or 3.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, is damaged, or is absurdly large, or if `channels` is not 1 or 3.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (gray), 3 (colour) or None (as it is), got {channels!r}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no picture {os.fspath(path)!r}; check the path")
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = _on_white(picture)
            pixels = _pixels(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError, ValueError) as error:
        raise ValueError(
            f"cannot read {os.fspath(path)!r} as a picture ({error}); "
            f"it may be damaged or of a format that Pillow does not know: save it again as PNG or JPEG"
        ) from error
    return as_channels(torch.from_numpy(pixels), channels)


def as_channels(image: Tensor, channels: int | None) -> Tensor:
    """An image (..., C) with the given number of channels: gray repeated, or colour weighted as in BT.601."""
    if channels in (None, image.shape[-1]):
        return image
    if channels == 3:
        return image.expand(*image.shape[:-1], 3).contiguous()
    return (image @ image.new_tensor([[0.299], [0.587], [0.114]])).clamp_(0, 1)


def _on_white(picture: Image.Image) -> Image.Image:
    """The picture laid over white; gray stays gray."""
    gray = picture.mode in ("L", "LA", "La", "1")
    layer = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return flat.convert("L" if gray else "RGB")


def _pixels(picture: Image.Image) -> np.ndarray:
    """Pixel values in [0, 1], float32, shape (H, W, C)."""
    if picture.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(picture, dtype=np.float32)[..., None] / 65535
        if values.min() < 0 or values.max() > 1:
            raise ValueError("its gray values need more than 16 bits")
        return values
    if picture.mode == "F":
        raise ValueError("it has floating-point pixels of unknown range")
    picture = picture.convert("L" if picture.mode in ("L", "1") else "RGB")
    values = np.asarray(picture, dtype=np.float32) / 255
    return values[..., None] if values.ndim == 2 else values


def write_image(path: str | os.PathLike[str], image: Tensor) -> Path:
    """Write a picture with 8 bits a channel, atomically; the suffix of the path gives the format.

    Args:
        path: File to write, usually ``*.png``.
        image: Finite pixel values, shape (H, W, C) with C = 1 or 3; limited to [0, 1] and rounded to 1/255.

    Returns:
        The path written.

    Raises:
        ValueError: If the shape or the suffix is not one of a picture, or a value is not finite.

    Example:
        >>> import tempfile
        >>> path = write_image(Path(tempfile.mkdtemp()) / "gray.png", torch.full((2, 3, 1), 0.2))
        >>> read_image(path).shape
        torch.Size([2, 3, 1])
    """
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"image must have shape (H, W, C) with C = 1 or 3, got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError("image must be finite, got NaN or infinite pixels")
    form = Image.registered_extensions().get(Path(path).suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(
            f"{os.fspath(path)!r} does not end like a picture; give a name that ends in .png or .jpg"
        )
    values = image.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)
    with atomic_write(path) as temporary:
        picture.save(temporary, format=form)
    return Path(path)
