"""The benchmark of predictors: the reference is the package's network, and what is written is what was measured."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from benchmarks.generalisation import REFERENCE, configs, main
from benchmarks.generalisation_reference import ReferencePredictor, train_reference
from benchmarks.generalisation_report import Trained, difference_line, table
from nfn_opt.data.zoos import CnnArchitecture
from nfn_opt.predictors import Interval, kendall_tau, permute_each, zoo_data
from nfn_opt.predictors.architectures import space_for
from nfn_opt.predictors.config import PredictorConfig
from tests.predictors.small_zoo import small_zoo

THREE = CnnArchitecture(widths=(3, 4, 3), classes=3)


def test_a_run(tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    zoo = small_zoo(40, generator, THREE).save(tmp_path / "zoo.safetensors")
    words = ["--quick", f"--zoo={zoo}", f"--out={tmp_path / 'run'}", "--steps=4", "--only"]
    main([*words, "hnp", "statnn", "probing", REFERENCE])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["runs"]) == {"hnp", "statnn", "probing", REFERENCE}
    assert result["best"] == "hnp"  # the only pure weight-space predictor of this package
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 20
    columns = {name: torch.tensor([float(row[name]) for row in rows]) for name in rows[0]}
    for name in result["runs"]:
        tau = kendall_tau(columns[f"{name}, seed 0"], columns["test_accuracy"])
        assert tau == pytest.approx(result["metrics"][f"tau/{name}"], abs=1e-6)
    difference = result["metrics"]["tau/hnp"] - result["metrics"]["tau/statnn"]
    assert result["metrics"]["hnp minus statnn/value"] == pytest.approx(difference, abs=1e-6)
    text = (tmp_path / "run" / "generalisation.md").read_text()
    assert text in capsys.readouterr().out
    assert "**on other data**" in text
    for name in ("generalisation.png", "taus.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_the_reference_ignores_the_order_of_neurons_and_learns(generator: torch.Generator) -> None:
    (group,) = zoo_data(small_zoo(60, generator, THREE), beside=()).groups
    predictor, _ = train_reference(
        group,
        lambda one: kendall_tau(one.predict(group.params), group.targets),
        steps=40,
        batch_size=8,
        validate_every=20,
        seed=0,
    )
    assert isinstance(predictor, ReferencePredictor)
    space = space_for(THREE, PredictorConfig())
    moved = permute_each(group.params, space, generator)
    torch.testing.assert_close(
        predictor.predict(moved), predictor.predict(group.params), rtol=1e-4, atol=1e-5
    )
    assert kendall_tau(predictor.predict(group.params), group.targets) > 0.5


def test_the_table_has_the_best_first() -> None:
    targets = torch.linspace(0, 1, 20)
    good = [Trained(targets, 3.0, 100)]
    bad = [Trained(targets.flip(0), 1.0, 10)]
    lines = table({"bad": bad, "good": good}, targets).splitlines()
    assert lines[2] == "| good | 1.000 | 1 | 1.000 | 0.000 | 100 | 3 |"
    assert lines[3].startswith("| bad | -1.000 |")
    assert "which holds 0" in difference_line("a", "b", Interval(0.1, -0.1, 0.2), 20)
    assert "which does not hold 0" in difference_line("a", "b", Interval(0.1, 0.05, 0.2), 20)


def test_unknown_predictors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert REFERENCE not in configs()
    with pytest.raises(SystemExit):
        main([f"--out={tmp_path}", "--only", "gnn"])
    assert "expected some of np" in capsys.readouterr().err
