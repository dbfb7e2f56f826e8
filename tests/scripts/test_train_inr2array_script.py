"""The command line that trains an Inr2Array: a small run, the same again, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from editors import InrSet
from editors.inr2array import Inr2Array, InrClassifier
from scripts.train_inr2array import main

SMALL = [
    "--counts", "12", "4", "9", "--views=1", "--fit.steps=2", "--channels=8", "--latent-channels=8",
    "--grid", "2", "2", "--training.steps=4", "--training.batch-size=4", "--training.validate-every=2",
    "--arrays.training.steps=4", "--arrays.training.validate-every=2", "--arrays.classifier.width=8",
]  # fmt: skip


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    values = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=values, labels=np.arange(30) % 3)
    return [f"--images={tmp_path / 'images.npz'}", f"--out={tmp_path / 'out'}", *SMALL]


def test_a_run_and_the_same_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words) == 0
    result = json.loads((out / "result.json").read_text())
    assert set(result["metrics"]) == {"accuracy", "neighbour_accuracy", "reconstruction_mse"}
    assert f"written: {out}" in capsys.readouterr().out
    test = InrSet.load(out / "inrs_test.safetensors")
    assert Inr2Array.load(out / "inr2array.safetensors").embed(test).shape == (9, 4, 8)
    assert InrClassifier.load(out / "classifier.safetensors").predict(test).shape == (9,)
    for name in ("map", "neighbours", "reconstructions"):
        assert (out / f"{name}.png").exists()
    views = [InrSet.load(out / f"inrs_train_{view}.safetensors") for view in range(2)]
    assert not views[0].params["layers.0.weight"].equal(views[1].params["layers.0.weight"])
    assert main(words) == 2
    assert "holds another run" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    again = json.loads((out / "result.json").read_text())
    assert again["metrics"] == result["metrics"]


def test_refusals(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--body=conv"])
    assert "invalid choice 'conv'" in capsys.readouterr().err
    assert main([*words, "--grid", "3", "2"]) == 2
    assert "that divide (height, width)" in capsys.readouterr().err
