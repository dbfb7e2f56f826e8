"""The command line that trains an editor: help, a whole run, refusals, stops that say how to go on."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editors import Editor, fit
from editors.training import EditorTraining
from scripts.train_editor import main

SMALL = [
    "--size=6",
    "--inrs=8",
    "--held-out=3",
    "--fitting.steps=3",
    "--fitting.hidden-width=4",
    "--body.hidden-channels=4",
    "--body.hidden-layers=1",
    "--training.steps=4",
    "--training.batch-size=4",
    "--training.validate-every=2",
    "--quiet",
]


def save_images(path: Path, count: int = 12) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 7, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 2)
    return path


def test_a_run_on_photo_patches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    out = tmp_path / "new" / "run"
    arguments = [f"--out={out}", "--edit=invert", *SMALL, "--threads=1"]
    assert main(arguments) == 0
    assert threads[0] == 1
    printed = capsys.readouterr().out
    editor = Editor.load(out / "editor.safetensors")
    record = editor.metadata
    assert editor.config.edit == "invert"
    assert editor.config.image_size == (6, 6)
    assert (editor.config.body.hidden_channels, editor.config.body.norm) == (4, True)
    assert record["command"] == shlex.join(["python", "scripts/train_editor.py", *arguments])
    assert record["inrs"] == 8
    assert record["training"]["steps"] == 4
    assert record["data"] == "photo patches, seed 0"
    scores = record["scores"]
    row = re.search(r"^test +3 +(\S+) .* (\S+) +(\d+)%$", printed, re.MULTILINE)
    assert row is not None
    assert row[1] == f"{scores['error']:.4f}"
    assert row[2] == f"{scores['no_edit_error']:.4f}"
    assert row[3] == f"{100 * scores['share']:.0f}"
    assert str(out / "editor.safetensors") in printed
    for picture in ("samples.png", "curves.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob(".*"))
    inrs = fit(
        torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)), steps=2, config=editor.config.siren
    )
    assert editor(inrs).render().shape == (2, 6, 6, 1)


def test_a_run_for_several_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([f"--out={out}", "--edit=blur(sigma=0.5..2),invert", *SMALL]) == 0
    printed = capsys.readouterr().out
    editor = Editor.load(out / "editor.safetensors")
    assert editor.config.edit == "blur(sigma=0.5..2), invert"
    assert list(editor.metadata["scores_by_edit"]) == ["blur(sigma=0.5..2)", "invert"]
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    for edit, scores in editor.metadata["scores_by_edit"].items():
        for key in ("error", "no_edit_error"):
            assert metrics[f"test/{edit}/{key}"] == scores[key]
        row = re.search(rf"^test/{re.escape(edit)} +3 +(\S+) .* (\S+) +\d+%$", printed, re.MULTILINE)
        assert row is not None
        assert row[2] == f"{scores['no_edit_error']:.4f}"
    assert metrics["test/images"] == 6
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_help_explains_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for option, explanation in (
        ("--out", "Folder to write to"),
        ("--gray", "Turn the images gray"),
        ("--inrs", "INRs to train on"),
        ("--training.patience", "End after so many"),
        ("--body.hidden-channels", "Channels of every hidden"),
        ("--resume", "Go on with the run"),
    ):
        assert re.search(rf"{re.escape(option)}[ ,].*?{re.escape(explanation)}", text), option


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--edit=dilat"], "did you mean 'dilate'"),
        (["--edit=blur(sigma=0)"], "sigma of the edit 'blur' is 0.0, expected a number from 0.1"),
        (["--edit=sepia"], "have 1 channel, expected 3 (colour)"),
        (["--edit=blur, sepia"], "have 1 channel, expected 3 (colour)"),
        (["--edit=blur(sigma=2..1)"], "goes from 2 to 1, expected the smaller number first"),
        (["--images=digit"], "did you mean 'digits'"),
        (["--size=0"], "size is 0, expected"),
        (["--held-out=0"], "held_out is 0, expected at least 1"),
        (["--inrs=0"], "inrs is 0"),
        (["--inrs=none.safetensors", "--images=few.npz"], "none.safetensors"),
        (["--images=few.npz", "--held-out=6"], "has 12 images, expected more than 2 * held_out = 12"),
        (["--out=new.safetensors"], "expected a folder"),
        (["--body.in-channels=2"], "2 channels in"),
        (["--resume"], "no run to resume"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_images(Path("few.npz"))
    try:
        status: Any = main(["--out=new", *SMALL, *arguments])
    except SystemExit as refused:  # by the command line itself
        status = refused.code
    assert status == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", captured.err).split())
    assert [path.name for path in tmp_path.iterdir()] == ["few.npz"]


def test_a_folder_that_holds_something_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "editor.safetensors").write_text("precious")
    assert main([f"--out={tmp_path}", *SMALL]) == 2
    assert "holds other files, expected a new or empty one" in capsys.readouterr().err
    assert (tmp_path / "editor.safetensors").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_stopping_and_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--out={tmp_path / 'run'}", *SMALL]
    for draw in ("draw_rows", "draw_training"):
        monkeypatch.setattr(f"editors.training_runs.run.{draw}", lambda *_, **__: None)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("editors.training_runs.data.fit", interrupted)
        assert main(arguments) == 130
    going_on = capsys.readouterr().err.strip().splitlines()
    assert "INRs that are complete are kept" in going_on[-2]
    command = shlex.split(going_on[-1])
    assert command == ["python", "scripts/train_editor.py", *arguments, "--resume"]
    advance = EditorTraining.advance

    def advance_and_stop(self: EditorTraining) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(EditorTraining, "advance", advance_and_stop)
        assert main(command[2:]) == 128 + signal.SIGTERM
    printed = capsys.readouterr().out.strip().splitlines()
    assert "stopped by SIGTERM after step 1; everything is saved" in printed[0]
    assert shlex.split(printed[1]) == command
    assert main([*command[2:], "--minutes=1e-9"]) == 0
    assert "stopped by the end of its time after step 2" in capsys.readouterr().out
    assert main(command[2:]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4


def test_a_run_that_diverges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EditorTraining, "gradient", lambda _: (torch.nan, torch.nan))
    assert main([f"--out={tmp_path / 'run'}", *SMALL, "--training.give-up-after=2"]) == 3
    assert "error: the error is nan at step 1, as in 2 steps in a row; lower lr" in capsys.readouterr().err
