"""The command line that trains an editor: a small run, and refusals that write nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from editors import Editor, fit
from scripts.train_editor import TrainEditorRun, load, main

SMALL = ["--size=6", "--inrs=8", "--held-out=3", "--training.steps=2", "--training.batch-size=4"]


def save_images(path: Path, count: int = 12) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 7, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 2)
    return path


def test_a_run_on_photo_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "editor.safetensors"
    assert main([f"--out={out}", "--edit=invert", *SMALL]) == 0
    printed = capsys.readouterr().out
    editor = Editor.load(out)
    record = editor.metadata
    assert editor.config.edit == "invert"
    assert editor.config.image_size == (6, 6)
    assert record["command"] == f"python scripts/train_editor.py --out={out} --edit=invert {' '.join(SMALL)}"
    assert record["inrs"] == 8
    assert record["training"]["steps"] == 2
    assert record["data"] == "photo patches, seed 0"
    assert f"held-out error {record['scores']['error']:.4f}" in printed
    assert f"without edit {record['scores']['no_edit_error']:.4f}" in printed
    assert [entry["step"] for entry in record["history"]] == [2]
    assert {"versions", "git_revision", "cpu"} <= record["environment"].keys()
    json.dumps(record)
    inrs = fit(torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)), steps=2)
    assert editor(inrs).render().shape == (2, 6, 6, 1)


def test_a_run_on_coloured_images_of_a_file(tmp_path: Path) -> None:
    images, out = save_images(tmp_path / "a.npz"), tmp_path / "editor.safetensors"
    assert main([f"--out={out}", f"--images={images}", *SMALL]) == 0
    record = Editor.load(out).metadata
    assert record["inrs"] == 6
    assert record["data"] == "a.npz, gray, 6 x 6"


def test_the_parts_are_disjoint() -> None:
    parts = load(TrainEditorRun(out=Path("unused"), images="digits", size=8, inrs=20, held_out=5))
    assert {part: len(images) for part, images in parts.items()} == {
        "validation": 5,
        "test": 5,
        "train": 20,
    }
    together = torch.cat([images.images.flatten(1) for images in parts.values()])
    assert len(together.unique(dim=0)) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--edit=dilat"], "did you mean 'dilate'"),
        (["--edit=blur(sigma=0)"], "sigma of the edit 'blur' is 0.0, expected a number from 0.1"),
        (["--edit=sepia"], "have 1 channel, expected 3 (colour)"),
        (["--images=digit"], "did you mean 'digits'"),
        (["--size=0"], "size 0, expected"),
        (["--held-out=0"], "held_out 0, expected at least 1"),
        (["--inrs=0"], "inrs is 0"),
        (["--images=few.npz", "--held-out=6"], "has 12 images, expected more than 2 * held_out = 12"),
        (["--training.lr=1e30"], "lower lr"),
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
    assert main(["--out=new/editor.safetensors", *SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert message in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["few.npz"]


def test_a_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "editor.safetensors"
    out.write_text("precious")
    assert main([f"--out={out}", *SMALL]) == 2
    assert "exists, expected a new file; give another name" in capsys.readouterr().err
    assert out.read_text() == "precious"


def test_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.train_editor.train_editor", interrupted)
    assert main([f"--out={tmp_path / 'editor.safetensors'}", *SMALL]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main([f"--out={tmp_path / 'a.safetensors'}", *SMALL, "--threads=3", "--edit=nothing"]) == 2
    assert asked == [3]
