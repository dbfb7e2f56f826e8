"""Editors with several outputs: the mean of INRs is one INR, symmetric, honest about its width, and trained as such."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import (
    Editor,
    EditorConfig,
    InrSet,
    SirenConfig,
    edit_picture,
    edit_tiles,
    editing_error,
    editing_errors,
    fit,
    fit_picture,
    no_edit_error,
    strength_sweep,
    write_report,
)
from editors.averaging import average_sirens, averaged_config, interleave, mean_of_groups, repeat_each
from editors.editor_config import WEIGHTS_ONLY
from editors.errors import as_targets, squared_errors
from editors.guide import GuideConfig
from editors.report import weight_changes
from editors.siren import coordinates, initial_parameters, siren_apply
from editors.tiling import TiledPicture
from editors.training import train_editor
from editors.training_config import TrainEditorConfig
from editors.training_runs import EditorRunConfig
from nfn_opt.functionals import EquivariantConfig

SIREN = SirenConfig(hidden_width=4, omega_0=5.0)
BODY = EquivariantConfig(
    hidden_channels=4, hidden_layers=1, fourier_frequencies=2, position_bands=1, out_scale=0.1
)


def make_inrs(count: int = 3, siren: SirenConfig = SIREN) -> InrSet:
    params = initial_parameters(siren, count, torch.Generator().manual_seed(count))
    return InrSet(
        params, siren, torch.full((count,), 40.0), (4, 3), labels=torch.arange(count), meta={"of": 1}
    )


def make_editor(outputs: int = 2, edit: str = "dilate", **options: Any) -> Editor:
    values: dict[str, Any] = {
        "siren": SIREN,
        "image_size": (4, 3),
        "body": BODY,
        "refinements": 2,
        "guide": GuideConfig(channels=4, layers=2),
        **options,
    }
    editor = Editor(EditorConfig(edit=edit, outputs=outputs, **values))
    editor.standardize(make_inrs(4, editor.config.siren))
    return editor


def make_targets(count: int = 3) -> Tensor:
    return torch.rand(count, 4, 3, 1, generator=torch.Generator().manual_seed(5))


def double(params: Any) -> dict[str, Tensor]:
    return {name: value.double() for name, value in params.items()}


def mean_rendering(editor: Editor, params: dict[str, Tensor], strength: float = 1.0) -> Tensor:
    """What the edited INRs show together, rendered one by one."""
    coords = coordinates(7, 5, dtype=params["layers.0.bias"].dtype)
    shown = siren_apply(editor.edit_params(params, strength), coords, editor.config.siren)
    outputs = editor.config.outputs
    return torch.stack([shown[i * outputs : (i + 1) * outputs].mean(0) for i in range(len(shown) // outputs)])


# The mean of SIRENs


@pytest.mark.parametrize(
    ("width", "layers", "channels", "count"),
    [(4, 2, 1, 2), (3, 1, 3, 4), (1, 1, 1, 3), (5, 4, 2, 3), (6, 2, 1, 1)],
)
def test_the_mean_of_sirens_is_a_wide_siren(width: int, layers: int, channels: int, count: int) -> None:
    siren = SirenConfig(hidden_width=width, hidden_layers=layers, out_channels=channels, omega_0=9.0)
    params = double(initial_parameters(siren, 3 * count, torch.Generator().manual_seed(0)))
    coords = coordinates(5, 6, dtype=torch.float64)
    shown = siren_apply(params, coords, siren)
    wide = averaged_config(siren, count)
    assert wide.layer_sizes == (2, *[count * width] * layers, channels)
    found = siren_apply(average_sirens(params, count, siren), coords, wide)
    for i in range(3):
        expected = sum(shown[count * i + j] for j in range(count)) / count
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-12)


def test_a_mean_of_one_is_the_siren_and_of_none_empty() -> None:
    params = dict(make_inrs().params)
    same = average_sirens(params, 1, SIREN)
    assert all(torch.equal(same[name], value) for name, value in params.items())
    none = average_sirens({name: value[:0] for name, value in params.items()}, 2, SIREN)
    assert {name: value.shape[1:] for name, value in none.items()} == averaged_config(
        SIREN, 2
    ).parameter_shapes


@pytest.mark.parametrize(
    ("count", "match"), [(2, "3 SIRENs, expected a multiple of 2"), (0, "multiple of 0")]
)
def test_sirens_that_make_no_means(count: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        average_sirens(make_inrs().params, count, SIREN)


def test_neighbours_in_a_batch_belong_together() -> None:
    one, two = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 4.0])}
    assert interleave([one, two])["a"].tolist() == [1, 3, 2, 4]
    assert repeat_each(one, 2)["a"].tolist() == [1, 1, 2, 2]
    assert mean_of_groups(interleave([one, two])["a"], 2).tolist() == [2, 3]
    assert mean_of_groups(one["a"], 2) is one["a"]


# Editing


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_edited_inr_shows_the_mean(outputs: int, strength: float) -> None:
    editor, inrs = make_editor(outputs).double(), make_inrs()
    inrs = inrs.with_params(double(inrs.params))
    edited = editor(inrs, strength)
    assert edited.config == editor.config.edited_siren == averaged_config(SIREN, outputs)
    assert edited.labels is inrs.labels
    assert edited.psnr.isnan().all()
    expected = mean_rendering(editor, dict(inrs.params), strength)
    found = siren_apply(edited.params, coordinates(7, 5, dtype=torch.float64), edited.config)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    if strength == 0.0:
        torch.testing.assert_close(edited.render((7, 5)), inrs.render((7, 5)), rtol=0, atol=1e-12)


def test_the_outputs_differ_and_each_is_an_edit() -> None:
    editor, params = make_editor(3), dict(make_inrs().params)
    for name, change in editor.change(params).items():
        each = change.unflatten(0, (3, 3))
        for first, second in ((0, 1), (1, 2), (0, 2)):
            gap = (each[:, first] - each[:, second]).abs().amax()
            assert gap > 1e-2 * each.abs().amax() > 0, name


def test_the_first_output_of_several_is_one_of_a_common_functional() -> None:
    """Only the last layer of the last functional knows how many outputs there are."""
    shapes = [{name: value.shape for name, value in make_editor(k).state_dict().items()} for k in (1, 4)]
    assert shapes[0].keys() == shapes[1].keys()
    grown = {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
    assert grown
    assert all(name.startswith("bodies.1.") for name in grown)
    assert all(shapes[1][name].numel() == 4 * shapes[0][name].numel() for name in grown)


def test_wide_weights_are_linear_in_the_strength() -> None:
    editor, inrs = make_editor(), make_inrs()
    none, half, whole = (editor(inrs, strength).params for strength in (0.0, 0.5, 1.0))
    for name, value in half.items():
        torch.testing.assert_close(value, torch.lerp(none[name], whole[name], 0.5))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_pieces_change_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, inrs, targets = make_editor().double(), make_inrs(5)[:count], make_targets(count).double()
    inrs = inrs.with_params(double(inrs.params))
    whole = editor(inrs)
    monkeypatch.setattr("editors.editor.NETWORKS_PER_CHUNK", 2)
    monkeypatch.setattr("editors.errors.INRS_PER_CHUNK", 2)
    pieces = editor(inrs)
    assert len(pieces) == count
    for name, value in whole.params.items():
        torch.testing.assert_close(pieces.params[name], value)
    if count:
        expected = no_edit_error(whole, targets)
        assert editing_error(editor, inrs, targets) == pytest.approx(expected, rel=1e-6)


def permuted_params(params: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The same SIRENs of two hidden layers with their neurons in another order, each in its own."""
    new = {name: value.clone() for name, value in params.items()}
    for i in range(len(params["layers.0.bias"])):
        for layer in (0, 1):
            order = torch.randperm(SIREN.hidden_width, generator=generator)
            for part in ("weight", "bias"):
                new[f"layers.{layer}.{part}"][i] = new[f"layers.{layer}.{part}"][i][order]
            reading = f"layers.{layer + 1}.weight"
            new[reading][i] = new[reading][i][:, order]
    return new


def turned_params(params: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The same SIRENs with the signs and phases of their neurons changed at random."""
    new = dict(params)
    for layer in (0, 1):
        bias = new[f"layers.{layer}.bias"]
        turns = torch.randint(-2, 3, bias.shape, generator=generator).to(bias)
        sign = 2.0 * torch.randint(0, 2, bias.shape, generator=generator).to(bias) - 1
        new[f"layers.{layer}.bias"] = sign * (bias + turns * torch.pi / SIREN.omega_0)
        new[f"layers.{layer}.weight"] = sign.unsqueeze(2) * new[f"layers.{layer}.weight"]
        column = sign * (1 - 2 * turns.remainder(2))
        new[f"layers.{layer + 1}.weight"] = new[f"layers.{layer + 1}.weight"] * column.unsqueeze(1)
    return new


@pytest.mark.parametrize("options", [{}, {**WEIGHTS_ONLY, "body": BODY}], ids=["guided", "weights only"])
@pytest.mark.parametrize("act", [permuted_params, turned_params])
@pytest.mark.parametrize("seed", range(2))
def test_the_edited_picture_does_not_depend_on_the_representative(
    options: dict[str, Any], act: Any, seed: int
) -> None:
    editor = make_editor(3, **options).double()
    params, generator = double(make_inrs().params), torch.Generator().manual_seed(seed)
    other = act(params, generator)
    coords = coordinates(7, 5, dtype=torch.float64)
    assert not torch.allclose(other["layers.1.weight"], params["layers.1.weight"])
    torch.testing.assert_close(
        siren_apply(other, coords, SIREN), siren_apply(params, coords, SIREN), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        mean_rendering(editor, other), mean_rendering(editor, params), rtol=0, atol=1e-10
    )


# Training and errors


def test_errors_are_those_of_the_mean_not_the_mean_of_errors() -> None:
    editor, inrs, targets = make_editor(), make_inrs(), make_targets()
    wanted = as_targets(inrs, targets)
    shown = siren_apply(editor.edit_params(inrs.params), coordinates(4, 3), SIREN).unflatten(0, (3, 2))
    expected = (shown.mean(1) - wanted).square().mean((1, 2)).detach()
    each = (shown - wanted.unsqueeze(1)).square().mean((1, 2, 3)).detach()
    assert (each - expected).min() > 1e-4 * expected.max()
    torch.testing.assert_close(editing_errors(editor, inrs, targets), expected)
    assert editing_error(editor, inrs, targets) == pytest.approx(expected.mean().item(), rel=1e-5)
    assert no_edit_error(editor(inrs), targets) == pytest.approx(expected.mean().item(), rel=1e-5)
    loss = squared_errors(inrs, editor.edit_params(inrs.params), wanted).mean()
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_training_moves_all_outputs_and_keeps_them_apart() -> None:
    editor, inrs = make_editor(**{**WEIGHTS_ONLY, "body": BODY}), make_inrs(8)
    targets = inrs.render().mul(0.5)

    def changes() -> Tensor:
        return editor.change(inrs.params)["layers.2.weight"].detach().unflatten(0, (8, 2))

    before = changes()
    train_editor(editor, inrs, targets, config=TrainEditorConfig(steps=30, batch_size=8, lr=0.01, warmup=1))
    after = changes()
    assert editing_error(editor, inrs, targets) < 0.5 * no_edit_error(inrs, targets)
    for output in (0, 1):
        assert (after[:, output] - before[:, output]).abs().mean() > 0.1 * after.abs().mean()
    assert (after[:, 0] - after[:, 1]).abs().mean() > 0.1 * after.abs().mean()


# What does not fit


@pytest.mark.parametrize("outputs", [0, -1])
def test_an_editor_without_outputs(outputs: int, tmp_path: Path) -> None:
    match = f"outputs is {outputs}, expected at least 1"
    with pytest.raises(ValueError, match=match):
        make_editor(outputs)
    with pytest.raises(ValueError, match=match):
        EditorRunConfig(out=tmp_path, outputs=outputs)


def test_a_wide_inr_is_not_edited_again_but_what_it_shows() -> None:
    editor = make_editor()
    edited = editor(make_inrs())
    assert edited.meta == {"of": 1, "average_of": 2}
    with pytest.raises(
        ValueError, match=r"hidden_width=8.*expected .*hidden_width=4.* the mean of 2; fit what"
    ):
        editor(edited)
    fitted = fit(edited.render(), config=editor.config.siren, steps=2)
    assert editor(fitted).config == edited.config
    with pytest.raises(ValueError, match="or train an editor for these INRs"):
        editor(dataclasses.replace(edited, meta={}))


def test_only_the_last_of_a_chain_may_be_wide() -> None:
    wide, narrow = make_editor(), make_editor(1, "blur")
    picture = torch.rand(6, 5, 1, generator=torch.Generator().manual_seed(0))
    assert edit_picture(picture, [narrow, wide]).after.inrs.config == wide.config.edited_siren
    for chain in ([wide, narrow], [narrow, wide, narrow]):
        with pytest.raises(
            ValueError, match=r"\('dilate'\) has 2 outputs and makes .*=8.*let it be the last"
        ):
            edit_picture(picture, chain)


# Pictures and files


@pytest.mark.parametrize("names", [["dilate"], ["blur", "dilate"]])
def test_a_sweep_over_strengths(names: list[str]) -> None:
    chain = [make_editor(1, "blur"), make_editor()][-len(names) :]
    picture = torch.rand(6, 5, 1, generator=torch.Generator().manual_seed(0))
    tiled, strengths = fit_picture(picture, SIREN, (4, 3)), [0.0, 0.4, 1.0]
    for strength, edited in zip(strengths, strength_sweep(tiled, chain, strengths), strict=True):
        expected = edit_tiles(tiled, chain, strength).render((12, 10))
        torch.testing.assert_close(edited.render((12, 10)), expected, atol=1e-5, rtol=0)
        if strength == 0.0:
            torch.testing.assert_close(expected, tiled.render((12, 10)), atol=1e-5, rtol=0)


def test_an_edited_picture_is_saved_and_reported(tmp_path: Path) -> None:
    editor = make_editor()
    picture = torch.rand(6, 5, 1, generator=torch.Generator().manual_seed(0))
    done = edit_picture(picture, editor, strength=0.5)
    loaded = TiledPicture.load(done.after.save(tmp_path / "edited.safetensors"))
    assert loaded.inrs.config == editor.config.edited_siren
    assert torch.equal(loaded.render(), done.edited)
    page = write_report(tmp_path / "a.html", done, editor, name="a", seconds=1.0).read_text()
    assert "2-4-4-1 SIREN (2-8-8-1 edited), omega_0" in page
    changes = weight_changes(edit_tiles(done.before, editor, 0.0).inrs, edit_tiles(done.before, editor).inrs)
    before = repeat_each(done.before.inrs.params, 2)
    for name, change in editor.change(done.before.inrs.params).items():
        share = (change.square().mean() / before[name].square().mean()).sqrt().item()
        if name != "layers.2.bias":  # there the mean of the changes is shown, not their sizes
            assert changes[name][0] == pytest.approx(share, rel=1e-4)
        assert f"{100 * changes[name][0]:.1f} %" in page


def test_save_and_load(tmp_path: Path) -> None:
    editor, inrs = make_editor(3), make_inrs()
    again = Editor.load(editor.save(tmp_path / "editor.safetensors"))
    assert again.config == editor.config
    for name, value in editor(inrs, 0.7).params.items():
        assert torch.equal(again(inrs, 0.7).params[name], value)


def test_a_training_run_passes_the_outputs_on(tmp_path: Path) -> None:
    run = EditorRunConfig(out=tmp_path, outputs=2)
    assert run.editor(SIREN, (4, 3)).outputs == 2
    assert run.record()["outputs"] == 2
