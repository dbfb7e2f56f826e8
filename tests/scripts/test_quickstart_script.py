"""The main job end to end at a small size: what it makes, what it refuses, and going on after an interrupt."""

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
from PIL import Image
from torch import nn

from editors import Editor, InrSet
from nfn_opt import LearnedOptimizer
from nfn_opt.data import load_images
from nfn_opt.meta.run import Run
from nfn_opt.optim import load_rule
from scripts.quickstart import DEFAULT_OUT, free_folder, main

SMALL = [
    "--rule=mlp",
    "--hidden=4",
    "--batch-size=16",
    "--inner-steps=4",
    "--meta-steps=2",
    "--classifier-seeds=1",
    "--inrs=16",
    "--editor-steps=2",
]

METRICS = {
    "symmetry/output_change",
    "optimizer/adam_best_lr",
    *(
        f"optimizer/{name}_{what}"
        for name in ("adam", "learned")
        for what in ("final_loss", "final_loss_max", "accuracy")
    ),
    "editor/inr_psnr_db",
    "editor/no_edit_error",
    "editor/mean_image_error",
    "editor/learned_edit_error",
    "editor/share_of_no_edit",
    *(f"seconds/{part}" for part in ("symmetry", "optimizer", "editor")),
}


def save_images(path: Path, count: int = 24, colour: bool = False) -> Path:
    """Some of the digits."""
    data = load_images("digits").subset(count)
    images = data.images.expand(-1, -1, -1, 3) if colour else data.images
    np.savez(path, images=images.numpy(), labels=data.labels.numpy())
    return path


def no_steps(*_: Any) -> None:
    pytest.fail("meta-training was done again")


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def metrics(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "result.json").read_text())["metrics"]
    return {name: value for name, value in found.items() if not name.startswith("seconds/")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a finished run, and its arguments."""
    folder = tmp_path_factory.mktemp("quickstart")
    out = folder / "run"
    arguments = [f"--out={out}", f"--images={save_images(folder / 'some.npz')}", *SMALL]
    assert main(arguments) == 0
    return out, arguments


def test_everything_is_made(finished: tuple[Path, list[str]]) -> None:
    out, arguments = finished
    assert "h1 (8), h2 (12)" in (out / "symmetry.txt").read_text()
    for name in ("optimizer.png", "editor.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    rule = load_rule(out / "optimizer" / "rule.safetensors")
    model = nn.Linear(3, 2)
    optimizer = LearnedOptimizer(model.parameters(), rule=rule)
    before = model.weight.detach().clone()
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    editor = Editor.load(out / "editor.safetensors")
    inrs = InrSet.load(out / "inrs_test.safetensors")
    assert editor(inrs).render().shape == (5, 8, 8, 1)
    config = json.loads((out / "config.json").read_text())
    result = json.loads((out / "result.json").read_text())
    assert config["config"] == result["config"]
    assert result["config"]["inner_steps"] == 4
    assert result["config"]["out"] == str(out)
    assert shlex.split(result["command"]) == ["./scripts/quickstart", *arguments]
    assert result["metrics"].keys() == METRICS
    assert all(isinstance(value, float) for value in result["metrics"].values())
    assert not list(out.rglob(".*"))


def test_a_used_folder_is_refused(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "holds another run, expected a new or empty one" in error
    assert main([*arguments, "--resume", "--edit=blur"]) == 2
    assert "edit was 'dilate', now 'blur'" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_interrupt_in_the_editor_stage_and_going_on(
    finished: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, arguments = finished
    arguments = [f"--out={tmp_path / 'run'}", *arguments[1:]]
    for draw in (
        "scripts.quickstart._draw_trainings",
        "scripts.quickstart.draw_rows",
        "nfn_opt.meta.evaluations.draw_curves",
    ):  # slow, and looked at above
        monkeypatch.setattr(draw, lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr("scripts.quickstart.train_editor", interrupted)
        assert main(arguments) == 130
    stopped = capsys.readouterr().err.strip().splitlines()
    assert "what is complete is kept" in stopped[-2]
    assert shlex.split(stopped[-1]) == ["./scripts/quickstart", *arguments, "--resume"]
    assert not (tmp_path / "run" / "result.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", no_steps)
        patch.setattr("scripts.quickstart.fit", no_steps)
        assert main(shlex.split(stopped[-1])[1:]) == 0
    assert metrics(tmp_path / "run") == metrics(whole)
    with monkeypatch.context() as patch:  # and a finished one
        for work in ("fit", "train_editor"):
            patch.setattr(f"scripts.quickstart.{work}", no_steps)
        patch.setattr(Run, "advance", no_steps)
        assert main([*arguments, "--resume"]) == 0
    assert metrics(tmp_path / "run") == metrics(whole)


def test_ctrl_c_in_meta_training_and_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [f"--images={save_images(Path('some.npz'), 20, colour=True)}", *SMALL]
    advance = Run.advance

    def advance_and_stop(run: Run) -> dict[str, Any]:
        row = advance(run)
        signal.raise_signal(signal.SIGINT)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", advance_and_stop)
        assert main(arguments) == 130
    assert (DEFAULT_OUT / "optimizer" / "train.csv").read_text().count("\n") == 2
    last = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
    assert last == ["./scripts/quickstart", *arguments, "--out", str(DEFAULT_OUT), "--resume"]
    assert main(last[1:]) == 0
    assert (DEFAULT_OUT / "optimizer" / "train.csv").read_text().count("\n") == 3
    assert (DEFAULT_OUT / "editor.png").exists()
    assert InrSet.load(DEFAULT_OUT / "inrs_train.safetensors").config.out_channels == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=digit"], "did you mean 'digits'"),
        (["--images=missing.npz"], "missing.npz"),
        (["--images=few.npz"], "few.npz has 9 images of 8 x 8 pixels, expected at least 10"),
        (["--edit=dilat"], "did you mean 'dilate'"),
        (["--edit=sepia"], "have 1 channel, expected 3 (colour)"),
        (["--rule=mpl"], "did you mean 'mlp'"),
        (["--inner-steps=35"], "inner_steps is 35, expected up to 10 or a multiple of it"),
        (["--editor-steps=0"], "editor_steps is 0, expected at least 1"),
        (["--meta-steps=0"], "meta_steps is 0"),
        (["--classifier-seeds=0"], "classifier_seeds is 0"),
        (["--inrs=-1"], "inrs is -1"),
        (["--resume"], "there is no run to resume in run"),
        (["--out=few.npz"], "few.npz is a file, expected a folder"),
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
    save_images(Path("few.npz"), 9)
    assert main(["--out=run", *SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["few.npz"]


def test_resuming_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", *SMALL]) == 2
    assert "give --out" in capsys.readouterr().err


def test_the_default_folder_is_a_new_one(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "run") == tmp_path / "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
    assert free_folder(tmp_path / "run") == tmp_path / "run-3"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for option in ("--out", "--images", "--inner-steps", "--editor-steps", "--resume"):
        assert option in text
