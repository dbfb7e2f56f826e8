"""Read and write single pictures and animations: PNG, JPEG, GIF and whatever else Pillow knows."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nfn_opt.artifacts import atomic_write

__all__ = [
    "encode_image",
    "is_picture",
    "picture_notes",
    "picture_size",
    "read_image",
    "write_animation",
    "write_image",
]

_ORIENTATION = 0x0112
"""EXIF's tag of the orientation; from 5 on, height and width are exchanged."""

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
    with _opened(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.has_transparency_data:
            picture = _on_white(picture)
        pixels = _pixels(picture)
    return as_channels(torch.from_numpy(pixels), channels)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The picture at `path`, with what Pillow raises while it is read turned into errors that name the remedy."""
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{os.fspath(path)!r} is a folder, expected a picture; give the pictures in it"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no picture {os.fspath(path)!r}; check the path")
    try:
        with Image.open(path) as opened:
            yield opened
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError, ValueError) as error:
        raise ValueError(
            f"cannot read {os.fspath(path)!r} as a picture ({error}); "
            f"it may be damaged or of a format that Pillow does not know: save it again as PNG or JPEG"
        ) from error


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
    picture = _as_bytes(image)
    form = Image.registered_extensions().get(Path(path).suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(
            f"{os.fspath(path)!r} does not end like a picture; give a name that ends in .png or .jpg"
        )
    with atomic_write(path) as temporary:
        picture.save(temporary, format=form)
    return Path(path)


def encode_image(image: Tensor, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file with 8 bits a channel.

    Args:
        image: As for `write_image`.
        form: Pillow's name of the format.
        **options: Pillow's options of that format.

    Raises:
        ValueError: If the shape is not one of a picture, or a value is not finite.
    """
    buffer = io.BytesIO()
    _as_bytes(image).save(buffer, format=form, **options)
    return buffer.getvalue()


def _as_bytes(image: Tensor) -> Image.Image:
    """Pixel values (H, W, C), limited to [0, 1], as a picture with 8 bits a channel."""
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"image must have shape (H, W, C) with C = 1 or 3, got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError("image must be finite, got NaN or infinite pixels")
    values = image.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)


def write_animation(
    path: str | os.PathLike[str],
    frames: Sequence[Tensor],
    *,
    frame_ms: int = 80,
    rest_ms: int = 700,
) -> Path:
    """Write pictures as a GIF that runs forth and back for ever and rests at both ends, atomically.

    Gray pictures keep all their values; those in colour share one palette of 256 colours, so that what does not
    change does not flicker.

    Args:
        path: File to write, ``*.gif``.
        frames: Finite pixel values, each of the same shape (H, W, C) with C = 1 or 3; limited to [0, 1].
        frame_ms: Time of a frame in milliseconds, rounded by the format to 10.
        rest_ms: Time of the first and of the last frame.

    Returns:
        The path written.

    Raises:
        ValueError: If there is no frame, one is no picture or of another shape, or the name does not end in .gif.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "brighter.gif"
        >>> _ = write_animation(path, [torch.full((2, 3, 1), level / 10) for level in range(5)])
        >>> with Image.open(path) as animation:
        ...     animation.n_frames
        8
    """
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f"{os.fspath(path)!r} is no name of an animation; let it end in .gif")
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError(
            f"frames must be pictures of one shape, at least one, got {[tuple(f.shape) for f in frames]}"
        )
    pictures = _indexed([_as_bytes(frame) for frame in frames])
    durations = [frame_ms] * len(pictures)
    durations[0] = durations[-1] = rest_ms
    order = [*range(len(pictures)), *range(len(pictures) - 2, 0, -1)]
    with atomic_write(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=[pictures[i] for i in order[1:]],
            duration=[durations[i] for i in order],
            loop=0,
        )
    return Path(path)


def _indexed(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures with at most 256 colours, the same for all."""
    if pictures[0].mode == "L":
        return list(pictures)
    width, height = pictures[0].size
    ends = Image.new("RGB", (width, 2 * height))
    ends.paste(pictures[0], (0, 0))
    ends.paste(pictures[-1], (0, height))
    palette = ends.quantize(256, method=Image.Quantize.MEDIANCUT)
    return [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]


def picture_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of a picture as it is meant to be seen, from its header alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture or is absurdly large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # whoever asks for the size checks it
        with _opened(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


def picture_notes(path: str | os.PathLike[str]) -> list[str]:
    """What `read_image` leaves out of a picture, a sentence for each: transparency, later frames.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture or is damaged.
    """
    notes = []
    with _opened(path) as picture:
        if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
            notes.append("it has transparent parts, which are laid over white")
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            notes.append(f"it has {frames} frames, of which the first is read")
    return notes
