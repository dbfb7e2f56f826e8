"""Training runs in folders: what they write, exact resumption, stops, refusals, sources of INRs."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editors import Editor, InrSet, SirenConfig, editing_error, fit, get_edit
from editors.training import EditorTraining, TrainEditorConfig
from editors.training_runs import (
    EditorRunConfig,
    EditorRunFolder,
    EditorRunResult,
    FittingConfig,
    load_source,
    run_training,
)
from nfn_opt.artifacts import ArtifactError, load_artifact
from nfn_opt.data import load_images
from nfn_opt.functionals import EquivariantConfig
from nfn_opt.meta.stopping import Agenda

BODY = EquivariantConfig(
    hidden_channels=4, hidden_layers=1, fourier_frequencies=2, position_bands=1, out_scale=0.1
)
TRAINING = TrainEditorConfig(steps=6, batch_size=4, lr=1e-2, warmup=2, validate_every=2, give_up_after=2)
DRAWN = ("editors.training_runs.run.draw_rows", "editors.training_runs.run.draw_training")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are slow, and looked at in a test of the script."""
    for draw in DRAWN:
        monkeypatch.setattr(draw, lambda *_, **__: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of fourteen smooth coloured images."""
    rng = np.random.default_rng(0)
    ramps = np.linspace(0, 1, 6)[None, :, None, None] * rng.random((14, 1, 6, 3))
    path = tmp_path_factory.mktemp("images") / "some.npz"
    np.savez(path, images=ramps.astype(np.float32), labels=np.arange(14) % 2)
    return path


def config(out: Path, file: Path, /, **changes: Any) -> EditorRunConfig:
    small = EditorRunConfig(
        out=out,
        edit="invert",
        images=str(file),
        size=None,
        inrs=8,
        held_out=3,
        fitting=FittingConfig(hidden_width=4, hidden_layers=1, steps=3),
        body=BODY,
        training=TRAINING,
        checkpoint_every=2,
        quiet=True,
    )
    return dataclasses.replace(small, **changes)


def rows(path: Path) -> list[Mapping[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def stopped_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the time of a sitting be over after a step."""
    after = Agenda.after

    def over(self: Agenda, made: int) -> Any:
        due = after(self, made)
        return dataclasses.replace(due, time_over=made == step, checkpoint=due.checkpoint or made == step)

    monkeypatch.setattr(Agenda, "after", over)


def assert_same(one: EditorRunResult, other: EditorRunResult) -> None:
    """Check that two runs agree, bit for bit."""
    for name in ("train_log", "validation_log"):
        assert rows(getattr(one.folder, name)) == rows(getattr(other.folder, name))
    stored = [load_artifact(run.folder.checkpoint, kind="editor_training") for run in (one, other)]
    torch.testing.assert_close(stored[0][0], stored[1][0], rtol=0, atol=0)
    counters = [dict(metadata["progress"]) for _, metadata in stored]
    for each in counters:
        each["seconds"] = 0
        each["history"] = [{**record, "seconds": 0} for record in each["history"]]
    assert counters[0] == counters[1]
    tensors = [Editor.load(run.folder.editor).state_dict() for run in (one, other)]
    torch.testing.assert_close(tensors[0], tensors[1], rtol=0, atol=0)
    assert one.scores == other.scores


def no_fit(*_: Any, **__: Any) -> Any:
    raise AssertionError("INRs are fitted again")


def test_what_a_run_writes(tmp_path: Path, images: Path) -> None:
    result = run_training(config(tmp_path / "run", images), command="python train.py")
    folder = result.folder
    assert (result.finished, result.stopped_by, result.step) == (True, None, 6)
    assert {path.name for path in folder.path.iterdir()} == {
        "config.json",
        "train.csv",
        "validation.csv",
        "checkpoint.safetensors",
        "checkpoint_before.safetensors",
        "inrs_train.safetensors",
        "inrs_validation.safetensors",
        "inrs_test.safetensors",
        "editor.safetensors",
        "result.json",
    }
    stored = json.loads(folder.config.read_text())
    assert stored["command"] == "python train.py"
    assert stored["config"]["seed"] == 0
    assert "versions" in stored["environment"]
    assert [row["step"] for row in rows(folder.train_log)] == list("123456")
    validations = rows(folder.validation_log)
    assert [row["step"] for row in validations] == list("246")
    editor = Editor.load(folder.editor)
    best = min(validations, key=lambda row: float(row["validation"]))
    record = editor.metadata
    assert str(record["step"]) == best["step"]
    assert record["scores"] == result.scores["test"]
    assert record["validation_scores"]["error"] == float(best["validation"])
    assert (record["inrs"], record["data"], record["command"]) == (8, "some.npz, gray", "python train.py")
    source = load_source(config(tmp_path, images))["test"]
    inrs = InrSet.load(folder.path / "inrs_test.safetensors")
    expected = editing_error(editor, inrs, get_edit("invert")(source.images.images))
    assert result.scores["test"]["error"] == expected
    written = json.loads(folder.result.read_text())
    assert written["metrics"]["test/error"] == expected
    assert written["metrics"].keys() == {
        f"{part}/{key}" for part, scores in result.scores.items() for key in scores
    }
    assert (written["steps"], written["stopped_early"], written["skipped_steps"]) == (6, False, 0)
    assert written["config"] == stored["config"]


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, 3),
        ({"training": dataclasses.replace(TRAINING, schedule="constant", patience=2, lr=0.1)}, 2),
        ({"gray": False, "symmetry": "hidden", "canonical": False}, 4),
        ({"edit": "blur(sigma=0.5..2), invert"}, 3),
    ],
    ids=["between validations", "patience", "colour", "several edits"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    changes: dict[str, Any], step: int, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_training(config(tmp_path / "whole", images, **changes))
    part = config(tmp_path / "part", images, **changes)
    with monkeypatch.context() as patch:
        stopped_after(patch, step)
        stopped = run_training(part)
    assert (stopped.step, stopped.finished, stopped.stopped_by, stopped.scores) == (step, False, None, {})
    monkeypatch.setattr("editors.training_runs.data.fit", no_fit)
    resumed = run_training(dataclasses.replace(part, minutes=60.0, checkpoint_every=5), resume=True)
    assert_same(whole, resumed)
    again = run_training(part, resume=True)  # a finished run is measured again
    assert again.scores == whole.scores


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(
    number: signal.Signals, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = EditorTraining.advance

    def advance_and_stop(self: EditorTraining) -> dict[str, float]:
        row = advance(self)
        if self.step == 3:
            signal.raise_signal(number)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(EditorTraining, "advance", advance_and_stop)
        stopped = run_training(config(tmp_path / "run", images))
    assert (stopped.step, stopped.finished, stopped.stopped_by) == (3, False, number)
    assert Editor.load(stopped.folder.editor).metadata["step"] == 2
    assert run_training(config(tmp_path / "run", images), resume=True).finished


def test_an_interrupt_while_fitting_keeps_what_is_complete(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def second_is_interrupted(*arguments: Any, **options: Any) -> InrSet:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr("editors.training_runs.data.fit", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_training(config(tmp_path / "run", images))
    assert run_training(config(tmp_path / "run", images), resume=True).finished
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"training": dataclasses.replace(TRAINING, lr=0.5)}, r"training.lr was 0\.01, now 0\.5"),
        ({"body": dataclasses.replace(BODY, hidden_channels=5)}, "body.hidden_channels was 4, now 5"),
        ({"edit": "dilate", "seed": 3}, "edit was 'invert', now 'dilate'; seed was 0, now 3"),
    ],
)
def test_options_that_change_the_numbers_are_refused(
    changes: dict[str, Any], match: str, tmp_path: Path, images: Path
) -> None:
    folder = EditorRunFolder(tmp_path)
    folder.claim(config(tmp_path, images).record(), "")
    with pytest.raises(ValueError, match=match):
        run_training(config(tmp_path, images, **changes), resume=True)


def test_folders_that_cannot_be_used(tmp_path: Path, images: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        run_training(config(tmp_path / "none", images), resume=True)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        run_training(config(tmp_path, images))
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_images_that_have_changed_since(tmp_path: Path, images: Path) -> None:
    copy = tmp_path / "copy.npz"
    copy.write_bytes(images.read_bytes())
    small = config(tmp_path / "run", copy, training=dataclasses.replace(TRAINING, steps=1))
    run_training(small)
    np.savez(copy, images=np.zeros((14, 6, 6)), labels=np.arange(14) % 2)
    with pytest.raises(ValueError, match=r"holds INRs of other images than those of .*copy\.npz"):
        run_training(small, resume=True)


def test_a_damaged_checkpoint(tmp_path: Path, images: Path) -> None:
    folder = run_training(config(tmp_path / "run", images)).folder
    folder.checkpoint.write_bytes(b"broken")
    with pytest.raises(ArtifactError, match=r"copy .*checkpoint_before.* and resume"):
        run_training(config(tmp_path / "run", images), resume=True)
    scores = json.loads(folder.result.read_text())["metrics"]
    folder.checkpoint.write_bytes(folder.previous.read_bytes())
    again = run_training(config(tmp_path / "run", images), resume=True)
    assert again.scores["test"]["error"] == scores["test/error"]


def break_steps(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    gradient = EditorTraining.gradient

    def broken(self: EditorTraining) -> tuple[float, float]:
        error, norm = gradient(self)
        return (float("nan"), norm) if self.step in steps else (error, norm)

    monkeypatch.setattr(EditorTraining, "gradient", broken)


def test_single_steps_that_are_not_finite_are_skipped(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, {1, 3})
    result = run_training(config(tmp_path / "run", images))
    assert result.finished
    assert [row["skipped"] for row in rows(result.folder.train_log)] == list("011222")
    assert json.loads(result.folder.result.read_text())["skipped_steps"] == 2


def test_many_in_a_row_end_the_run_with_the_best_weights_kept(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_training(config(tmp_path / "whole", images))
    folder = EditorRunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        break_steps(patch, {3, 4})
        with pytest.raises(
            FloatingPointError, match=r"nan at step 4, as in 2 steps .* best weights so far are in"
        ):
            run_training(config(folder.path, images))
    assert folder.diverged.exists()
    assert Editor.load(folder.editor).metadata["step"] in (2, 4)
    assert folder.last_good() is not None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(FloatingPointError, match="nan at step 4"):  # a restart would do the same
        run_training(config(folder.path, images))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    again = run_training(config(folder.path, images), resume=True)  # nothing breaks it now
    assert_same(whole, again)
    assert not folder.diverged.exists()


def test_a_process_that_is_started_again_resumes(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        run_training(config(tmp_path / "run", images))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr("editors.training_runs.data.fit", no_fit)
    assert run_training(config(tmp_path / "run", images)).finished


def test_an_editor_of_coloured_inrs(tmp_path: Path, images: Path) -> None:
    options: dict[str, Any] = {"gray": False, "symmetry": "hidden", "canonical": False}
    editor = Editor.load(run_training(config(tmp_path / "run", images, **options)).folder.editor)
    made = editor.config
    assert made.siren == SirenConfig(hidden_width=4, hidden_layers=1, out_channels=3, omega_0=7.5)
    assert (made.symmetry, made.canonical, made.body, made.image_size) == ("hidden", False, BODY, (6, 6))
    assert editor.metadata["data"] == "some.npz"


def test_inrs_of_a_file(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    siren = SirenConfig(hidden_width=8, hidden_layers=1, omega_0=5.0)
    inrs = fit(load_images(images, gray=True), config=siren, steps=60)
    unknown = dataclasses.replace(inrs, psnr=torch.full((14,), torch.nan), meta={"from": "elsewhere"})
    file = unknown.save(tmp_path / "inrs.safetensors")
    monkeypatch.setattr("editors.training_runs.data.fit", no_fit)
    result = run_training(config(tmp_path / "run", images, inrs=file))
    assert result.editor.config.siren == siren
    used = InrSet.load(tmp_path / "run" / "inrs_train.safetensors")
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))[6:]
    torch.testing.assert_close(dict(used.params), dict(inrs[order].params), rtol=0, atol=0)
    torch.testing.assert_close(used.psnr, inrs.psnr[order], rtol=1e-3, atol=1e-3)
    assert used.meta["from"] == "elsewhere"
    shown = run_training(config(tmp_path / "shown", images, images="rendered", inrs=file))
    assert shown.finished
    assert Editor.load(shown.folder.editor).metadata["data"] == "rendered inrs.safetensors"
    for changes, match in (
        ({"gray": False}, r"have shape \(14, 6, 6, 3\), expected \(14, 6, 6, 1\)"),
        ({"images": "photos"}, "expected a number of INRs and a size, or the images"),
        ({"inrs": Path("missing.safetensors")}, "missing.safetensors"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            run_training(config(tmp_path / "other", images, **{"inrs": file, **changes}))
    turned = inrs[torch.arange(14).flip(0)].save(tmp_path / "turned.safetensors")
    with pytest.raises(ValueError, match="do not show the images"):
        run_training(config(tmp_path / "other", images, inrs=turned))
    assert not (tmp_path / "other").exists()


def test_the_parts_are_disjoint() -> None:
    small = EditorRunConfig(out=Path("unused"), images="digits", size=8, inrs=20, held_out=5)
    parts = load_source(small)
    assert {name: len(part.images) for name, part in parts.items()} == {
        "validation": 5,
        "test": 5,
        "train": 20,
    }
    together = torch.cat([part.images.images.flatten(1) for part in parts.values()])
    assert len(together.unique(dim=0)) == 30


def test_tensorboard(tmp_path: Path, images: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    result = run_training(config(tmp_path / "run", images, tensorboard=True))
    events = EventAccumulator(str(result.folder.tensorboard)).Reload()
    assert {"train/error", "train/lr", "validation/validation"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("validation/validation")] == [2, 4, 6]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"out": Path("a.safetensors")}, "expected a folder: the editor will be the file editor.safetensors"),
        ({"inrs": 0}, "inrs is 0, expected at least 1"),
        ({"held_out": 0}, "held_out is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"minutes": 0.0}, r"minutes is 0\.0, expected a positive number"),
        ({"images": "rendered"}, "expected a file of INRs"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EditorRunConfig(**{"out": Path("x"), **options})
