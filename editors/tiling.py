"""Editing pictures of any size: cut into overlapping tiles, one INR each, edited and blended."""

from __future__ import annotations

import dataclasses
from itertools import product

import torch
from torch import Tensor

from editors.editor import Editor, check_strength
from editors.edits import find_edit
from editors.fitting import fit

__all__ = ["PictureEdit", "blend_tiles", "cut_tiles", "edit_picture"]


@dataclasses.dataclass(frozen=True)
class PictureEdit:
    """What :func:`edit_picture` made.

    Attributes:
        edited: The edited picture, values in [0, 1], shape (H, W, C).
        reconstructed: The picture as its INRs hold it before the edit, likewise.
        psnr: Mean PSNR of the INRs against their tiles, in dB.
        tiles: Number of INRs.
        error: Mean squared error of ``edited`` to the exact edit of the picture, values in [0, 1]; None if the
            editor learned a function that is not in `editors.EDITS`.
        no_edit_error: The same for the unedited picture.
    """

    edited: Tensor
    reconstructed: Tensor
    psnr: float
    tiles: int
    error: float | None
    no_edit_error: float | None


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Where tiles begin along an axis; the last one ends at the border."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


def _padded(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture with its last rows and columns repeated up to the size of one tile."""
    rows = torch.arange(max(picture.shape[0], size[0])).clamp_max(picture.shape[0] - 1)
    columns = torch.arange(max(picture.shape[1], size[1])).clamp_max(picture.shape[1] - 1)
    return picture[rows][:, columns]


def cut_tiles(picture: Tensor, size: tuple[int, int], overlap: int) -> Tensor:
    """Cut a picture into overlapping tiles, each channel on its own.

    Args:
        picture: Pixel values, shape (H, W, C).
        size: (height, width) of a tile.
        overlap: Pixels that neighbouring tiles share, at least.

    Returns:
        Tiles of shape (tiles * C, *size, 1), channels fastest.

    Raises:
        ValueError: If tiles would not advance.

    Example:
        >>> cut_tiles(torch.zeros(20, 30, 3), (16, 16), 8).shape
        torch.Size([18, 16, 16, 1])
    """
    if not 0 <= overlap < min(size):
        raise ValueError(f"overlap is {overlap}, expected 0 to {min(size) - 1}, less than a tile of {size}")
    padded = _padded(picture, size)
    tiles = [
        padded[top : top + size[0], left : left + size[1]]
        for top in _starts(padded.shape[0], size[0], size[0] - overlap)
        for left in _starts(padded.shape[1], size[1], size[1] - overlap)
    ]
    return torch.stack(tiles).permute(0, 3, 1, 2).flatten(0, 1)[..., None]


def blend_tiles(tiles: Tensor, shape: tuple[int, int, int], overlap: int) -> Tensor:
    """Put tiles together again; where they overlap, each counts less towards its own border.

    The inverse of :func:`cut_tiles` for tiles that agree where they overlap.

    Args:
        tiles: Tiles of shape (tiles * C, h, w, 1).
        shape: (H, W, C) of the picture.
        overlap: As they were cut with.

    Example:
        >>> picture = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(blend_tiles(cut_tiles(picture, (16, 16), 8), (20, 30, 3), 8), picture)
        True
    """
    height, width, channels = shape
    h, w = tiles.shape[1:3]
    pieces = tiles.reshape(-1, channels, h, w).permute(0, 2, 3, 1)
    window = (_ramp(h, overlap)[:, None] * _ramp(w, overlap))[..., None].to(tiles)
    rows, columns = max(height, h), max(width, w)
    total, weight = tiles.new_zeros(rows, columns, channels), tiles.new_zeros(rows, columns, 1)
    places = product(_starts(rows, h, h - overlap), _starts(columns, w, w - overlap))
    for (top, left), piece in zip(places, pieces, strict=True):
        total[top : top + h, left : left + w] += window * piece
        weight[top : top + h, left : left + w] += window
    return (total / weight)[:height, :width]


def _ramp(size: int, overlap: int) -> Tensor:
    """Weights along a tile: rising over the overlap at one end, falling at the other, positive everywhere."""
    distance = torch.minimum(torch.arange(size), torch.arange(size).flip(0)) + 0.5
    return (distance / max(overlap, 1)).clamp_max(1.0).square()


def edit_picture(
    picture: Tensor,
    editor: Editor,
    *,
    strength: float = 1.0,
    overlap: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PictureEdit:
    """Fit INRs to a picture, edit their weights and render the edited picture.

    A picture larger than the editor's images is cut into overlapping tiles. An editor of gray INRs edits the
    channels of a colour picture one by one.

    Args:
        picture: Pixel values in [0, 1], shape (H, W, C).
        editor: The editor.
        strength: 0 (no edit) to 1 (the whole edit).
        overlap: Pixels that neighbouring tiles share; half a tile if not given.
        seed: Seed of the INRs' initial parameters.
        progress: Show a progress bar of the fit.

    Raises:
        ValueError: If the picture is not (H, W, C) in [0, 1], the editor's INRs are not gray, or the strength or
            the overlap is out of range.
    """
    check_strength(strength)
    if picture.ndim != 3 or not picture.numel() or picture.shape[-1] not in (1, 3):
        raise ValueError(
            f"picture has shape {tuple(picture.shape)}, expected (H, W, C) with C = 1 or 3 and at least one pixel"
        )
    if editor.config.siren.out_channels != 1:
        raise ValueError(
            f"the editor's INRs have {editor.config.siren.out_channels} channels, expected 1: the channels of a "
            "picture are edited one by one"
        )
    size, edit = editor.config.image_size, find_edit(editor.config.edit)
    if edit is not None and not edit.local and tuple(picture.shape[:2]) != size:
        raise ValueError(
            f"the edit {str(edit)!r} depends on places or distant pixels and cannot be made tile by tile: the picture "
            f"is {picture.shape[0]} x {picture.shape[1]}, expected {size[0]} x {size[1]} as in training; resize it"
        )
    overlap = min(size) // 2 if overlap is None else overlap
    inrs = fit(cut_tiles(picture, size, overlap), config=editor.config.siren, seed=seed, progress=progress)
    shape = (picture.shape[0], picture.shape[1], picture.shape[2])
    edited = blend_tiles(editor(inrs, strength).render(), shape, overlap)
    exact = None if edit is None else edit(picture[None])[0]
    return PictureEdit(
        edited=edited,
        reconstructed=blend_tiles(inrs.render(), shape, overlap),
        psnr=inrs.psnr.mean().item(),
        tiles=len(inrs),
        error=None if exact is None else (edited - exact).square().mean().item(),
        no_edit_error=None if exact is None else (picture - exact).square().mean().item(),
    )
