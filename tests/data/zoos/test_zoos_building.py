"""Zoos built to a file: the same bits however often they are stopped, refusals by name, nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data import ImageData, load_images
from nfn_opt.data.zoos import CnnArchitecture, Zoo, ZooOptions, building, shards
from nfn_opt.data.zoos.building import build_zoo
from nfn_opt.data.zoos.training import train_zoo
from nfn_opt.meta.processes import Processes
from scripts.build_zoo import main
from tests.processes import results, run_processes

SETTINGS: dict[str, Any] = {
    "count": 9,
    "options": ZooOptions(batch_size=10, epochs=(0.1, 0.3)),
    "architecture": CnnArchitecture(widths=(3, 2)),
    "chunk_size": 2,
    "shard_size": 3,
    "score_images": 20,
}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits").subset(240)


def run(digits: ImageData, path: Path, *, stop_after: int | None = None, **changes: Any) -> Zoo:
    """A zoo in several shards; killed, if so told, after some chunks."""
    with pytest.MonkeyPatch.context() as patch:
        if stop_after is not None:
            trained: list[int] = []

            def stopping(*arguments: Any, **options: Any) -> Zoo:
                if len(trained) == stop_after:
                    raise KeyboardInterrupt
                trained.append(1)
                return train_zoo(*arguments, **options)

            patch.setattr(building, "train_zoo", stopping)
        return build_zoo(digits, path, **{**SETTINGS, **changes})


def stopped(digits: ImageData, path: Path, after: int = 4) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run(digits, path, stop_after=after)
    return Path(f"{path}.parts")


def test_a_zoo(digits: ImageData, tmp_path: Path) -> None:
    zoo = run(digits, tmp_path / "zoo.safetensors", meta={"command": "a command"})
    assert zoo.table["number"].tolist() == list(range(9))  # type: ignore[union-attr]
    assert zoo.meta["command"] == "a command"
    assert zoo.meta["run"]["images"]["count"] == 240
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo.csv", "zoo.safetensors"]


def test_stopped_and_resumed(digits: ImageData, tmp_path: Path) -> None:
    whole = run(digits, tmp_path / "whole.safetensors")
    path = tmp_path / "zoo.safetensors"
    folder = stopped(digits, path)
    assert list(folder.glob("shard_*.safetensors"))
    assert not path.exists()
    (folder / ".shard_00009.0123.tmp.safetensors").touch()
    with pytest.raises(KeyboardInterrupt):
        run(digits, path, resume=True, stop_after=2)
    resumed = run(digits, path, resume=True)
    for name, value in whole.params.items():
        assert torch.equal(resumed.params[name], value)
    assert path.with_suffix(".csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert not folder.exists()
    assert len(run(digits, path, resume=True, stop_after=0)) == 9


def test_the_first_networks_do_not_depend_on_the_others(digits: ImageData, tmp_path: Path) -> None:
    few = run(digits, tmp_path / "few.safetensors", count=3)
    many = run(digits, tmp_path / "many.safetensors", chunk_size=4)
    for name, value in few.params.items():
        torch.testing.assert_close(many.params[name][:3], value, atol=1e-4, rtol=1e-3)


def test_refusals(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "zoo.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no zoo to resume"):
        run(digits, path, resume=True)
    folder = stopped(digits, path)
    with pytest.raises(FileExistsError, match="holds a zoo that was stopped"):
        run(digits, path)
    with pytest.raises(ValueError, match=r"options.seed was 0, now 1"):
        run(digits, path, resume=True, options=ZooOptions(seed=1, batch_size=10, epochs=(0.1, 0.3)))
    with pytest.raises(ValueError, match=r"images\.sha256 was"):
        run(load_images("digits").subset(slice(1, 241)), path, resume=True)
    shard = next(folder.glob("shard_*.safetensors"))
    os.truncate(shard, 200)
    with pytest.raises(ArtifactError, match=rf"remove .*{shard.name} and resume"):
        run(digits, path, resume=True)
    shard.unlink()
    run(digits, path, resume=True)
    with pytest.raises(FileExistsError, match="exists, expected a new file"):
        run(digits, path)
    with pytest.raises(ValueError, match="count was 9, now 8"):
        run(digits, path, resume=True, count=8)


def test_a_full_disk(digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zoo.safetensors"
    save = Zoo.save

    def full(self: Zoo, where: Path) -> Path:
        if "00002" in str(where):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, where)

    with monkeypatch.context() as patch:
        patch.setattr(Zoo, "save", full)
        with pytest.raises(OSError, match=r"2 of .* shards are complete in"):
            run(digits, path)
    assert len(run(digits, path, resume=True)) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be >= 1, got 0"),
        ({"count": 0}, "count must be >= 1, got 0"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1"),
        ({"architecture": CnnArchitecture()}, "images of 8 x 8 pixels are too small"),
        ({"architecture": CnnArchitecture(in_channels=3)}, "has 1 channels, expected 3; convert the images"),
        ({"architecture": CnnArchitecture(widths=(3,), classes=9)}, "has 10 classes, expected at most 9"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    changes: dict[str, Any], message: str, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(digits, tmp_path / "zoo.safetensors", **changes)
    assert not list(tmp_path.iterdir())


def test_images_that_are_not_square(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images must be square"):
        run(load_images("digits", size=(8, 9)).subset(240), tmp_path / "zoo.safetensors")


def test_shards_are_dealt_out(digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes trains some shards, and leaves the others to the other."""
    monkeypatch.setattr(Processes, "gathered", lambda self, value: [value])
    monkeypatch.setattr(Processes, "on_main", lambda self, action: action())
    monkeypatch.setattr(shards.ZooShards, "join", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    trained: list[str] = []
    for rank in range(2):
        path = tmp_path / f"{rank}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            run(digits, path, processes=Processes(rank, 2))
        found = [each.name for each in Path(f"{path}.parts").glob("shard_*.safetensors")]
        assert found
        trained += found
    assert sorted(trained) == [f"shard_{number:05d}.safetensors" for number in range(len(trained))]


def test_two_processes(tmp_path: Path) -> None:
    words = ["--images=digits", "--size=16", "--count=5", "--batch-size=20", "--shard-size=1", "--threads=1"]
    words += ["--epochs", "0.1", "0.2"]
    assert main([*words, f"--out={tmp_path / 'one'}"]) == 0
    assert results(run_processes(main, [*words, f"--out={tmp_path / 'two'}"])) == [0, 0]
    one, two = (Zoo.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert all(torch.equal(value, two.params[name]) for name, value in one.params.items())
