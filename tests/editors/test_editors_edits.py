"""Each edit equals an independent implementation, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image, ImageEnhance

from editors.contrast import _lab_to_rgb, _rgb_to_lab, equalize_contrast
from editors.edits import EDITS, Edit, get_edit

SHAPES = [
    (3, 8, 8, 1),
    (2, 28, 28, 1),
    (2, 9, 14, 3),
    (2, 12, 7, 1),
    (2, 1, 1, 1),
    (1, 1, 7, 3),
    (1, 6, 1, 1),
]


def dilated(x: np.ndarray, size: int) -> np.ndarray:
    return scipy.ndimage.grey_dilation(x, (size, size), mode="constant", cval=-np.inf)


def eroded(x: np.ndarray, size: int) -> np.ndarray:
    return scipy.ndimage.grey_erosion(x, (size, size), mode="constant", cval=np.inf)


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(x, sigma, mode="nearest", radius=math.ceil(3 * sigma))


def rotated(x: np.ndarray, angle: float) -> np.ndarray:
    return scipy.ndimage.rotate(x, angle, reshape=False, order=1, mode="grid-constant", cval=0)


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    matrix = np.eye(2) / factor
    centre = (np.array(x.shape) - 1) / 2
    return scipy.ndimage.affine_transform(x, matrix, centre - matrix @ centre, order=1, mode="grid-constant")


def sobel_length(x: np.ndarray) -> np.ndarray:
    return np.hypot(*(scipy.ndimage.sobel(x, axis, mode="nearest") / 4 for axis in (0, 1)))


def pixelated(x: np.ndarray, size: int) -> np.ndarray:
    result = np.empty_like(x)
    for i in range(0, x.shape[0], size):
        for j in range(0, x.shape[1], size):
            result[i : i + size, j : j + size] = x[i : i + size, j : j + size].mean()
    return result


def vignetted(x: np.ndarray, amount: float) -> np.ndarray:
    result = np.empty_like(x)
    height, width = x.shape
    for i in range(height):
        for j in range(width):
            to_centre = (i + 0.5 - height / 2) / height, (j + 0.5 - width / 2) / width
            result[i, j] = x[i, j] * (1 - amount * 2 * math.hypot(*to_centre) ** 2)
    return result


PLANE_ORACLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "brightness": lambda x: np.minimum(x + 0.2, 1),
    "brightness(amount=-0.4)": lambda x: np.maximum(x - 0.4, 0),
    "gamma": np.square,
    "gamma(exponent=0.5)": np.sqrt,
    "invert": lambda x: 1 - x,
    "threshold": lambda x: np.where(x < 0.5, 0.0, 1.0),
    "threshold(level=0.2)": lambda x: np.where(x < 0.2, 0.0, 1.0),
    "dilate": lambda x: dilated(x, 3),
    "dilate(size=7)": lambda x: dilated(x, 7),
    "erode": lambda x: eroded(x, 3),
    "erode(size=5)": lambda x: eroded(x, 5),
    "open": lambda x: dilated(eroded(x, 3), 3),
    "close(size=5)": lambda x: eroded(dilated(x, 5), 5),
    "gradient": lambda x: dilated(x, 3) - eroded(x, 3),
    "blur": lambda x: blurred(x, 1.0),
    "blur(sigma=2.5)": lambda x: blurred(x, 2.5),
    "blur(sigma=0.2)": lambda x: blurred(x, 0.2),
    "sharpen": lambda x: np.clip(2 * x - blurred(x, 1.0), 0, 1),
    "sharpen(amount=0.5, sigma=2)": lambda x: np.clip(1.5 * x - 0.5 * blurred(x, 2.0), 0, 1),
    "median": lambda x: scipy.ndimage.median_filter(x, 3, mode="nearest"),
    "median(size=5)": lambda x: scipy.ndimage.median_filter(x, 5, mode="nearest"),
    "edges": lambda x: np.minimum(sobel_length(x), 1),
    "edges(gain=3)": lambda x: np.minimum(3 * sobel_length(x), 1),
    "flip": np.fliplr,
    "flip(direction=vertical)": np.flipud,
    "rotate": lambda x: rotated(x, 30),
    "rotate(angle=-75)": lambda x: rotated(x, -75),
    "rotate(angle=90)": lambda x: rotated(x, 90),
    "translate": lambda x: scipy.ndimage.shift(x, (1, 2), order=1, mode="grid-constant"),
    "translate(right=-1.25, down=0.5)": lambda x: scipy.ndimage.shift(
        x, (0.5, -1.25), order=1, mode="grid-constant"
    ),
    "zoom": lambda x: zoomed(x, 1.5),
    "zoom(factor=0.4)": lambda x: zoomed(x, 0.4),
    "pixelate": lambda x: pixelated(x, 4),
    "pixelate(size=3)": lambda x: pixelated(x, 3),
    "posterize": lambda x: np.floor(3 * x + 0.5) / 3,
    "posterize(levels=2)": lambda x: np.where(x < 0.5, 0.0, 1.0),
    "solarize": lambda x: np.minimum(x, 1 - x),
    "solarize(level=0.8)": lambda x: np.where(x < 0.8, x, 1 - x),
    "vignette": lambda x: vignetted(x, 0.7),
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
def test_edit_equals_its_slow_twin(name: str, shape: tuple[int, ...]) -> None:
    images = random_images(shape)
    edited = get_edit(name)(images).numpy()
    for image, got in zip(images.numpy(), edited, strict=True):
        for channel in range(shape[-1]):
            np.testing.assert_allclose(
                got[..., channel], PLANE_ORACLES[name](image[..., channel]), atol=1e-12
            )


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-1] == 1 and min(shape[1:3]) > 3])
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


def test_every_edit_has_a_slow_twin() -> None:
    elsewhere = {"contrast", "inpaint", "saturate", "sepia"}
    assert {name.partition("(")[0] for name in PLANE_ORACLES} | elsewhere == set(EDITS)


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_saturate_equals_pillow(factor: float) -> None:
    images = (random_images((1, 6, 9, 3)) * 255).round() / 255
    picture = Image.fromarray((images[0] * 255).round().byte().numpy())
    expected = torch.tensor(np.array(ImageEnhance.Color(picture).enhance(factor))) / 255
    got = get_edit("saturate", factor=factor)(images)[0]
    torch.testing.assert_close(got, expected.double(), atol=2.5 / 255, rtol=0)


def test_sepia_of_known_colours() -> None:
    white, black, red = torch.ones(3), torch.zeros(3), torch.tensor([1.0, 0, 0])
    images = torch.stack([white, black, red]).view(1, 1, 3, 3)
    brown = torch.tensor([[1, 1, 0.937], [0, 0, 0], [0.393, 0.349, 0.272]]).view(1, 1, 3, 3)
    torch.testing.assert_close(get_edit("sepia")(images), brown)
    torch.testing.assert_close(get_edit("sepia(amount=0.25)")(images), 0.75 * images + 0.25 * brown)
    assert torch.equal(get_edit("sepia(amount=0)")(images), images)


@pytest.mark.parametrize("name", ["sepia", "saturate"])
def test_edits_of_colour_refuse_gray(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"given to the edit '{name}' have 1 channel, expected 3 \(colour\)"
    ):
        get_edit(name)(random_images((1, 4, 4, 1)))


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_edit_is_pure_and_per_image(name: str, dtype: torch.dtype, channels: int) -> None:
    if EDITS[name].color_only and channels == 1:
        return
    images = (random_images((4, 8, 9, channels)) * 256).floor().to(dtype) / 256  # exact in both
    before = images.clone()
    edited = EDITS[name](images)
    assert torch.equal(images, before)
    assert edited.data_ptr() != images.data_ptr()
    assert edited.dtype == dtype
    assert edited.is_contiguous()
    assert not torch.equal(edited, images)
    torch.testing.assert_close(edited[2:3], EDITS[name](images[2:3]))
    # Levels that fall on a half are rounded either way.
    atol = 3 / 255 if name == "contrast" else 1e-5
    torch.testing.assert_close(edited, EDITS[name](images.double()).to(dtype), atol=atol, rtol=0)
    strided = images.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    torch.testing.assert_close(edited, EDITS[name](strided))


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_edit_keeps_flat_images_in_range(name: str, value: float) -> None:
    EDITS[name](torch.full((1, 7, 5, 3), value))  # checks its output


@pytest.mark.parametrize("name", EDITS)
def test_local_edits_can_be_made_tile_by_tile(name: str) -> None:
    edit, images = EDITS[name], random_images((1, 30, 30, 3))
    whole, tile = edit(images)[:, 11:19, 11:19], edit(images[:, 3:25, 2:27])[:, 8:16, 9:17]
    # A short translation would pass, a long one not.
    assert torch.allclose(whole, tile) == (edit.local or name == "translate")


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
        ("blur:2", ValueError, r"did you mean 'blur'\? .* written as in 'blur\(sigma=2\)'"),
        ("qqq", ValueError, "there is no edit 'qqq'. Known are blur, brightness, close, contrast"),
        ("", ValueError, "there is no edit ''"),
        (3, TypeError, "got int"),
    ],
)
def test_unknown_edits(edit: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        get_edit(edit)  # type: ignore[arg-type]


def test_images_out_of_range() -> None:
    with pytest.raises(ValueError, match="images given to the edit 'invert' must lie in"):
        get_edit("invert")(torch.full((1, 2, 2, 1), 255.0))
