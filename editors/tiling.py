"""Pictures of any size as INRs: cut into overlapping tiles, one INR each, and blended without seams.

Positions along an axis of a picture are counted in its pixels: pixel ``i`` has its centre at ``i``. A tile that
starts at ``t`` and is ``n`` pixels long answers for the positions from ``t - 1/2`` to ``t + n - 1/2``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from editors.fitting import fit
from editors.inr_set import InrSet
from editors.siren import SirenConfig
from nfn_opt.artifacts import ArtifactError

__all__ = ["TiledPicture", "blend_tiles", "cut_tiles", "fit_picture"]

TOLERANCE = 1e-6
"""Pixels by which a position may miss a tile for rounding."""


@dataclasses.dataclass(frozen=True)
class _Axis:
    """How one axis of a rendered picture is made of tiles.

    Attributes:
        first: Number of the first rendered pixel of each tile.
        count: Rendered pixels of a tile, the same for all; the last ones of some tiles may have no weight.
        origins: Position in each tile of its first rendered pixel.
        step: Distance of rendered pixels.
        weights: Weight of each rendered pixel of each tile, shape (tiles, count).
    """

    first: list[int]
    count: int
    origins: list[float]
    step: float
    weights: Tensor

    @classmethod
    def make(cls, length: int, tile: int, overlap: int, rendered: int) -> _Axis:
        """Lay out an axis of `length` pixels in tiles, rendered as `rendered` pixels between the same corners."""
        step = (length - 1) / max(rendered - 1, 1)
        first, ends, origins = [], [], []
        for start in _starts(max(length, tile), tile, tile - overlap):
            low, high = start - 0.5 - TOLERANCE, start + tile - 0.5 + TOLERANCE
            first.append(max(math.ceil(low / step), 0) if step else 0)
            ends.append(min(math.floor(high / step), rendered - 1) if step else rendered - 1)
            origins.append(first[-1] * step - start)
        count = max(end - begin + 1 for begin, end in zip(first, ends, strict=True))
        positions = torch.tensor(origins, dtype=torch.float64)[:, None] + step * torch.arange(count)
        return cls(first, count, origins, step, _window(positions, tile, overlap))

    def zoom(self, tile: int) -> tuple[list[float], float]:
        """Centre of the rendered part of each tile and half its length, in coordinates of the tile's INR."""
        if tile == 1:
            return [0.0] * len(self.origins), 0.0
        half = (self.count - 1) * self.step / (tile - 1)
        return [2 * origin / (tile - 1) + half - 1 for origin in self.origins], half


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Where tiles begin along an axis; the last one ends at the border."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


def _window(positions: Tensor, tile: int, overlap: int) -> Tensor:
    """Weights at positions in a tile: rising over the overlap at one end, falling at the other, 0 outside."""
    distance = torch.minimum(positions + 0.5, tile - 0.5 - positions)
    # A straight ramp spreads what neighbours disagree in over the whole overlap. Where tiles only touch, both have
    # the least weight.
    weights = (distance / max(overlap, 1)).clamp(1e-3, 1.0)
    return torch.where(distance >= -2 * TOLERANCE, weights, 0.0).float()


def _blend(rows: Iterable[Tensor], axes: tuple[_Axis, _Axis], size: tuple[int, int], channels: int) -> Tensor:
    """The weighted mean of tiles, given row by row as (tiles, count, count, C)."""
    down, across = axes
    # Pixels beyond the border are those without weight.
    total = torch.zeros(size[0] + down.count, size[1] + across.count, channels)
    weight = torch.zeros(*total.shape[:2], 1)
    for top, row_weights, pieces in zip(down.first, down.weights, rows, strict=True):
        for left, column_weights, piece in zip(across.first, across.weights, pieces, strict=True):
            window = (row_weights[:, None] * column_weights)[..., None]
            part = slice(top, top + down.count), slice(left, left + across.count)
            total[part] += window * piece
            weight[part] += window
    return total[: size[0], : size[1]] / weight[: size[0], : size[1]]


def _padded(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture with its last rows and columns repeated up to the size of one tile."""
    rows = torch.arange(max(picture.shape[0], size[0])).clamp_max(picture.shape[0] - 1)
    columns = torch.arange(max(picture.shape[1], size[1])).clamp_max(picture.shape[1] - 1)
    return picture[rows][:, columns]


def _check_overlap(overlap: int, size: tuple[int, int]) -> None:
    """Refuse an overlap with which tiles would not advance."""
    if not 0 <= overlap < min(size):
        raise ValueError(f"overlap is {overlap}, expected 0 to {min(size) - 1}, less than a tile of {size}")


def cut_tiles(picture: Tensor, size: tuple[int, int], overlap: int, *, by_channel: bool = True) -> Tensor:
    """Cut a picture into overlapping tiles.

    Args:
        picture: Pixel values, shape (H, W, C).
        size: (height, width) of a tile.
        overlap: Pixels that neighbouring tiles share, at least.
        by_channel: Whether each channel makes tiles of its own, or a tile has all channels.

    Returns:
        Tiles of shape (tiles * C, *size, 1), channels fastest; without `by_channel` (tiles, *size, C).

    Raises:
        ValueError: If tiles would not advance.

    Example:
        >>> cut_tiles(torch.zeros(20, 30, 3), (16, 16), 8).shape
        torch.Size([18, 16, 16, 1])
    """
    _check_overlap(overlap, size)
    padded = _padded(picture, size)
    places = itertools.product(
        _starts(padded.shape[0], size[0], size[0] - overlap),
        _starts(padded.shape[1], size[1], size[1] - overlap),
    )
    tiles = torch.stack([padded[top : top + size[0], left : left + size[1]] for top, left in places])
    return tiles.permute(0, 3, 1, 2).flatten(0, 1)[..., None] if by_channel else tiles


def blend_tiles(tiles: Tensor, shape: tuple[int, int, int], overlap: int) -> Tensor:
    """Put tiles together again; where they overlap, each counts less towards its own border.

    The inverse of :func:`cut_tiles` for tiles that agree where they overlap.

    Args:
        tiles: Tiles of shape (tiles * C, h, w, 1), or with all channels (tiles, h, w, C).
        shape: (H, W, C) of the picture.
        overlap: As they were cut with.

    Raises:
        ValueError: If the number of tiles is not that of such a picture.

    Example:
        >>> picture = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(blend_tiles(cut_tiles(picture, (16, 16), 8), (20, 30, 3), 8), picture)
        True
    """
    height, width, channels = shape
    axes = (
        _Axis.make(height, tiles.shape[1], overlap, height),
        _Axis.make(width, tiles.shape[2], overlap, width),
    )
    expected = len(axes[0].first) * len(axes[1].first) * (channels // tiles.shape[-1])
    if len(tiles) != expected:
        raise ValueError(
            f"there are {len(tiles)} tiles, expected {expected} for a picture of shape {shape} with overlap {overlap}"
        )
    pieces = _channels_last(tiles, channels)[:, : axes[0].count, : axes[1].count]
    return _blend(pieces.split(len(axes[1].first)), axes, (height, width), channels)


def _channels_last(tiles: Tensor, channels: int) -> Tensor:
    """Tiles (tiles, h, w, C) of tiles that may have been made for each channel, (tiles * C, h, w, 1)."""
    if tiles.shape[-1] == channels:
        return tiles
    return tiles.squeeze(-1).unflatten(0, (-1, channels)).movedim(1, -1)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TiledPicture:
    """A picture of any size held by INRs of its tiles, which can be rendered at any resolution.

    Attributes:
        inrs: One INR for each tile, row by row; gray INRs of a colour picture for each channel, channels fastest.
        shape: (H, W, C) of the picture.
        overlap: Pixels that neighbouring tiles share, at least.
        gray: Whether a picture of three channels is gray and rendered as one, the mean of them.

    Raises:
        ValueError: If the number of INRs is not that of such a picture, or the overlap is out of range.

    Example:
        >>> picture = torch.rand(9, 12, 1, generator=torch.Generator().manual_seed(0))
        >>> tiled = fit_picture(picture, SirenConfig(omega_0=10.0), (6, 6), overlap=3)
        >>> tiled
        TiledPicture(12 x 9 pixels, gray, 6 INRs)
        >>> tiled.render().shape, tiled.render((90, 120)).shape
        (torch.Size([9, 12, 1]), torch.Size([90, 120, 1]))
    """

    inrs: InrSet
    shape: tuple[int, int, int]
    overlap: int
    gray: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}, expected (H, W, C), all at least 1")
        _check_overlap(self.overlap, self.inrs.image_size)
        channels = self.inrs.config.out_channels
        if channels not in (1, self.shape[2]):
            raise ValueError(
                f"the INRs have {channels} channels, expected 1 or {self.shape[2]}, those of the picture"
            )
        down, across = self._axes(self.shape[:2])
        expected = len(down.first) * len(across.first) * self.shape[2] // channels
        if len(self.inrs) != expected:
            raise ValueError(
                f"there are {len(self.inrs)} INRs, expected {expected} for a picture of shape {self.shape} in tiles of "
                f"{self.inrs.image_size} with overlap {self.overlap}"
            )

    def __repr__(self) -> str:
        height, width, channels = self.shape
        kind = "gray" if self.gray or channels == 1 else "colour"
        plural = "s" if len(self.inrs) > 1 else ""
        return f"TiledPicture({width} x {height} pixels, {kind}, {len(self.inrs)} INR{plural})"

    def _axes(self, size: Sequence[int]) -> tuple[_Axis, _Axis]:
        """The axes of the picture rendered at a size."""
        down, across = (
            _Axis.make(self.shape[axis], self.inrs.image_size[axis], self.overlap, size[axis])
            for axis in (0, 1)
        )
        return down, across

    def render(self, size: tuple[int, int] | None = None) -> Tensor:
        """The picture, without gradient.

        Every tile is sampled at the very positions of the rendered pixels, and the weights with which tiles are
        blended are those at these positions, so that no rendered picture is interpolated.

        Args:
            size: (height, width) to render at, at least those of the picture; None stands for those. The centres
                of the corner pixels stay where they are, whatever the size, as in ``InrSet.render``.

        Returns:
            Pixel values in [0, 1], float32, shape (H, W, C), with one channel if the picture is gray.

        Raises:
            ValueError: If the size is less than the picture's.
        """
        height, width = size or self.shape[:2]
        if height < self.shape[0] or width < self.shape[1]:
            raise ValueError(
                f"size is {(height, width)}, expected at least {self.shape[:2]}, that of the picture: fewer samples "
                "would skip details; render it as it is and shrink the result"
            )
        axes = self._axes((height, width))
        picture = _blend(self._rendered_rows(axes), axes, (height, width), self.shape[2])
        return picture.mean(-1, keepdim=True) if self.gray else picture

    def _rendered_rows(self, axes: tuple[_Axis, _Axis]) -> Iterable[Tensor]:
        """The rendered part of each tile, (tiles, count, count, C) for each row of tiles."""
        down, across = axes
        centres, half_height = down.zoom(self.inrs.image_size[0])
        column_centres, half_width = across.zoom(self.inrs.image_size[1])
        each = self.shape[2] // self.inrs.config.out_channels
        columns = torch.tensor(column_centres).repeat_interleave(each)
        for number, centre in enumerate(centres):
            part = self.inrs[number * len(columns) : (number + 1) * len(columns)]
            middle = torch.stack([torch.full_like(columns, centre), columns], -1)
            window = _zoomed(part, middle, torch.tensor([half_height, half_width]))
            yield _channels_last(window.render((down.count, across.count)).cpu(), self.shape[2])

    def with_inrs(self, inrs: InrSet) -> TiledPicture:
        """The same picture with other INRs, edited ones, say."""
        return dataclasses.replace(self, inrs=inrs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an `InrSet` that also knows how its INRs make the picture, to one safetensors file, atomically."""
        picture = {"shape": list(self.shape), "overlap": self.overlap, "gray": self.gray}
        return dataclasses.replace(self.inrs, meta={**self.inrs.meta, "picture": picture}).save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TiledPicture:
        """Read a picture written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If it is truncated, is not safetensors, or holds no valid set of INRs or no picture.
        """
        inrs = InrSet.load(path)
        try:
            picture = inrs.meta["picture"]
            height, width, channels = map(int, picture["shape"])
            gray = bool(picture.get("gray", False))
            return cls(inrs, (height, width, channels), int(picture["overlap"]), gray)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{os.fspath(path)} holds INRs, but not those of the tiles of one picture ({error}); "
                "give a file written by TiledPicture.save"
            ) from error


def _zoomed(inrs: InrSet, middle: Tensor, half: Tensor) -> InrSet:
    """INRs that show a part of the same images: the map of coordinates goes into the first layer.

    Args:
        inrs: The INRs.
        middle: Middle of the part of each, in coordinates, shape (B, 2).
        half: Half its height and width, the same for all, shape (2,).
    """
    weight, bias = (inrs.params[f"layers.0.{part}"] for part in ("weight", "bias"))
    moved = bias + (weight @ middle.to(weight)[..., None]).squeeze(-1)
    return inrs.with_params(
        {**inrs.params, "layers.0.weight": weight * half.to(weight), "layers.0.bias": moved}
    )


def fit_picture(
    picture: Tensor,
    config: SirenConfig,
    image_size: tuple[int, int],
    *,
    overlap: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TiledPicture:
    """Fit INRs to the tiles of a picture.

    Args:
        picture: Pixel values in [0, 1], shape (H, W, C); C is 1 or 3.
        config: Architecture of the INRs. Those of one channel hold a channel of a colour picture each; those of
            three channels hold colour tiles; of a gray picture they hold three equal channels, and show their mean.
        image_size: (height, width) of a tile.
        overlap: Pixels that neighbouring tiles share; half a tile if not given.
        seed: Seed of the INRs' initial parameters.
        progress: Show a progress bar.

    Raises:
        ValueError: If the picture is not (H, W, C) in [0, 1], or the overlap is out of range.
    """
    if picture.ndim != 3 or not picture.numel() or picture.shape[-1] not in (1, 3):
        raise ValueError(
            f"picture has shape {tuple(picture.shape)}, expected (H, W, C) with C = 1 or 3 and at least one pixel"
        )
    if config.out_channels not in (1, 3):
        raise ValueError(f"the INRs have {config.out_channels} channels, expected 1 (gray) or 3 (colour)")
    gray = picture.shape[-1] == 1
    if config.out_channels == 3:
        picture = picture.expand(*picture.shape[:2], 3)
    overlap = min(image_size) // 2 if overlap is None else overlap
    tiles = cut_tiles(picture, image_size, overlap, by_channel=config.out_channels == 1)
    inrs = fit(tiles, config=config, seed=seed, progress=progress)
    return TiledPicture(inrs, (picture.shape[0], picture.shape[1], picture.shape[2]), overlap, gray)
