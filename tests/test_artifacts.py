"""Files are whole or absent, and a file of another class is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nfn_opt.artifacts import ArtifactError, atomic_write, load_artifact, read_header, save_artifact

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3).t(),  # not contiguous
    "count": torch.tensor(3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 2),
}
METADATA = {"omega": 30.0, "widths": [2, 32, 1], "nested": {"name": "sirén"}, "none": None}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_artifact(tmp_path / "sub" / "a.safetensors", TENSORS, kind="thing", metadata=METADATA)


def test_round_trip(saved: Path) -> None:
    tensors, metadata = load_artifact(saved, kind="thing")
    assert metadata == METADATA
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert read_header(saved) == ("thing", METADATA)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_permissions_are_those_of_any_new_file(saved: Path) -> None:
    plain = saved.with_name("plain.txt")
    plain.touch()
    assert saved.stat().st_mode == plain.stat().st_mode
    saved.chmod(0o640)
    save_artifact(saved, TENSORS, kind="thing")
    assert saved.stat().st_mode & 0o777 == 0o640


def test_tensors_that_share_memory_or_require_grad_can_be_saved(tmp_path: Path) -> None:
    shared = torch.ones(3, requires_grad=True)
    path = save_artifact(tmp_path / "a.safetensors", {"a": shared, "b": shared}, kind="thing")
    tensors, metadata = load_artifact(path, kind="thing")
    assert torch.equal(tensors["b"], torch.ones(3))
    assert metadata == {}


def test_other_kind_says_expected_and_got(saved: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.safetensors holds a 'thing', expected a 'editor'"):
        load_artifact(saved, kind="editor")


@pytest.mark.parametrize("length", [0, 5, 60, -1], ids=["empty", "in length", "in header", "in data"])
def test_truncated_file(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        load_artifact(saved, kind="thing")


def test_other_format(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        load_artifact(tmp_path / "a.pt", kind="thing")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (None, "not written by this library"),
        ({"nfn_opt.kind": "thing"}, "no valid"),
        (
            {"nfn_opt.kind": "thing", "nfn_opt.format_version": "1", "nfn_opt.metadata": "{"},
            "no valid",
        ),
        (
            {"nfn_opt.kind": "thing", "nfn_opt.format_version": "2", "nfn_opt.metadata": "{}"},
            "format version 2",
        ),
    ],
)
def test_foreign_header(tmp_path: Path, header: dict[str, str] | None, match: str) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(ArtifactError, match=match):
        load_artifact(tmp_path / "a.safetensors", kind="thing")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.safetensors"):
        load_artifact(tmp_path / "nothing.safetensors", kind="thing")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"tensors\['a'\] must be a torch.Tensor, got list"):
        save_artifact(tmp_path / "a", {"a": [1.0]}, kind="thing")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="metadata must be JSON"):
        save_artifact(tmp_path / "a", {}, kind="thing", metadata={"a": torch.ones(1)})
    with pytest.raises(TypeError, match="string keys, got 1"):
        save_artifact(tmp_path / "a", {}, kind="thing", metadata={1: "a"})  # type: ignore[dict-item]
    with pytest.raises(ArtifactError, match="it is a folder"):
        save_artifact(tmp_path, TENSORS, kind="thing")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_writing_leaves_the_previous_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_artifact(saved, {"weight": torch.zeros(2)}, kind="thing")
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_interrupt_before_moving_leaves_the_previous_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_artifact(saved, {"weight": torch.zeros(2)}, kind="thing")
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_atomic_write_keeps_suffix_mode_and_links(tmp_path: Path) -> None:
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with atomic_write(link) as temporary:
        assert temporary.suffix == ".txt"
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
