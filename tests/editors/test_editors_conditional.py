"""Editors of several edits: equivariant, told apart by the condition, refusing other edits, trained and stored."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import (
    ChosenEdit,
    EditFamily,
    Editor,
    EditorConfig,
    InrSet,
    Siren,
    SirenConfig,
    TrainEditorConfig,
    edit_picture,
    edit_tiles,
    editing_error,
    fit_picture,
    get_edit,
    parameter_sweep,
    train_editor,
)
from editors.guide import GuideConfig
from editors.siren import initial_parameters
from editors.training import EditorTraining
from editors.training_targets import EDITS_PER_STEP, DrawnTargets, Examples
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.functionals import EquivariantConfig
from nfn_opt.meta.processes import Processes
from nfn_opt.weight_space import Permutation, WeightSpace

FAMILY = "dilate, blur(sigma=0.5..2), brightness(amount=-0.3..0.3), invert"
SIREN = SirenConfig(hidden_width=5, omega_0=10.0)
BODY = EquivariantConfig(
    hidden_channels=4, hidden_layers=2, fourier_frequencies=0, position_bands=1, norm=True, out_scale=0.1
)
SHORT = TrainEditorConfig(steps=4, batch_size=5, lr=1e-2, warmup=2, validate_every=2)
WEIGHTS_ONLY = {"guide": GuideConfig(channels=0), "refinements": 1}


def make_inrs(count: int = 6, siren: SirenConfig = SIREN) -> InrSet:
    params = initial_parameters(siren, count, torch.Generator().manual_seed(count))
    return InrSet(params, siren, torch.full((count,), 40.0), (4, 3))


def make_images(count: int = 6) -> Tensor:
    return torch.rand(count, 4, 3, 1, generator=torch.Generator().manual_seed(1))


def make_editor(edit: str = FAMILY, **options: Any) -> Editor:
    options = {"body": BODY, "refinements": 2, "guide": GuideConfig(channels=4, layers=2), **options}
    config = EditorConfig(siren=SIREN, edit=edit, image_size=(4, 3), **options)
    editor = Editor(config, generator=torch.Generator().manual_seed(7))
    editor.standardize(make_inrs())
    return editor


def distance(first: Any, second: Any) -> float:
    """Largest difference relative to the largest value of each tensor."""
    return max(
        ((first[name] - second[name]).abs().max() / second[name].abs().max()).item() for name in second
    )


# Equivariance and sensitivity


@pytest.mark.parametrize("options", [{}, WEIGHTS_ONLY], ids=["guided", "weights only"])
@pytest.mark.parametrize("symmetry", ["all", "hidden"])
def test_the_edit_of_a_permuted_inr_is_the_permuted_edit(options: dict[str, Any], symmetry: str) -> None:
    editor, generator = make_editor(symmetry=symmetry, **options).double(), torch.Generator().manual_seed(0)
    params = {name: value.double() for name, value in make_inrs().params.items()}
    space = WeightSpace.from_module(Siren(SIREN), torch.zeros(2, 2))
    permutation = space.random_permutation(generator)
    edits = ["dilate", "blur", "blur(sigma=1.7)", "brightness", "brightness(amount=-0.1)", "invert"]
    condition = editor.condition(edits, 6)

    def permuted(given: dict[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
        networks = [
            space.permute({name: value[i] for name, value in given.items()}, permutation) for i in range(6)
        ]
        return {name: torch.stack([network[name] for network in networks]) for name in given}

    change = editor.change(params, condition)
    assert (
        distance(editor.change(permuted(params, permutation), condition), permuted(change, permutation))
        < 1e-10
    )


@pytest.mark.parametrize("options", [{}, WEIGHTS_ONLY], ids=["guided", "weights only"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dilate", "invert"),
        ("dilate", "blur(sigma=1.25)"),
        ("blur(sigma=0.5)", "blur(sigma=2)"),
        ("brightness(amount=-0.3)", "brightness(amount=0.3)"),
    ],
)
def test_another_edit_is_another_change(options: dict[str, Any], one: str, other: str) -> None:
    editor, params = make_editor(**options), dict(make_inrs().params)
    first, second = (editor.change(params, editor.condition(edit, 6)) for edit in (one, other))
    assert distance(first, second) > 0.02


def test_the_condition_reaches_guides_and_functionals_alike() -> None:
    editor, params = make_editor(), dict(make_inrs().params)
    whole = editor.change(params, editor.condition("invert", 6))
    for part in ("modulations", "embedding"):
        silent = copy.deepcopy(editor)
        for name, parameter in silent.named_parameters():
            if part in name:
                parameter.data.zero_()
        assert distance(silent.change(params, editor.condition("invert", 6)), whole) > 0.02, part


# Use


def test_strength_0_gives_the_very_same_weights() -> None:
    inrs = make_inrs()
    same = make_editor()(inrs, 0.0, "invert")
    assert all(torch.equal(same.params[name], value) for name, value in inrs.params.items())


@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_number_of_inrs_each_with_its_edit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editors.editor.NETWORKS_PER_CHUNK", 2)
    editor, inrs = make_editor(), make_inrs(5)[:count]
    edits = ["dilate", "blur", "invert", get_edit("blur", sigma=0.7), "dilate"][:count]
    edited = editor(inrs, 0.6, edits)
    assert isinstance(edited, InrSet)
    assert len(edited) == count
    for i, edit in enumerate(edits):
        for name, value in editor(inrs[i], 0.6, edit).params.items():
            torch.testing.assert_close(edited.params[name][i], value[0])


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (None, r"edit is missing: the editor learned dilate, .*; say which is meant, as in edit='dilate'"),
        ("erode", "'erode' is no edit that the editor learned"),
        ("dilat", "did you mean 'dilate'"),
        ("blur(sigma=2.5)", r"is 2\.5, expected 0\.5 to 2; the editor learned dilate, blur"),
        (["dilate"], "1 edits for 6 INRs"),
    ],
)
def test_edits_that_are_refused(edit: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_editor()(make_inrs(), 0.0, edit)


def test_a_condition_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"condition is missing: the editor learned dilate, .*Editor\.condition"
    ):
        make_editor().change(make_inrs().params)


def test_an_editor_of_one_edit_takes_only_that() -> None:
    editor, inrs = make_editor("blur(sigma=2)"), make_inrs()
    assert not any(part in name for name in editor.state_dict() for part in ("embedding", "modulations"))
    named, plain = editor(inrs, edit="blur(sigma=2.0)"), editor(inrs)
    assert all(torch.equal(named.params[name], value) for name, value in plain.params.items())
    with pytest.raises(ValueError, match=r"the edit is 'blur', expected 'blur\(sigma=2\)', the only one"):
        editor(inrs, edit="blur")


# Files


def test_a_file_is_read_again(tmp_path: Path) -> None:
    editor, inrs = make_editor(), make_inrs()
    again = Editor.load(editor.save(tmp_path / "some.safetensors", {"command": "made"}))
    assert (again.config, again.family, again.metadata) == (
        editor.config,
        EditFamily.read(FAMILY),
        {"command": "made"},
    )
    editor.save_pretrained(tmp_path / "folder")
    for other in (again, Editor.from_pretrained(tmp_path / "folder")):
        for name, value in editor(inrs, edit="blur(sigma=1.3)").params.items():
            assert torch.equal(other(inrs, edit="blur(sigma=1.3)").params[name], value)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        ("dilate", "Unexpected"),
        ("dilate, invert", "size mismatch"),
        ("dilate, blur(sigma=2..1)", "smaller number"),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, edit: str, match: str) -> None:
    path = make_editor().save(tmp_path / "some.safetensors")
    tensors, metadata = load_artifact(path, kind="editor")
    metadata["config"]["edit"] = edit
    save_artifact(path, tensors, kind="editor", metadata=metadata)
    with pytest.raises(ArtifactError, match=f"(?s)does not hold a valid editor: .*{match}"):
        Editor.load(path)


# Training


def test_every_inr_gets_the_target_of_its_edit() -> None:
    family, images = EditFamily.read(FAMILY), make_images(20)
    index = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    targets, told = DrawnTargets(family, images).batch(index, slice(None), torch.Generator().manual_seed(3))
    edits = family.draw(EDITS_PER_STEP, torch.Generator().manual_seed(3))
    for i in range(20):
        edit = edits[i % EDITS_PER_STEP]
        expected = 2 * edit(images[index[i]][None]) - 1
        torch.testing.assert_close(targets[i], expected.flatten(0, 2))
        assert told[i].tolist() == family.condition(edit)


def test_examples_are_every_image_with_every_edit() -> None:
    family, inrs, images = EditFamily.read(FAMILY), make_inrs(), make_images()
    examples = Examples.of(family, inrs, images)
    assert (len(examples), list(examples.groups)) == (24, FAMILY.split(", "))
    assert examples.edits is not None
    for i, edit in enumerate(examples.edits):
        assert family.find(edit)[0] == i // 6
        torch.testing.assert_close(examples.targets[i], edit(images[i % 6][None])[0])
    editor = make_editor()
    whole, scores = examples.scores(editor)
    mean = sum(one["error"] for one in scores.values()) / 4
    assert whole["error"] == pytest.approx(mean, rel=1e-5)
    assert scores["invert"]["error"] == pytest.approx(editing_error(editor, inrs, 1 - images, edits="invert"))
    assert len(Examples.of(family, inrs[:2], images[:2])) == 8  # fewer than edits of a grid


def test_the_error_falls_and_each_edit_is_learned() -> None:
    inrs, family = make_inrs(16), "brightness(amount=-0.3..0.3), invert"
    images = inrs.render()
    config = TrainEditorConfig(steps=60, batch_size=8, lr=3e-2, warmup=5, validate_every=20)
    editor = make_editor(family)
    examples = Examples.of(editor.family, inrs, images)
    train_editor(editor, inrs, images, config=config, validation=(inrs, images))
    for name, one in examples.scores(editor)[1].items():
        assert one["share"] < 0.6, name


def test_a_training_that_is_restored_goes_on_as_if_nothing_had_been() -> None:
    inrs, images = make_inrs(), make_images()

    def start() -> EditorTraining:
        return EditorTraining(make_editor(), inrs, images, config=SHORT, validation=(inrs, images))

    whole, part = start(), start()
    for training in (whole, part):
        for _ in range(3):
            training.advance()
    resumed = start()
    resumed.restore({key: value.clone() for key, value in part.tensors().items()}, part.counters())
    records = []
    for training in (whole, resumed):
        training.advance()
        records.append(training.validate()["validation"])
    assert records[0] == records[1]
    torch.testing.assert_close(resumed.tensors(), whole.tensors(), rtol=0, atol=0)


class OneOf(Processes):
    """A process of several that run one after another: the sum is taken later."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


def test_processes_share_the_gradient_of_the_batch() -> None:
    inrs, images = make_inrs(), make_images().double()
    inrs = inrs.with_params({name: value.double() for name, value in inrs.params.items()})
    config = TrainEditorConfig(batch_size=5, max_norm=torch.inf)
    losses, gradients, errors = [], [], []
    for processes in (Processes(), OneOf(0, 2), OneOf(1, 2)):
        training = EditorTraining(
            make_editor().double(),
            inrs,
            images,
            config=config,
            validation=(inrs, images),
            processes=processes,
        )
        losses.append(training.gradient()[0])
        gradients.append([p.grad for p in training.editor.parameters()])
        errors.append(training.validate()["validation"])
    assert sum(losses[1:]) == pytest.approx(losses[0], rel=1e-12)
    assert sum(errors[1:]) == pytest.approx(errors[0], rel=1e-12)
    for one, *parts in zip(*gradients, strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(0), one, rtol=1e-9, atol=1e-15)


# Pictures


def test_a_chosen_edit_edits_pictures_as_an_editor_of_one() -> None:
    editor, picture = make_editor(), make_images(1)[0].repeat(2, 2, 1)
    chain = [ChosenEdit(editor, "invert"), ChosenEdit(editor, "blur(sigma=1.0)")]
    assert [each.config.edit for each in chain] == ["invert", "blur"]
    done = edit_picture(picture, chain)
    assert done.exact is not None
    torch.testing.assert_close(done.exact, get_edit("blur")(1 - picture[None])[0])
    with pytest.raises(ValueError, match=r"editor 1 learned several edits, .*ChosenEdit\(editor, 'dilate'\)"):
        edit_picture(picture, editor)
    with pytest.raises(ValueError, match=r"is 3\.0, expected 0\.5 to 2"):
        ChosenEdit(editor, "blur(sigma=3)")


def test_a_sweep_of_a_parameter() -> None:
    editor = make_editor()
    tiled = fit_picture(make_images(1)[0], SIREN, (4, 3))
    sweep = list(parameter_sweep(tiled, editor, ["invert", "blur(sigma=1..2)"], [0.0, 0.5, 1.0]))
    for found, sigma in zip(sweep, (1, 1.5, 2), strict=True):
        chain = [ChosenEdit(editor, "invert"), ChosenEdit(editor, f"blur(sigma={sigma})")]
        assert torch.equal(found.render(), edit_tiles(tiled, chain).render())
    assert not torch.equal(sweep[0].render(), sweep[2].render())
    with pytest.raises(ValueError, match=r"expected 0\.5 to 2"):
        list(parameter_sweep(tiled, editor, "blur(sigma=1..3)", [0.0, 1.0]))
