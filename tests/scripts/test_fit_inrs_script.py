"""The command line that fits a set of INRs: a small run, stopped and resumed, and refusals that write nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from editors import InrSet, SirenConfig
from scripts.fit_inrs import main

SMALL = ["--size=6", "--steps=2", "--width=5", "--shard-size=4"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (9, 8, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=values, labels=np.arange(9) % 2)
    return tmp_path / "images.npz"


def test_a_run(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "inrs.safetensors"
    words = [f"--images={images}", f"--out={out}", *SMALL, "--gray", "--count=7", "--omega=8", "--layers=1"]
    assert main([*words, "--pixels-per-step=9", "--schedule=cosine", "--seed=2"]) == 0
    inrs = InrSet.load(out)
    assert inrs.config == SirenConfig(hidden_width=5, hidden_layers=1, omega_0=8)
    assert (len(inrs), inrs.image_size) == (7, (6, 6))
    assert inrs.labels is not None
    assert inrs.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert inrs.meta["fit"]["schedule"] == "cosine"
    assert inrs.meta["fit"]["pixels_per_step"] == 9
    assert inrs.meta["source"]["name"] == "images.npz, gray, 6 x 6"
    assert inrs.meta["command"].startswith("python scripts/fit_inrs.py --images=")
    captured = capsys.readouterr()
    assert f"PSNR: mean {inrs.psnr.mean():.2f} dB, at least 40 dB: 0.0%\nwritten: {out}" in captured.out
    assert "7/7" in captured.err


def test_stop_and_resume(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--images={images}", f"--out={tmp_path / 'a.safetensors'}", *SMALL]
    with monkeypatch.context() as patch:

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("editors.fitting.fit_chunk", interrupted)
        assert main(words) == 130
    assert f"To go on:\n  python scripts/fit_inrs.py {' '.join(words)} --resume" in capsys.readouterr().err
    assert main(words) == 2
    assert "go on with it (resume)" in capsys.readouterr().err
    assert main([*words, "--resume", "--lr=1e-2"]) == 2
    assert "lr was 0.004, now 0.01" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert len(InrSet.load(tmp_path / "a.safetensors")) == 9
    assert not (tmp_path / "a.safetensors.parts").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images=digit"], "did you mean 'digits'"),
        (["--images=digits", "--count=2000"], "cannot take 2000 images of a set of 1797"),
        (["--images=digits", "--shard-size=0"], "shard_size must be >= 1"),
        (["--images=digits", "--device=nowhere"], "device is 'nowhere', which cannot be used here"),
        (["--images=digits", "--lr=-1"], "lr must be a positive finite number, got -1.0"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--out={tmp_path / 'a.safetensors'}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missed_targets_are_told(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--images={images}", f"--out={tmp_path / 'a.safetensors'}", *SMALL, "--target-psnr=80"]
    assert main(words) == 0
    assert "warning: 9 of 9 INRs never reached 80 dB" in capsys.readouterr().err


def test_a_fit_that_diverges_is_told(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--images={images}", f"--out={tmp_path / 'a.safetensors'}", *SMALL, "--lr=1e6"]
    assert main(words) == 0
    assert "warning: 9 of 9 INRs never came close to their image" in capsys.readouterr().err


def test_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main([f"--out={tmp_path / 'a.safetensors'}", "--images=nothing", "--threads=3"]) == 2
    assert asked == [3]
