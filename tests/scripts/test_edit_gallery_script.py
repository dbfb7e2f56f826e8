"""The page of the image edits is what the script writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors import EDITS
from nfn_opt.data import read_image
from scripts.edit_gallery import COLUMNS, describe_edits, main

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_not_stale() -> None:
    assert (DOCS / "edits.md").read_text(encoding="utf-8") == describe_edits(), "run scripts/edit_gallery.py"


def test_the_page_names_every_edit_and_parameter() -> None:
    page = describe_edits()
    lines = [line.count("|") for line in page.splitlines() if line.startswith("| ")]
    assert lines == [6] * (len(EDITS) + 1)
    for edit in EDITS.values():
        assert f"| `{edit.name}` | {edit.doc}" in page
        assert all(f"`{parameter.name}=" in page for parameter in edit.parameters)


def test_the_script_writes_the_page_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--out={tmp_path / 'new'}"]) == 0
    assert "written: " in capsys.readouterr().out
    assert (tmp_path / "new" / "edits.md").read_text(encoding="utf-8") == describe_edits()
    picture = read_image(tmp_path / "new" / "edits.png")
    assert picture.shape[1] > COLUMNS * 200
    assert picture.std() > 0.1


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([f"--out={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
