"""A picture of any size is edited through the weights of the INRs of its tiles."""

from __future__ import annotations

import pytest
import torch

from editors import (
    Editor,
    EditorConfig,
    SirenConfig,
    edit_picture,
    edit_tiles,
    fit_picture,
    get_edit,
    strength_sweep,
)
from editors.tiling import cut_tiles
from nfn_opt.data import load_photo_patches
from nfn_opt.functionals import EquivariantConfig

BODY = EquivariantConfig(hidden_channels=2, hidden_layers=1, fourier_frequencies=0, position_bands=1)


def make_editor(
    edit: str = "dilate", channels: int = 1, size: tuple[int, int] = (6, 5), width: int = 8, seed: int = 0
) -> Editor:
    siren = SirenConfig(hidden_width=width, omega_0=8.0, out_channels=channels)
    config = EditorConfig(siren=siren, edit=edit, image_size=size, body=BODY)
    return Editor(config, generator=torch.Generator().manual_seed(seed))


def make_picture(height: int, width: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("channels", [1, 3])
def test_an_editor_of_colour_inrs_edits_colour_tiles(channels: int) -> None:
    picture = make_picture(9, 8, channels)
    done = edit_picture(picture, make_editor(channels=3), overlap=2)
    assert done.edited.shape == done.original.shape == (9, 8, channels)
    assert done.before.inrs.config.out_channels == 3
    assert done.tiles == len(cut_tiles(picture, (6, 5), 2, by_channel=False))
    exact = get_edit("dilate")(picture[None])[0]
    assert done.error == pytest.approx((done.edited - exact).square().mean().item())


def test_a_chain_of_editors() -> None:
    picture = make_picture(9, 8)
    first, second = make_editor("dilate"), make_editor("blur", seed=1)
    done = edit_picture(picture, [first, second], strength=0.5)
    inrs = second(first(done.before.inrs, 0.5), 0.5)
    assert all(torch.equal(done.after.inrs.params[name], inrs.params[name]) for name in inrs.params)
    exact = get_edit("blur")(get_edit("dilate")(picture[None]))[0]
    assert done.exact is not None
    assert torch.equal(done.exact, exact)
    assert edit_picture(picture, [first, make_editor("halve")]).exact is None


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"channels": 3}, r"editor 2 of the chain \('blur'\) is for INRs"),
        ({"width": 9}, r"hidden_width=9.* expected .*hidden_width=8"),
        ({"size": (5, 5)}, r"of \(5, 5\) pixels, expected .* of \(6, 5\)"),
    ],
)
def test_editors_that_do_not_fit_each_other(other: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        edit_picture(make_picture(9, 8), [make_editor(), make_editor("blur", **other)])  # type: ignore[arg-type]


def test_no_editor() -> None:
    with pytest.raises(ValueError, match="there is no editor"):
        edit_picture(make_picture(9, 8), [])


@pytest.mark.parametrize("chain", [["dilate"], ["dilate", "blur"]])
def test_a_sweep_over_strengths(chain: list[str]) -> None:
    editors = [make_editor(edit, seed=seed) for seed, edit in enumerate(chain)]
    tiled = fit_picture(make_picture(9, 8), editors[0].config.siren, (6, 5))
    strengths = [0.0, 0.3, 1.0]
    for strength, edited in zip(strengths, strength_sweep(tiled, editors, strengths), strict=True):
        expected = edit_tiles(tiled, editors, strength).render((18, 16))
        torch.testing.assert_close(edited.render((18, 16)), expected, atol=1e-5, rtol=0)


def test_a_picture_whose_inrs_are_fitted_already() -> None:
    picture, editor = make_picture(9, 8), make_editor()
    done = edit_picture(picture, editor)
    again = edit_picture(done.before, editor)
    assert torch.equal(again.edited, done.edited)
    assert torch.equal(again.original, done.reconstructed)
    assert again.psnr == done.psnr


def test_tiles_of_another_size_are_not_edited() -> None:
    editor = make_editor()
    tiled = fit_picture(make_picture(9, 8), editor.config.siren, (5, 5))
    with pytest.raises(ValueError, match=r"tiles of \(5, 5\) pixels, expected \(6, 5\)"):
        edit_tiles(tiled, editor)


@pytest.mark.parametrize("edit", ["dilate", "blur"])
def test_no_seams_in_a_photo(edit: str) -> None:
    """Where tiles begin and end, the error is no rougher than anywhere else."""
    patches = load_photo_patches(size=60, count=20).images
    picture = patches[patches.flatten(1).var(1).argmax()]  # not the sky
    overlap = 4
    done = edit_picture(picture, Editor.pretrained(edit), overlap=overlap)
    assert done.exact is not None
    assert done.error is not None
    assert done.no_edit_error is not None
    assert done.error < 0.5 * done.no_edit_error
    for part in (done.edited - done.exact, done.reconstructed - picture):
        for residual in (part, part.transpose(0, 1)):
            jumps = residual.diff(dim=0).abs().mean((1, 2))  # jumps[i]: from row i to row i + 1
            seams = torch.zeros(len(jumps), dtype=torch.bool)
            for start in (28,):
                seams[[start - 1, start + overlap - 1]] = True  # a tile begins, the one before it ends
            assert jumps[seams].mean() < 1.25 * jumps[~seams].mean()
