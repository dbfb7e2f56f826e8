"""The command line that trains a zoo: a small run, stopped and resumed, and refusals that write nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nfn_opt.data.zoos import Zoo, building
from scripts.build_zoo import main

SMALL = [
    "--images=digits",
    "--size=16",
    "--count=3",
    "--batch-size=20",
    "--epochs",
    "0.02",
    "0.03",
    "--shard-size=1",
]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--out={tmp_path / 'zoo'}", *SMALL, "--kind=small-cnn", "--score-images=50"]) == 0
    zoo = Zoo.load(tmp_path / "zoo.safetensors")
    assert (len(zoo), zoo.architecture.parameters) == (3, 4970)
    assert zoo.meta["command"].startswith("python scripts/build_zoo.py --out=")
    captured = capsys.readouterr()
    assert "Zoo(3 x CNN 1-16-16-16-10 of 4,970 parameters" in captured.out
    assert "test accuracy at 5, 25, 50, 75, 95 %: 0." in captured.out
    written = [tmp_path / f"zoo{ending}" for ending in (".safetensors", ".csv", ".png")]
    assert f"written: {', '.join(map(str, written))}" in captured.out
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert "training 3 networks" in captured.err


OTHER_KINDS = {
    "varied-cnn": [
        "--images=digits",
        "--size=8",
        "--batch-size=20",
        "--epochs",
        "0.02",
        "0.03",
        "--score-images=20",
        "--depth",
        "2",
        "2",
    ],
    "gru-adders": [
        "--hidden=3",
        "--digits=1",
        "--steps",
        "1",
        "2",
        "--batch-size",
        "4",
        "--test-problems=10",
    ],
}


@pytest.mark.parametrize(("kind", "words"), OTHER_KINDS.items(), ids=OTHER_KINDS)
def test_other_kinds(kind: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kind", kind, f"--out={tmp_path / 'zoo'}", "--count=3", *words]) == 0
    written = [tmp_path / f"zoo{ending}" for ending in (".safetensors", ".csv", ".png")]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert f"written: {', '.join(map(str, written))}" in capsys.readouterr().out


def test_an_unknown_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--kind=cnn", f"--out={tmp_path / 'zoo'}"])
    assert "invalid choice: 'cnn'" in capsys.readouterr().err


def test_networks_that_fail_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--learning-rate", "1e30", "1e31", "--optimizer", "sgd", "--score-images=50"]
    assert main([f"--out={tmp_path / 'zoo'}", *words]) == 0
    assert "3 of 3 networks are not finite" in capsys.readouterr().out
    assert len(Zoo.load(tmp_path / "zoo.safetensors")) == 0


def test_stop_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--out={tmp_path / 'zoo'}", *SMALL]
    with monkeypatch.context() as patch:

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(building, "train_zoo", interrupted)
        assert main(words) == 130
    assert f"To go on:\n  python scripts/build_zoo.py {' '.join(words)} --resume" in capsys.readouterr().err
    assert main(words) == 2
    assert "go on with it (resume)" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images=digit"], "did you mean 'digits'"),
        (["--images=digits"], "images of 8 x 8 pixels are too small"),
        (["--images=digits", "--size=16", "--dropout", "0.5", "1"], "dropout must be numbers in [0, 1)"),
        (["--images=digits", "--size=16", "--chunk-size=0"], "chunk_size must be >= 1"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--out={tmp_path / 'zoo'}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main([f"--out={tmp_path / 'zoo'}", "--images=nothing", "--threads=3"]) == 2
    assert asked == [3]
