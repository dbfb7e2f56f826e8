"""Tiles: cutting and blending undo one another, and a picture of any size is edited through them."""

from __future__ import annotations

import pytest
import torch

from editors import Editor, EditorConfig, SirenConfig, edit_picture, get_edit
from editors.tiling import blend_tiles, cut_tiles
from nfn_opt.functionals import EquivariantConfig

BODY = EquivariantConfig(hidden_channels=2, hidden_layers=1, fourier_frequencies=0, position_bands=1)


def make_editor(edit: str = "dilate", channels: int = 1) -> Editor:
    siren = SirenConfig(hidden_width=8, omega_0=8.0, out_channels=channels)
    return Editor(EditorConfig(siren=siren, edit=edit, image_size=(6, 5), body=BODY))


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
        edit_picture(make_picture(9, 9), make_editor(), overlap=overlap)


def test_tiles_that_are_too_few() -> None:
    with pytest.raises(ValueError, match="shorter"):
        blend_tiles(torch.zeros(1, 4, 4, 1), (8, 8, 1), 0)


@pytest.mark.parametrize("shape", [(9, 13, 1), (4, 7, 3), (1, 1, 1)])
def test_editing_a_picture(shape: tuple[int, int, int]) -> None:
    picture, editor = make_picture(*shape), make_editor()
    none, whole = (edit_picture(picture, editor, strength=strength) for strength in (0.0, 1.0))
    assert torch.equal(none.edited, none.reconstructed)
    assert torch.equal(none.reconstructed, whole.reconstructed)
    assert not torch.equal(whole.edited, whole.reconstructed)
    exact = get_edit("dilate")(picture[None])[0]
    assert whole.edited.shape == picture.shape
    assert 0 <= whole.edited.min() <= whole.edited.max() <= 1
    assert whole.error == pytest.approx((whole.edited - exact).square().mean().item())
    assert whole.no_edit_error == pytest.approx((picture - exact).square().mean().item())
    assert (whole.reconstructed - picture).abs().mean() < 0.2
    assert whole.tiles == len(cut_tiles(picture, (6, 5), 2))


def test_the_seed_decides_the_inrs() -> None:
    picture, editor = make_picture(6, 5), make_editor()
    first, same, other = (edit_picture(picture, editor, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.edited, same.edited)
    assert not torch.equal(first.edited, other.edited)


def test_the_exact_edit_of_a_users_function_is_not_known() -> None:
    done = edit_picture(make_picture(6, 5), make_editor("halve"))
    assert done.error is None
    assert done.no_edit_error is None


@pytest.mark.parametrize(
    ("picture", "options", "match"),
    [
        (torch.zeros(6, 5), {}, r"picture has shape \(6, 5\), expected \(H, W, C\)"),
        (torch.zeros(6, 5, 2), {}, r"with C = 1 or 3"),
        (torch.zeros(0, 5, 1), {}, "at least one pixel"),
        (torch.full((6, 5, 1), 2.0), {}, r"must lie in \[0, 1\]"),
        (torch.full((6, 5, 1), torch.nan), {}, "finite"),
        (torch.zeros(6, 5, 1), {"strength": 1.5}, "strength is 1.5"),
    ],
)
def test_pictures_that_are_refused(
    picture: torch.Tensor, options: dict[str, float], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editors.fitting.fit_chunk", lambda *_, **__: pytest.fail("fitted before the check"))
    with pytest.raises(ValueError, match=match):
        edit_picture(picture, make_editor(), strength=options.get("strength", 1.0))


@pytest.mark.parametrize("edit", ["rotate", "contrast"])
def test_edits_that_cannot_be_made_tile_by_tile(edit: str) -> None:
    editor = make_editor(edit)
    assert edit_picture(make_picture(6, 5), editor).tiles == 1
    for shape in ((7, 5), (6, 4)):
        with pytest.raises(ValueError, match=rf"{edit!r} .*tile by tile: .*, expected 6 x 5 as in training"):
            edit_picture(make_picture(*shape), editor)


def test_an_editor_of_colour_inrs() -> None:
    with pytest.raises(ValueError, match="INRs have 3 channels, expected 1"):
        edit_picture(make_picture(6, 5, 3), make_editor(channels=3))
