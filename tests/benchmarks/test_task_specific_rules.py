"""The protocol from end to end on bundled digits, and the factor by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.task_specific_rules import LEARNING_RATES, Bench, Protocol, factors, main, unseen
from nfn_opt.data import load_images
from nfn_opt.optim import make_rule, save_rule


def test_the_grid_is_that_of_the_paper() -> None:
    assert len(LEARNING_RATES) == 20
    assert (LEARNING_RATES[0], LEARNING_RATES[-1]) == (5e-4, 1e-2)


def test_factors_by_mean_curve_and_run_by_run() -> None:
    adam = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 3.0, 3.0]])
    rule = np.array([[4.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    mean, each = factors(rule, adam, every=10)
    assert mean == 0
    assert each.tolist() == [2.0, 0.0]
    rule[1] = [2.0, np.nan, np.nan, np.nan]
    assert factors(rule, adam, every=10)[1].tolist() == [2.0, 2.0]


def test_test_images_are_used_for_nothing_else() -> None:
    protocol = Protocol(images="digits", steps=20, runs=2, hidden=4, batch_size=16)
    bench = Bench(protocol)
    parts = load_images("digits", size=8).split()
    held_out = load_images("digits", size=8).split({"train": 0.8, "held_out": 0.2})
    torch.testing.assert_close(bench.task.inputs, held_out["train"].images.flatten(1), rtol=0, atol=0)
    lr, adam = bench.adam()
    assert lr in LEARNING_RATES
    assert unseen(adam).shape == (2, 2, 2)
    assert [len(part.labels) for part in bench._unseen] == [len(parts["val"]), len(parts["test"])]


def test_end_to_end(tmp_path: Path) -> None:
    file = save_rule(make_rule("adam", lr=0.03), tmp_path / "rule.safetensors", {"command": "train it"})
    out = tmp_path / "out"
    main(["--images", "digits", "--quick", "--steps", "400", "--rules", f"quick={file}", "--out", str(out)])
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"]["quick/factor"] > 1.5
    assert "| quick |" in (out / "task_specific_rules.md").read_text()
    assert "| Muon, " in (out / "task_specific_rules.md").read_text()
    assert "`train it`" in (out / "task_specific_rules.md").read_text()
    assert (out / "task_specific_rules.png").stat().st_size > 1000


def test_rules_without_a_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected LABEL=FILE"):
        main(
            [
                "--images",
                "digits",
                "--quick",
                "--steps",
                "10",
                "--rules",
                "x.safetensors",
                "--out",
                str(tmp_path),
            ]
        )
