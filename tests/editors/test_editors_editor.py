"""Editors: equivariant, exact at strength 0, refusing what does not fit, and the same after a round trip to a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import editors
from editors import Editor, EditorConfig, InrSet, Siren, SirenConfig, fit, get_edit, pretrained_editors
from editors.canonical import canonicalize
from editors.editor import describe
from editors.editor_config import WEIGHTS_ONLY
from editors.guide import GuideConfig
from editors.shipped import FOLDER
from editors.siren import coordinates, initial_parameters, siren_apply
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.data import load_images
from nfn_opt.functionals import EquivariantConfig
from nfn_opt.weight_space import Permutation, Symmetry, WeightSpace

SIREN = SirenConfig(hidden_width=5, omega_0=10.0)
BODY = EquivariantConfig(
    hidden_channels=4,
    hidden_layers=2,
    fourier_frequencies=3,
    fourier_scale=0.5,
    position_bands=2,
    norm=True,
    out_scale=0.1,
)


def make_inrs(siren: SirenConfig = SIREN, count: int = 3) -> InrSet:
    params = initial_parameters(siren, count, torch.Generator().manual_seed(count))
    return InrSet(params, siren, torch.full((count,), 40.0), (4, 4), labels=torch.arange(count))


def make_editor(
    siren: SirenConfig = SIREN, symmetry: Symmetry = "all", edit: str = "dilate", **options: Any
) -> Editor:
    options = {"body": BODY, **options}
    config = EditorConfig(siren=siren, edit=edit, image_size=(4, 4), symmetry=symmetry, **options)
    editor = Editor(config, generator=torch.Generator().manual_seed(7))
    editor.standardize(make_inrs(siren, 4))
    return editor


def assert_equal(first: InrSet, second: InrSet) -> None:
    assert first.params.keys() == second.params.keys()
    for name, value in first.params.items():
        assert torch.equal(value, second.params[name]), name


# Equivariance


def permute_each(
    space: WeightSpace, params: dict[str, Tensor], permutation: Permutation
) -> dict[str, Tensor]:
    """Permute every network of a batch in the same way."""
    networks = [
        space.permute({name: value[i] for name, value in params.items()}, permutation)
        for i in range(len(next(iter(params.values()))))
    ]
    return {name: torch.stack([network[name] for network in networks]) for name in params}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest difference relative to the largest value of each tensor."""
    return max(
        ((first[name] - second[name]).abs().max() / second[name].abs().max()).item() for name in second
    )


def random_siren(generator: torch.Generator, deepest: int) -> SirenConfig:
    width, depth, channels = (
        int(torch.randint(low, high, (), generator=generator))
        for low, high in ((1, 18), (1, deepest + 1), (1, 4))
    )
    return SirenConfig(hidden_width=width, hidden_layers=depth, out_channels=channels)


# Each refinement renders the INR, whose sines of 30 times their argument enlarge roundings layer by layer.
@pytest.mark.parametrize(
    ("options", "deepest"), [({"guide": GuideConfig(channels=0)}, 5), ({}, 2), ({"outputs": 3}, 2)]
)
@pytest.mark.parametrize("symmetry", ["all", "hidden"])
@pytest.mark.parametrize("seed", range(4))
def test_the_edit_of_a_permuted_inr_is_the_permuted_edit(
    options: dict[str, Any], deepest: int, symmetry: Symmetry, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    siren = random_siren(generator, deepest)
    editor = make_editor(siren, symmetry, **options).double()
    params = {name: value.double() for name, value in initial_parameters(siren, 2, generator).items()}
    # Of the symmetry "all", only hidden neurons: the position encoding tells inputs and outputs apart.
    hidden = WeightSpace.from_module(Siren(siren), torch.zeros(2, 2))
    permutation = hidden.random_permutation(generator)
    assert len(permutation.indices) == siren.hidden_layers
    permuted = permute_each(hidden, params, permutation)
    assert distance(editor.change(permuted), permute_each(hidden, editor.change(params), permutation)) < 1e-10
    coords = coordinates(4, 5, dtype=torch.float64)
    torch.testing.assert_close(
        siren_apply(editor.edit_params(permuted), coords, siren),
        siren_apply(editor.edit_params(params), coords, siren),
        rtol=1e-9,
        atol=1e-10,
    )


@pytest.mark.parametrize("options", [{}, WEIGHTS_ONLY], ids=["default", "weights only"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_papers_architecture_is_edited_equivariantly(options: dict[str, Any], channels: int) -> None:
    siren, generator = SirenConfig(out_channels=channels), torch.Generator().manual_seed(0)
    editor = Editor(EditorConfig(siren=siren, edit="dilate", image_size=(9, 8), **options)).double()
    params = {name: value.double() for name, value in initial_parameters(siren, 2, generator).items()}
    editor.standardize(InrSet(params, siren, torch.full((2,), 40.0), (9, 8)))
    permutation = editor.space.random_permutation(generator)
    hidden = {name: index for name, index in permutation.indices.items() if len(index) == siren.hidden_width}
    space = WeightSpace.from_module(Siren(siren), torch.zeros(2, 2))
    permuted = permute_each(space, params, Permutation(hidden))
    expected = permute_each(space, editor.change(params), Permutation(hidden))
    assert distance(editor.change(permuted), expected) < 1e-10


@pytest.mark.parametrize("symmetry", ["all", "hidden"])
def test_the_edit_notices_a_permutation_of_one_tensor_alone(symmetry: Symmetry) -> None:
    editor = make_editor(symmetry=symmetry).double()
    params = {name: value.double() for name, value in make_inrs().params.items()}
    change = editor.change(params)
    tied = [(f"layers.{i}.{part}", 1) for i in (0, 1) for part in ("weight", "bias")]
    for name, axis in [*tied, ("layers.1.weight", 2), ("layers.2.weight", 2)]:
        moved = editor.change(params | {name: params[name].roll(1, axis)})
        expected = change | {name: change[name].roll(1, axis)}
        assert distance(moved, expected) > 1e-3, (name, axis)


@pytest.mark.parametrize("symmetry", ["all", "hidden"])
def test_the_edit_tells_rows_from_columns_of_the_image(symmetry: Symmetry) -> None:
    editor = make_editor(symmetry=symmetry).double()
    params = {name: value.double() for name, value in make_inrs().params.items()}
    swapped = params | {"layers.0.weight": params["layers.0.weight"].flip(2)}
    change, moved = editor.change(params), editor.change(swapped)
    expected = change | {"layers.0.weight": change["layers.0.weight"].flip(2)}
    assert distance(moved, expected) > 1e-3


# Strength


def test_strength_0_gives_the_very_same_weights_in_new_memory() -> None:
    inrs = make_inrs()
    same = make_editor()(inrs, strength=0.0)
    assert_equal(same, inrs)
    assert all(same.params[name].data_ptr() != inrs.params[name].data_ptr() for name in inrs.params)


def test_the_weights_are_linear_in_the_strength() -> None:
    editor, inrs = make_editor(), make_inrs()
    whole = editor(inrs)
    assert distance(dict(whole.params), dict(inrs.params)) > 1e-3
    for strength in (0.25, 0.5, 0.9):
        some = editor(inrs, strength).params
        for name, value in inrs.params.items():
            torch.testing.assert_close(some[name], value + strength * (whole.params[name] - value))


def test_an_edited_set_keeps_labels_and_size_and_needs_no_gradient() -> None:
    inrs = make_inrs()
    edited = make_editor()(inrs)
    assert edited.labels is inrs.labels
    assert edited.image_size == inrs.image_size
    assert edited.psnr.isnan().all()
    assert not any(value.requires_grad for value in edited.params.values())


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan"), float("inf")])
def test_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength is .*, expected 0 \(no edit\) to 1"):
        make_editor()(make_inrs(), strength)


def test_other_inrs_are_refused_with_what_differs() -> None:
    other = dataclasses.replace(SIREN, hidden_width=6, omega_0=11.0)
    differing = r"have hidden_width=6, expected hidden_width=5; omega_0=11\.0, expected omega_0=10\.0, "
    for act in (make_editor(), make_editor().standardize):
        with pytest.raises(ValueError, match=differing):
            act(make_inrs(other))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_number_of_inrs_equals_one_by_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editors.editor.NETWORKS_PER_CHUNK", 2)
    editor, inrs = make_editor(), make_inrs(count=5)[:count]
    edited = editor(inrs)
    assert len(edited) == count
    for i in range(count):
        for name, value in editor(inrs[i]).params.items():
            torch.testing.assert_close(edited.params[name][i], value[0])


def test_statistics_are_those_of_each_tensor() -> None:
    editor, inrs = make_editor(), make_inrs(count=6)
    editor.standardize(inrs)
    seen, _ = canonicalize(inrs.params, inrs.config)
    for i, name in enumerate(editor.space.names):
        torch.testing.assert_close(editor.mean[i], seen[name].mean())
        torch.testing.assert_close(editor.std[i], seen[name].std())


def test_statistics_of_a_single_inr_are_finite() -> None:
    editor = make_editor()
    editor.standardize(make_inrs(count=1))
    assert editor.std.isfinite().all()
    assert (editor.std > 0).all()


def test_the_initial_weights_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = make_editor(), make_editor()
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(first(make_inrs()), second(make_inrs()))


# Files


@pytest.mark.parametrize("symmetry", ["all", "hidden"])
def test_save_and_load(tmp_path: Path, symmetry: Symmetry) -> None:
    editor, inrs = make_editor(symmetry=symmetry), make_inrs()
    record = {"command": "made", "scores": {"error": 0.5}, "history": [{"step": 1.0}]}
    path = editor.save(tmp_path / "new" / "editor.safetensors", record)
    again = Editor.load(path)
    assert again.config == editor.config
    assert again.metadata == record
    assert_equal(again(inrs, 0.7), editor(inrs, 0.7))
    once_more = Editor.load(again.double().save(tmp_path / "copy.safetensors"))
    assert once_more.metadata == record
    assert once_more.mean.dtype == torch.float64


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        Editor.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda whole: whole[:-10], "not a complete safetensors file"),
        (lambda whole: whole[:20], "not a complete safetensors file"),
        (lambda whole: b"", "not a complete safetensors file"),
        (lambda whole: b"PK\x03\x04 a pickle, say" * 20, "not a complete safetensors file"),
    ],
    ids=["cut", "cut in the header", "empty", "another format"],
)
def test_files_that_are_not_safetensors(
    tmp_path: Path, content: Callable[[bytes], bytes], match: str
) -> None:
    path = make_editor().save(tmp_path / "a.safetensors")
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ArtifactError, match=match):
        Editor.load(path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds a 'inr_set', expected a 'editor'"):
        Editor.load(make_inrs().save(tmp_path / "a.safetensors"))


def tampered(metadata: dict[str, Any], keys: str, value: Any) -> dict[str, Any]:
    """Metadata with one entry, named by dotted keys, replaced."""
    key, _, rest = keys.partition(".")
    return {**metadata, key: tampered(metadata[key], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        ("config.siren.hidden_width", 6, "weight space"),
        ("config.siren.hidden_width", "wide", "hidden_width"),
        ("config.siren", None, ""),
        ("config.siren.depth", 3, "unexpected keyword argument 'depth'"),
        ("config.body.hidden_channels", 5, "size mismatch"),
        ("config.body.hidden_layers", 3, "[Mm]issing"),
        ("config.body.sharing", "by_chance", "by_chance"),
        ("config.body.in_channels", 2, "body has 2 channels in and 1 out"),
        ("config.symmetry", "hidden", "weight space"),
        ("config.symmetry", "some", "some"),
        ("config.image_size", [0, 4], "image_size"),
        ("config.image_size", [4], "image_size"),
        ("config.image_size", None, ""),
        ("config.colour", 1, "unexpected keyword argument 'colour'"),
        ("config", [], ""),
        ("config", None, ""),
        ("space", "0123", "weight space"),
        ("training", None, ""),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, keys: str, value: Any, match: str) -> None:
    path = make_editor().save(tmp_path / "a.safetensors")
    tensors, metadata = load_artifact(path, kind="editor")
    save_artifact(path, tensors, kind="editor", metadata=tampered(metadata, keys, value))
    with pytest.raises(ArtifactError, match=rf"(?s)a\.safetensors does not hold a valid editor: .*{match}"):
        Editor.load(path)


def test_a_file_with_other_tensors(tmp_path: Path) -> None:
    path = make_editor().save(tmp_path / "a.safetensors")
    tensors, metadata = load_artifact(path, kind="editor")
    for some in ({**tensors, "more": torch.ones(1)}, {k: v for k, v in tensors.items() if k != "mean"}):
        save_artifact(path, some, kind="editor", metadata=metadata)
        with pytest.raises(ArtifactError, match=r"more|mean"):
            Editor.load(path)


# Those that ship


def test_names_of_pretrained_editors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pretrained"
    monkeypatch.setattr("editors.shipped.FOLDER", folder)
    assert pretrained_editors() == []
    with pytest.raises(ValueError, match=r"no pretrained editor for 'dilate'.* none.*train_editor\.py"):
        Editor.pretrained("dilate")
    make_editor().save(folder / "mnist-dilate.safetensors")
    make_editor(edit="blur").save(folder / "mnist-blur.safetensors")
    make_editor(edit="blur").save(folder / "colour-blur.safetensors", {"of": "colour"})
    assert pretrained_editors() == ["colour-blur", "mnist-blur", "mnist-dilate"] == editors.list()
    with pytest.raises(
        ValueError, match=r"'dilat'; did you mean 'dilate'\? There are colour-blur, mnist-blur"
    ):
        Editor.pretrained("dilat")
    with pytest.raises(ValueError, match=r"'colour-dilate'; did you mean 'mnist-dilate'"):
        Editor.pretrained("colour-dilate")
    for name in ("dilate", "dilate(size=3)", "mnist-dilate", "mnist-dilate(size=3)"):
        assert Editor.pretrained(name).config.edit == "dilate"
    assert Editor.pretrained("mnist-blur").metadata == {}
    assert Editor.pretrained("blur").metadata == {"of": "colour"}


@pytest.mark.parametrize("name", pretrained_editors())
def test_those_that_ship_are_small_and_know_their_scores(name: str) -> None:
    editor = Editor.pretrained(name)
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 4_000_000
    assert name.endswith(f"-{editor.config.edit}")
    assert editor.metadata["scores"]["share"] < 0.6


def test_at_four_times_the_resolution_the_edit_is_the_same() -> None:
    small = load_images("digits").subset(range(20)).resize(20).images
    digits = F.pad((3 * small - 1).clamp(0, 1), (0, 0, 4, 4, 4, 4))  # of the kind that the editor has learned
    inrs = fit(digits, seed=0)
    edited = Editor.pretrained("mnist-dilate")(inrs)
    fine = 4 * 27 + 1  # the centres of the coarse pixels are among those of the fine ones
    large = edited.render((fine, fine))
    torch.testing.assert_close(large[:, ::4, ::4], edited.render(), atol=1e-4, rtol=0)
    wanted = F.interpolate(
        get_edit("dilate")(digits).movedim(-1, 1), (fine, fine), mode="bilinear", align_corners=True
    ).movedim(1, -1)
    error, without = ((each - wanted).square().mean() for each in (large, inrs.render((fine, fine))))
    assert error < 0.25 * without


def test_it_prints_itself() -> None:
    editor = make_editor()
    assert "edit='dilate', siren=2-5-5-1, symmetry='all'" in repr(editor)
    editor.metadata = {"scores": {"error": 0.25}}
    assert '"error": 0.25' in describe(editor)
