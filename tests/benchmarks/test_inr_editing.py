"""Learned edits beside the reference: records that survive a stop, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nfn")

from benchmarks import inr_editing
from benchmarks.inr_editing_records import Records, Trained

ONE = Trained(error=0.1, seconds=2.0, steps=3, parameters=4)


def test_a_finished_training_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []

    def make() -> Trained:
        made.append(1)
        return ONE

    for _ in range(2):
        records = Records(tmp_path / "trainings.json", {"steps": 3, "counts": (1, 2)}, no_edit=0.4)
        assert records.once("default", 0, make) == ONE
        records.once("default", 1, make)
        assert records.found == {"default": [ONE, ONE]}
    assert len(made) == 2
    assert "default, seed 1: error 0.1000, 0.250 of no edit, 3 steps in 2 s" in capsys.readouterr().out


def test_other_conditions_are_refused(tmp_path: Path) -> None:
    Records(tmp_path / "trainings.json", {"steps": 3}, 0.4).once("default", 0, lambda: ONE)
    with pytest.raises(ValueError, match=r"under other conditions: .*steps.*give another folder"):
        Records(tmp_path / "trainings.json", {"steps": 4}, 0.4)


def test_a_run_that_goes_on_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.zeros(30, np.uint8))
    monkeypatch.setattr(
        inr_editing, "QUICK", inr_editing.Protocol(counts=(16, 4, 8), steps=2, batch_size=4, seeds=1)
    )
    monkeypatch.setattr(inr_editing, "REFITS", (1, 2))
    command = [
        "--quick",
        "--images",
        str(tmp_path / "images.npz"),
        "--body-seeds",
        "0",
        "--timed-seeds",
        "0",
        "--warmup-seeds",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    inr_editing.main(command)
    first = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(first["editors"]) == {"nfn NP", "default, same steps"}
    assert 0 < first["no_edit"] < 4
    assert first["editors"]["default, same steps"][0]["steps"] == 2
    for name in ("inr_editing.png", "examples.png", "inr_editing.md", "editor.safetensors"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    monkeypatch.setattr(inr_editing, "train_reference", None)
    inr_editing.main(command)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["editors"] == first["editors"]


def test_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of them to be at least 1"):
        inr_editing.main(["--quick", "--seeds", "0", "--body-seeds", "0", "--out", str(tmp_path)])
