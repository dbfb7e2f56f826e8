"""Each edit equals an independent implementation, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch

from editors.contrast import _lab_to_rgb, _rgb_to_lab, equalize_contrast
from editors.edits import EDITS, Edit, get_edit

SHAPES = [(3, 8, 8, 1), (2, 28, 28, 1), (2, 9, 14, 3), (2, 12, 7, 1)]
PLANE_ORACLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blur": lambda x: scipy.ndimage.gaussian_filter(x, 1.0, mode="nearest", truncate=3.0),
    "dilate": lambda x: scipy.ndimage.grey_dilation(x, (3, 3), mode="constant", cval=-np.inf),
    "erode": lambda x: scipy.ndimage.grey_erosion(x, (3, 3), mode="constant", cval=np.inf),
    "invert": lambda x: 1 - x,
    "rotate": lambda x: scipy.ndimage.rotate(x, 30, reshape=False, order=1, mode="grid-constant", cval=0),
}


def random_images(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def clahe_of_one(gray: np.ndarray, tiles: int, clip_limit: float) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation, pixel by pixel, of one image in 0..255."""
    height, width = gray.shape
    padded = gray
    if height % tiles or width % tiles:
        padded = np.pad(gray, ((0, tiles - height % tiles), (0, tiles - width % tiles)), mode="reflect")
    rows, columns = padded.shape[0] // tiles, padded.shape[1] // tiles
    limit = max(int(clip_limit * rows * columns / 256), 1)
    tables = {}
    for i in range(tiles):
        for j in range(tiles):
            tile = padded[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            counts = [0] * 256
            for level in tile.flatten():
                counts[int(level)] += 1
            clipped = sum(max(count - limit, 0) for count in counts)
            counts = [min(count, limit) + clipped // 256 for count in counts]
            left = clipped % 256
            stride = max(256 // left, 1) if left else 1
            level = 0
            while left > 0 and level < 256:
                counts[level] += 1
                level, left = level + stride, left - 1
            total, table = 0, []
            for count in counts:
                total += count
                table.append(min(round(total * (255 / (rows * columns))), 255))
            tables[i, j] = table
    result = np.zeros_like(gray)
    for y in range(height):
        for x in range(width):
            ty, tx = y / rows - 0.5, x / columns - 0.5
            i, j = math.floor(ty), math.floor(tx)
            value = 0.0
            for di, wy in ((0, 1 - (ty - i)), (1, ty - i)):
                for dj, wx in ((0, 1 - (tx - j)), (1, tx - j)):
                    tile_at = min(max(i + di, 0), tiles - 1), min(max(j + dj, 0), tiles - 1)
                    value += wy * wx * tables[tile_at][int(gray[y, x])]
            result[y, x] = round(value)
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PLANE_ORACLES)
def test_edit_equals_scipy(name: str, shape: tuple[int, ...]) -> None:
    images = random_images(shape)
    edited = get_edit(name)(images).numpy()
    for image, got in zip(images.numpy(), edited, strict=True):
        for channel in range(shape[-1]):
            np.testing.assert_allclose(
                got[..., channel], PLANE_ORACLES[name](image[..., channel]), atol=1e-12
            )


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-1] == 1])
@pytest.mark.parametrize(("tiles", "clip_limit"), [(3, 1.0), (2, 40.0)])
def test_contrast_equals_the_literal_algorithm(shape: tuple[int, ...], tiles: int, clip_limit: float) -> None:
    images = (random_images(shape) ** 3 * 255).round() / 255
    got = equalize_contrast(images, tiles=tiles, clip_limit=clip_limit) * 255
    for image, equalized in zip(images[..., 0].numpy(), got[..., 0].numpy(), strict=True):
        expected = clahe_of_one((image * 255).round(), tiles, clip_limit)
        # Two sums of the same four terms may fall on either side of a half.
        np.testing.assert_allclose(equalized, expected, atol=1 + 1e-9)
        assert (np.abs(equalized - expected) > 1e-6).mean() < 0.05


def test_lab_of_known_colours() -> None:
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5]], dtype=torch.float64)
    lab = torch.tensor(
        [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [53.39, 0, 0]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(_rgb_to_lab(rgb), lab, atol=0.05, rtol=0)
    torch.testing.assert_close(_lab_to_rgb(_rgb_to_lab(rgb)), rgb, atol=1e-9, rtol=0)


def test_contrast_of_colour_keeps_the_colour_and_changes_the_lightness() -> None:
    images = 0.45 + 0.1 * random_images((1, 12, 12, 3))
    before, after = _rgb_to_lab(images), _rgb_to_lab(equalize_contrast(images))
    torch.testing.assert_close(after[..., 1:], before[..., 1:], atol=0.5, rtol=0)
    assert after[..., 0].std() > 1.3 * before[..., 0].std()


def test_contrast_needs_a_few_pixels() -> None:
    with pytest.raises(ValueError, match=r"more than 3 x 3 pixels, got \(8, 3\)"):
        get_edit("contrast")(random_images((1, 8, 3, 1)))


@pytest.mark.parametrize("name", EDITS)
def test_edit_is_pure_and_per_image(name: str) -> None:
    images = random_images((4, 8, 8, 1)).float()
    before = images.clone()
    edited = EDITS[name](images)
    assert torch.equal(images, before)
    assert edited.dtype == torch.float32
    assert edited.is_contiguous()
    torch.testing.assert_close(edited[2:3], EDITS[name](images[2:3]))
    assert EDITS[name].name == name
    assert len(EDITS[name].doc) > 10


def test_rotation_is_counter_clockwise() -> None:
    image = torch.zeros(1, 9, 9, 1)
    image[0, 4, 7] = 1  # three to the right of the centre
    rotated = get_edit("rotate")(image)[0, ..., 0]
    row, column = divmod(int(rotated.argmax()), 9)
    assert row < 4 < column


def test_users_function() -> None:
    def halve(images: torch.Tensor) -> torch.Tensor:
        """Halve the brightness."""
        return images / 2

    edit = get_edit(halve)
    assert (edit.name, edit.doc) == ("halve", "Halve the brightness.")
    torch.testing.assert_close(edit(torch.ones(1, 2, 2, 1)), torch.full((1, 2, 2, 1), 0.5))
    assert get_edit(edit) is edit


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x[:, 1:], r"made by the edit 'mine' must keep the shape \(1, 4, 4, 1\)"),
        (lambda x: x.squeeze(-1), "must have shape"),
        (lambda x: x + 2, r"must lie in \[0, 1\], got values from 2"),
        (lambda x: x * torch.nan, "got values from nan"),
    ],
)
def test_users_function_that_misbehaves(function: Callable[[torch.Tensor], torch.Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Edit("mine", "", function)(torch.zeros(1, 4, 4, 1))


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        ("Dilate", ValueError, "did you mean 'dilate'"),
        ("qqq", ValueError, "there is no edit 'qqq'; Known are blur, contrast"),
        (3, TypeError, "got int"),
    ],
)
def test_unknown_edits(edit: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        get_edit(edit)  # type: ignore[arg-type]


def test_images_out_of_range() -> None:
    with pytest.raises(ValueError, match="images given to the edit 'invert' must lie in"):
        get_edit("invert")(torch.full((1, 2, 2, 1), 255.0))
