"""The benchmark of INR classification: it runs, says the same again, and its table compares like with like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.inr_classification import main
from benchmarks.inr_classification_report import interval, metrics, table
from benchmarks.kept_trainings import KeptTrainings

pytest.importorskip("nfn")


def one(accuracy: float, seconds: float = 2.0) -> dict[str, Any]:
    return {"accuracy": accuracy, "processor_seconds": seconds, "steps": 10, "parameters": 1000}


def test_the_table_and_its_numbers() -> None:
    found = {
        "Inr2Array": [one(0.9), one(0.8)],
        "direct NP": [one(0.6, 3.0), one(0.7, 3.0)],
        "flat MLP": [one(0.2)],
    }
    text = table(found, "direct NP", {"Inr2Array": 98.5})
    assert "| Inr2Array | 1,000 | 10 | 2 | 85.0 ± 63.5 | 2 | 20.0 ± 127.1 | 98.5 |" in text
    assert "| flat MLP | 1,000 | 10 | 2 | 20.0 | 1 | -40.0 |  |" in text
    numbers = metrics(found, "Inr2Array", "direct NP")
    assert numbers["gain"] == pytest.approx(20)
    assert numbers["gain_low"] == pytest.approx(20 - 127.06, abs=0.01)
    assert numbers["processor_seconds_ratio"] == pytest.approx(1.5)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 0.0)


def test_kept_trainings(tmp_path: Path) -> None:
    path = tmp_path / "trainings.json"
    assert KeptTrainings(path, {"steps": 4}).once("a", 0, lambda: one(0.5)) == one(0.5)

    def again() -> dict[str, Any]:
        raise AssertionError("made twice")

    assert KeptTrainings(path, {"steps": 4}).once("a", 0, again) == one(0.5)
    with pytest.raises(ValueError, match="steps was 4, now 5"):
        KeptTrainings(path, {"steps": 5})


def test_a_quick_run_and_the_same_again(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (130, 8, 8), dtype=np.uint8)
    images = tmp_path / "images.npz"
    np.savez(images, images=drawn, labels=np.arange(130) % 10)
    words = ["--quick", f"--images={images}", f"--out={tmp_path / 'out'}"]
    main(words)
    out = tmp_path / "out"
    result = json.loads((out / "result.json").read_text())
    assert set(result["metrics"]) >= {
        "Inr2Array/accuracy",
        "direct NP/accuracy",
        "gain",
        "neighbour_accuracy",
    }
    assert len(result["trainings"]["Inr2Array"]) == 2
    for name in ("map", "neighbours", "reconstructions"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    before = (out / "inr_classification.md").read_text()
    main(words)
    assert (out / "inr_classification.md").read_text() == before
    with pytest.raises(ValueError, match=r"direct\.steps was 4, now 5"):
        main([*words, "--direct-steps=5"])
