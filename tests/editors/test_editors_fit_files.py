"""Fits to a file: the same bits however often they are stopped, refusals by name, nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from editors.fit_files import fit_to_file
from editors.fit_options import FitOptions
from editors.fitting import FitJob, fit
from editors.inr_set import InrSet
from editors.siren import SirenConfig
from nfn_opt import artifacts
from nfn_opt.artifacts import ArtifactError, load_artifact
from nfn_opt.data import ImageData, load_images

OPTIONS = FitOptions(steps=3, pixels_per_step=30, seed=5)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits").subset(23)


def run(digits: ImageData, path: Path, *, stop_after: int | None = None, **options: Any) -> InrSet:
    """A fit in shards of 10, 10 and 3; killed, if so told, while it fits the one after `stop_after`."""
    settings = {"options": OPTIONS, "shard_size": 8, "chunk_size": 5, **options}
    with pytest.MonkeyPatch.context() as patch:
        if stop_after is not None:
            fitted: list[slice] = []
            fit_part = FitJob.run

            def stopping(self: FitJob, part: slice, done: Any) -> InrSet:
                if len(fitted) == stop_after:
                    raise KeyboardInterrupt
                fitted.append(part)
                return fit_part(self, part, done)

            patch.setattr(FitJob, "run", stopping)
        return fit_to_file(digits, path, **settings)


def stopped(digits: ImageData, path: Path, after: int = 2, **options: Any) -> Path:
    """A fit that was killed, and its folder."""
    with pytest.raises(KeyboardInterrupt):
        run(digits, path, stop_after=after, **options)
    return Path(f"{path}.parts")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_writes_what_fit_makes(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    inrs = run(digits, path, meta={"note": 7})
    expected = fit(digits, steps=3, pixels_per_step=30, seed=5, chunk_size=5)
    read = InrSet.load(path)
    for made in (inrs, read):
        assert torch.equal(made.psnr, expected.psnr)
        assert torch.equal(made.labels, digits.labels)  # type: ignore[arg-type]
        for name, value in expected.params.items():
            assert torch.equal(value, made.params[name])
    assert read.meta["fit"] == expected.meta["fit"]
    assert read.meta["source"] == {"name": "digits", "checksum": digits.checksum}
    assert read.meta["note"] == 7
    assert {"versions", "git_revision", "cpu"} <= read.meta["environment"].keys()
    assert files(path.parent) == ["a.safetensors"]


def test_stopped_fits_end_with_the_same_bits(digits: ImageData, tmp_path: Path) -> None:
    whole, often = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    run(digits, whole)
    folder = stopped(digits, often, after=1)
    (folder / ".shard_00001.abc.tmp.safetensors").write_text("left by a killed process")
    for after in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            run(digits, often, stop_after=after, resume=True)
    assert files(folder) == ["plan.json", "shard_00000.safetensors", "shard_00001.safetensors"]
    first = InrSet.load(folder / "shard_00000.safetensors")
    assert len(first) == 10
    assert torch.equal(first.labels, digits.labels[:10])  # type: ignore[arg-type]
    run(digits, often, resume=True)
    tensors, meta = load_artifact(whole, kind="inr_set")
    others, other_meta = load_artifact(often, kind="inr_set")
    assert {name: value.numpy().tobytes() for name, value in tensors.items()} == {
        name: value.numpy().tobytes() for name, value in others.items()
    }
    assert meta == other_meta
    assert files(tmp_path) == ["a.safetensors", "b.safetensors"]


def test_resuming_what_is_complete_only_reads_it(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    folder = stopped(digits, path)
    kept = {name: (folder / name).read_bytes() for name in files(folder)}
    made = run(digits, path, resume=True)
    folder.mkdir()
    for name, content in kept.items():  # as if it had been killed before it could clear up
        (folder / name).write_bytes(content)
    before = path.read_bytes()
    again = run(digits, path, resume=True, stop_after=0)
    assert torch.equal(again.psnr, made.psnr)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"options": FitOptions(steps=4, pixels_per_step=30, seed=5)}, "steps was 3, now 4"),
        ({"options": FitOptions(steps=3, seed=6)}, "pixels_per_step was 30, now None; seed was 5, now 6"),
        ({"shard_size": 5}, "shard_size was 10, now 5"),
        ({"chunk_size": 2}, "chunk_size was 5, now 2"),
        ({"config": SirenConfig(omega_0=9)}, r"architecture.omega_0 was 10.0, now 9"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_options_are_refused_by_name(
    digits: ImageData, tmp_path: Path, change: dict[str, Any], match: str, finished: bool
) -> None:
    path = tmp_path / "a.safetensors"
    if finished:
        run(digits, path)
    else:
        stopped(digits, path, after=1)
    with pytest.raises(ValueError, match=match):
        run(digits, path, resume=True, **change)


def test_other_images_are_refused_by_name(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    stopped(digits, path)
    with pytest.raises(ValueError, match="count was 23, now 20; images_sha256 was"):
        run(digits.subset(20), path, resume=True)
    with pytest.raises(ValueError, match="images_sha256 was"):
        run(digits.subset(range(22, -1, -1)), path, resume=True)


def test_what_is_there_is_kept(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no fit to resume"):
        run(digits, path, resume=True)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="expected a new file"):
        run(digits, path)
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        run(digits, path, resume=True)
    assert path.read_text() == "precious"
    path.unlink()
    path.mkdir()
    with pytest.raises(ArtifactError, match="is a folder"):
        run(digits, path, resume=True)
    path.rmdir()
    folder = stopped(digits, path)
    before = files(folder)
    with pytest.raises(FileExistsError, match=r"a fit that was stopped; go on with it \(resume\)"):
        run(digits, path)
    assert files(folder) == before
    (folder / "notes.txt").write_text("mine")
    run(digits, path, resume=True)
    assert files(folder) == ["notes.txt"]


def test_damaged_parts_are_named(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    folder = stopped(digits, path)
    shard = folder / "shard_00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(
        ArtifactError, match=r"shard_00001.* not a complete .*remove .*shard_00001.* and resume"
    ):
        run(digits, path, resume=True)
    shard.write_bytes((folder / "shard_00000.safetensors").read_bytes())
    other = stopped(digits, tmp_path / "other.safetensors", options=FitOptions(steps=2))
    shard.write_bytes((other / shard.name).read_bytes())
    with pytest.raises(ArtifactError, match=r"shard_00001.* belongs to another fit"):
        run(digits, path, resume=True)
    shard.unlink()
    assert len(run(digits, path, resume=True)) == 23
    plan = other / "plan.json"
    plan.write_text(plan.read_text()[:50])
    with pytest.raises(ArtifactError, match=r"plan.json is damaged"):
        run(digits, tmp_path / "other.safetensors", resume=True, options=FitOptions(steps=2))


@pytest.mark.parametrize(
    ("fails_at", "done", "how"),
    [
        ("plan.json", 0, "flush"),
        ("shard_00000", 0, "write"),
        ("shard_00000", 0, "flush"),
        ("shard_00002", 2, "write"),
        ("a.safetensors", 3, "write"),
        ("a.safetensors", 3, "flush"),
    ],
)
def test_a_full_disk(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str, done: int, how: str
) -> None:
    path, full = tmp_path / "a.safetensors", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save, flush = safetensors.torch.save_file, artifacts._flush

    def failing_save(tensors: Any, file: Path, **options: Any) -> None:
        if file.name.startswith(f".{Path(fails_at).stem}."):
            Path(file).write_bytes(b"begun")
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, file, **options)

    def failing_flush(file: Path) -> None:
        if file.name.startswith(f".{Path(fails_at).stem}."):
            raise full
        flush(file)

    with monkeypatch.context() as patch:
        if how == "write":
            patch.setattr(safetensors.torch, "save_file", failing_save)
        else:
            patch.setattr(artifacts, "_flush", failing_flush)
        with pytest.raises(
            OSError, match=f"No space left.*{done} of 3 shards are complete.*Make room and resume"
        ):
            run(digits, path)
    assert not path.exists()
    folder = Path(f"{path}.parts")
    assert not [name for name in files(folder) if name.startswith(".")]
    for number in range(done):
        assert len(InrSet.load(folder / f"shard_{number:05d}.safetensors")) == (10, 10, 3)[number]
    if fails_at == "plan.json":
        return
    inrs = run(digits, path, resume=True)
    assert torch.equal(inrs.psnr, fit(digits, steps=3, pixels_per_step=30, seed=5, chunk_size=5).psnr)


def test_failures_are_reported_once(digits: ImageData, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="23 of 23 INRs never reached 90 dB") as caught:
        run(digits, tmp_path / "a.safetensors", options=FitOptions(steps=2, target_psnr=90))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_plain_tensors_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0))
    inrs = fit_to_file(images, tmp_path / "a.safetensors", options=FitOptions(steps=2), progress=True)
    assert inrs.labels is None
    assert "source" not in inrs.meta
    assert inrs.render().shape == (5, 4, 6, 1)
    assert "5/5" in capsys.readouterr().err


def test_shards_of_nothing(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_size must be >= 1, got 0"):
        run(digits, tmp_path / "a.safetensors", shard_size=0)
    assert not files(tmp_path)
