"""The benchmark of training a zoo compares like with like, and writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.zoo_training import main, table


def test_writes_table_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--data", "digits", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["steps"] == 4
    assert result["metrics"]["one by one"] > 0
    assert result["metrics"]["operations per image"] == 2 * (
        121 * 144 * 2 + 25 * 2304 * 3 + 4 * 2304 * 3 + 160 * 3
    )
    text = (tmp_path / "zoo_training.md").read_text()
    assert text in capsys.readouterr().out


def test_the_table() -> None:
    inside = {
        "step": 20.0,
        "share of products": 0.5,
        "operations per image": 4.7e5,
        "rate of a step (Gflop/s)": 23.0,
        "rate of a large product (Gflop/s)": 100.0,
    }
    text = table({"at once": 20.0, "one by one": 100.0}, inside)
    assert "| at once | 20.0 | 20 min |" in text
    assert "at once is 5.0 times faster" in text
