"""Editors and the Hugging Face hub: folders, uploads and downloads, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from editors import Editor
from editors.editor import HUB_FILE
from nfn_opt.artifacts import ArtifactError


def same(one: Editor, two: Editor) -> bool:
    tensors = one.state_dict(), two.state_dict()
    return one.config == two.config and all(
        torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0]
    )


def test_a_folder_is_read_again(tmp_path: Path) -> None:
    editor = Editor.pretrained("dilate")
    editor.save_pretrained(tmp_path)
    assert {"README.md", "config.json", HUB_FILE} <= {path.name for path in tmp_path.iterdir()}
    assert same(Editor.from_pretrained(tmp_path), editor)
    (tmp_path / HUB_FILE).write_bytes(b"broken")
    with pytest.raises(ArtifactError, match=HUB_FILE):
        Editor.from_pretrained(tmp_path)


def test_what_is_pushed_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, bytes] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            assert repo_id == "me/dilate"
            pushed.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return "done"

    def download(repo_id: str, filename: str, **options: Any) -> str:
        assert (repo_id, options["revision"]) == ("me/dilate", "v1")
        (tmp_path / filename).write_bytes(pushed[filename])
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr("editors.editor.hf_hub_download", download)
    editor = Editor.pretrained("dilate")
    assert editor.push_to_hub("me/dilate", token="secret") == "done"
    assert same(Editor.from_pretrained("me/dilate", revision="v1"), editor)


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LocalEntryNotFoundError, match="disk cache"):
        Editor.from_pretrained("someone/nothing", local_files_only=True, cache_dir=tmp_path)
