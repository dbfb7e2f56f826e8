"""The benchmark of predictors of many architectures: what is compared, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.varied_generalisation import (
    ARCHITECTURE,
    METHODS,
    RELATION,
    SPLITS,
    STATISTICS,
    architecture_of,
    as_groups,
    in_order,
    main,
    statistics_of,
)
from tests.predictors.varied_zoo import WIDTHS, made_varied_zoo


def test_a_run(tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    zoo = made_varied_zoo(8, generator).save(tmp_path / "zoo.safetensors")
    words = ["--quick", f"--zoo={zoo}", f"--out={tmp_path / 'run'}", "--steps=4"]
    main(words)
    first = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for split in SPLITS:
        taus = {name: result["metrics"][f"{split}/tau/{name}"] for name in METHODS}
        difference = result["metrics"][f"{split}/{RELATION} minus {STATISTICS}/value"]
        assert difference == pytest.approx(taus[RELATION] - taus[STATISTICS], abs=1e-6)
    text = (tmp_path / "run" / "varied_generalisation.md").read_text()
    assert text in first
    for name in ("varied_new.png", "varied_seen.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    (tmp_path / "run" / "varied_generalisation.md").unlink()
    main(words)  # of what was kept
    assert (tmp_path / "run" / "varied_generalisation.md").read_text() == text


def test_rows_are_those_of_the_zoo(generator: torch.Generator) -> None:
    zoo = made_varied_zoo(3, generator)
    accuracy = torch.as_tensor(zoo.table["test_accuracy"]).float()
    activations = ("activations=tanh", "activations=sigmoid")
    for name in (STATISTICS, ARCHITECTURE):
        (group,) = as_groups(zoo, name, activations).groups
        assert torch.equal(group.targets, accuracy)
    targets = torch.cat([group.targets for group in as_groups(zoo, RELATION, activations).groups])
    assert torch.equal(in_order(zoo, RELATION, targets), accuracy)
    depths = [len(WIDTHS[row % len(WIDTHS)]) for row in range(15)]
    assert architecture_of(zoo, activations)[:, 0].tolist() == depths
    means = statistics_of(zoo)[:, 0]
    for row in (1, 4):
        weight = zoo.module(row).get_parameter("layers.0.weight")
        assert means[row].item() == pytest.approx(torch.asinh(100 * weight.mean()).item(), abs=1e-4)
