"""Tiles: cutting and blending undo one another, and INRs of tiles make a picture at any resolution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors import InrSet, SirenConfig, TiledPicture, fit_picture
from editors.tiling import blend_tiles, cut_tiles
from nfn_opt.artifacts import ArtifactError

SIREN = SirenConfig(hidden_width=8, omega_0=8.0)
COLOUR_SIREN = SirenConfig(hidden_width=8, omega_0=8.0, out_channels=3)


def make_picture(height: int, width: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(seed))


SHAPES = [
    (16, 16, 1),  # one tile
    (32, 48, 1),  # exact multiples
    (17, 16, 3),  # one pixel more than a tile
    (31, 33, 3),
    (9, 40, 1),  # lower than a tile
    (3, 5, 3),  # smaller than a tile
    (1, 1, 1),
    (1, 50, 3),
    (50, 1, 1),
]


@pytest.mark.parametrize("overlap", [0, 1, 8, 15])
@pytest.mark.parametrize("shape", SHAPES)
def test_blending_undoes_cutting(shape: tuple[int, int, int], overlap: int) -> None:
    picture = make_picture(*shape)
    tiles = cut_tiles(picture, (16, 16), overlap)
    assert tiles.shape[1:] == (16, 16, 1)
    torch.testing.assert_close(blend_tiles(tiles, shape, overlap), picture)
    whole = cut_tiles(picture, (16, 16), overlap, by_channel=False)
    assert whole.shape == (len(tiles) // shape[2], 16, 16, shape[2])
    torch.testing.assert_close(blend_tiles(whole, shape, overlap), picture)


@pytest.mark.parametrize("seed", range(12))
def test_blending_undoes_cutting_at_random_sizes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width, h, w = (int(torch.randint(1, 30, (), generator=generator)) for _ in range(4))
    overlap = int(torch.randint(min(h, w), (), generator=generator))
    picture = make_picture(height, width, 3, seed)
    tiles = cut_tiles(picture, (h, w), overlap)
    torch.testing.assert_close(blend_tiles(tiles, (height, width, 3), overlap), picture)


@pytest.mark.parametrize(
    ("shape", "overlap", "count"),
    [((16, 16, 1), 8, 1), ((5, 3, 3), 8, 3), ((24, 16, 1), 8, 2), ((32, 32, 3), 0, 12), ((17, 17, 1), 15, 4)],
)
def test_number_of_tiles(shape: tuple[int, int, int], overlap: int, count: int) -> None:
    assert len(cut_tiles(make_picture(*shape), (16, 16), overlap)) == count


def test_tiles_are_parts_of_the_picture_channels_fastest() -> None:
    picture = make_picture(6, 10, 3)
    tiles = cut_tiles(picture, (6, 5), 0)
    for number, (start, channel) in enumerate([(0, 0), (0, 1), (0, 2), (5, 0), (5, 1), (5, 2)]):
        assert torch.equal(tiles[number, ..., 0], picture[:, start : start + 5, channel])


def test_a_picture_smaller_than_a_tile_repeats_its_border() -> None:
    picture = make_picture(2, 3)
    tile = cut_tiles(picture, (4, 4), 1)[0, ..., 0]
    assert torch.equal(tile[:2, :3], picture[..., 0])
    assert torch.equal(tile[2:, :3], picture[1:, :, 0].expand(2, 3))
    assert torch.equal(tile[:, 3], tile[:, 2])


def test_where_tiles_disagree_the_seam_is_gradual() -> None:
    tiles = torch.stack([torch.zeros(8, 8, 1), torch.ones(8, 8, 1)])
    row = blend_tiles(tiles, (8, 12, 1), 4)[0, :, 0]
    assert (row.diff() >= 0).all()
    assert row[:4].max() == 0
    assert row[-4:].min() == 1
    assert row.diff().max() < 0.5


@pytest.mark.parametrize("overlap", [-1, 5, 6])
def test_an_overlap_that_does_not_advance(overlap: int) -> None:
    with pytest.raises(
        ValueError, match=rf"overlap is {overlap}, expected 0 to 4, less than a tile of \(6, 5\)"
    ):
        cut_tiles(make_picture(9, 9), (6, 5), overlap)
    with pytest.raises(ValueError, match=f"overlap is {overlap}"):
        fit_picture(make_picture(9, 9), SIREN, (6, 5), overlap=overlap)


def test_tiles_that_are_too_few() -> None:
    with pytest.raises(ValueError, match="there are 1 tiles, expected 4 for a picture of shape"):
        blend_tiles(torch.zeros(1, 4, 4, 1), (8, 8, 1), 0)


def wave(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A smooth function of positions in a picture, in pixels, values in [0, 1]."""
    return 0.5 + 0.3 * torch.sin(0.3 * rows[:, None] + 0.2 * columns + 0.5)


def wave_inrs(shape: tuple[int, int], size: tuple[int, int], overlap: int) -> TiledPicture:
    """INRs of tiles that all are exactly `wave`, so that neighbours agree everywhere."""
    rows, columns = (
        torch.arange(length).float().expand(*shape)
        if axis
        else torch.arange(length).float()[:, None].expand(*shape)
        for axis, length in enumerate(shape)
    )
    corners = cut_tiles(torch.stack([rows, columns], -1), size, overlap, by_channel=False)[:, 0, 0]
    scale = torch.tensor([(n - 1) / 2 for n in size])
    speed = torch.tensor([0.3, 0.2])
    config = SirenConfig(hidden_width=1, hidden_layers=1, omega_0=1.0)
    params = {
        "layers.0.weight": (speed * scale).expand(len(corners), 1, 2).clone(),
        "layers.0.bias": ((corners + scale) @ speed + 0.5)[:, None],
        "layers.1.weight": torch.full((len(corners), 1, 1), 0.6),
        "layers.1.bias": torch.zeros(len(corners), 1),
    }
    inrs = InrSet(params, config, torch.full((len(corners),), torch.nan), size)
    return TiledPicture(inrs, (*shape, 1), overlap)


@pytest.mark.parametrize("rendered", [(20, 27), (40, 27), (41, 53), (77, 200), (21, 28)])
@pytest.mark.parametrize("overlap", [0, 1, 2, 4])
def test_a_picture_at_any_resolution(rendered: tuple[int, int], overlap: int) -> None:
    tiled = wave_inrs((20, 27), (6, 5), overlap)
    expected = wave(torch.linspace(0, 19, rendered[0]), torch.linspace(0, 26, rendered[1]))
    torch.testing.assert_close(tiled.render(rendered)[..., 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 2)])
@pytest.mark.parametrize("factor", [1, 3])
def test_a_picture_smaller_than_a_tile_at_any_resolution(shape: tuple[int, int], factor: int) -> None:
    rendered = shape[0] * factor, shape[1] * factor
    expected = wave(*(torch.linspace(0, old - 1, new) for old, new in zip(shape, rendered, strict=True)))
    tiled = wave_inrs(shape, (6, 5), 0)
    torch.testing.assert_close(tiled.render(rendered)[..., 0], expected, atol=1e-5, rtol=0)


def test_tiles_of_one_row() -> None:
    tiled = fit_picture(make_picture(3, 9), SIREN, (1, 5), overlap=0)
    torch.testing.assert_close(tiled.render(), blend_tiles(tiled.inrs.render(), (3, 9, 1), 0))
    assert tiled.render((7, 20)).isfinite().all()


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("shape", [(14, 11, 1), (9, 13, 3), (4, 7, 3), (1, 1, 1)])
@pytest.mark.parametrize("config", [SIREN, COLOUR_SIREN])
def test_the_size_of_the_picture_needs_no_zoom(
    config: SirenConfig, shape: tuple[int, int, int], overlap: int
) -> None:
    tiled = fit_picture(make_picture(*shape), config, (6, 5), overlap=overlap)
    assert tiled.shape == (*shape[:2], max(shape[2], config.out_channels))
    expected = blend_tiles(tiled.inrs.render(), tiled.shape, overlap)
    expected = expected.mean(-1, keepdim=True) if shape[2] == 1 else expected
    torch.testing.assert_close(tiled.render(), expected, atol=1e-5, rtol=0)


def test_one_tile_is_rendered_as_its_inr() -> None:
    tiled = fit_picture(make_picture(6, 5), SIREN, (6, 5))
    torch.testing.assert_close(tiled.render((31, 17)), tiled.inrs.render((31, 17))[0], atol=1e-5, rtol=0)


def test_where_tiles_disagree_a_larger_picture_is_gradual() -> None:
    tiled = wave_inrs((6, 10), (6, 6), 2)
    bias = tiled.inrs.params["layers.1.bias"] + torch.tensor([[0.0], [0.2]])
    broken = tiled.with_inrs(tiled.inrs.with_params({**tiled.inrs.params, "layers.1.bias": bias}))
    difference = (broken.render((6, 1000)) - tiled.render((6, 1000)))[0, :, 0]
    assert difference[0] == pytest.approx(0, abs=1e-6)
    assert difference[-1] == pytest.approx(0.1, abs=1e-6)
    assert -1e-5 < difference.diff().min() < difference.diff().max() < 0.003


def test_gray_pictures_in_colour_inrs_are_gray() -> None:
    tiled = fit_picture(make_picture(6, 5), COLOUR_SIREN, (6, 5))
    colour = tiled.inrs.render()[0]
    assert (colour - colour.mean(-1, keepdim=True)).abs().max() < 0.1
    torch.testing.assert_close(tiled.render(), colour.mean(-1, keepdim=True), atol=1e-5, rtol=0)
    assert tiled.render((12, 10)).shape == (12, 10, 1)


def test_a_saved_picture_is_rendered_again(tmp_path: Path) -> None:
    tiled = fit_picture(make_picture(9, 13, 3), SIREN, (6, 5), overlap=2)
    back = TiledPicture.load(tiled.save(tmp_path / "picture.safetensors"))
    assert (back.shape, back.overlap) == ((9, 13, 3), 2)
    assert not back.gray
    assert torch.equal(back.render((20, 30)), tiled.render((20, 30)))
    assert InrSet.load(tmp_path / "picture.safetensors").meta["fit"]["seed"] == 0


def test_inrs_that_are_no_picture(tmp_path: Path) -> None:
    tiled = fit_picture(make_picture(9, 13), SIREN, (6, 5), overlap=2)
    tiled.inrs.save(tmp_path / "inrs.safetensors")
    with pytest.raises(ArtifactError, match="holds INRs, but not those of the tiles of one picture"):
        TiledPicture.load(tmp_path / "inrs.safetensors")
    with pytest.raises(ValueError, match=r"there are 7 INRs, expected 8 for a picture of shape \(9, 13, 1\)"):
        tiled.with_inrs(tiled.inrs[:7])
    with pytest.raises(ValueError, match="INRs have 3 channels, expected 1 or 1"):
        TiledPicture(fit_picture(make_picture(6, 5, 3), COLOUR_SIREN, (6, 5)).inrs, (6, 5, 1), 2)
    with pytest.raises(ValueError, match=r"shape is \(0, 5, 1\)"):
        TiledPicture(tiled.inrs, (0, 5, 1), 2)


def test_a_picture_is_not_rendered_smaller() -> None:
    with pytest.raises(ValueError, match=r"size is \(5, 20\), expected at least \(9, 13\)"):
        fit_picture(make_picture(9, 13), SIREN, (6, 5)).render((5, 20))


def test_inrs_of_other_channels() -> None:
    with pytest.raises(ValueError, match="INRs have 2 channels, expected 1"):
        fit_picture(make_picture(6, 5), SirenConfig(out_channels=2), (6, 5))
