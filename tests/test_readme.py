"""The README's Python examples run as they stand, one after the other, and print what it says."""

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)  # the examples share their names
    shown = re.findall(r"```text\n(WeightSpace.*?)```", README, re.DOTALL)
    printed = capsys.readouterr().out
    assert [text for text in shown if text not in printed] == []
    assert len(shown) >= 2
    assert len(BLOCKS) >= 5
