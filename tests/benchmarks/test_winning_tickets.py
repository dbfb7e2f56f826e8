"""The benchmark of winning tickets writes what it measures, compares pairs, and does nothing twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import benchmarks.winning_tickets as benchmark
from benchmarks.winning_tickets_report import interval, rows_of, table
from nfn_opt.data.tickets import MlpArchitecture, TicketSet, magnitude_masks
from nfn_opt.data.zoos import CnnArchitecture


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_runs_and_goes_on(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = MlpArchitecture(side=8, widths=(6,)) if network == "mlp" else CnnArchitecture(widths=(4, 4))
    protocol = dataclasses.replace(benchmark.PROTOCOLS[network], architecture=small)
    monkeypatch.setitem(benchmark.PROTOCOLS, network, protocol)
    command = ["--quick", "--network", network, "--images", "digits", "--epochs", "1", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        benchmark.main(command)
        before = json.loads((tmp_path / "result.json").read_text())
        capsys.readouterr()
        monkeypatch.setattr(benchmark, "accuracies", lambda *_: pytest.fail("trained again"))
        benchmark.main(command)
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"] == before["metrics"]
    text = (tmp_path / "winning_tickets.md").read_text()
    assert text in capsys.readouterr().out
    for name in ("dense", "IMP", "random", "random, layers as IMP", "NP", "HNP", "pointwise"):
        assert f"| {name}" in text
        assert 0 <= result["metrics"][f"{name}/accuracy"] <= 100
    assert result["metrics"]["IMP/overlap"] == 1
    assert len(result["scores"]["NP/0"]["accuracy"]) == 3
    assert (tmp_path / "winning_tickets.png").stat().st_size > 5000


def test_plain_masks_keep_as_many_weights() -> None:
    protocol = benchmark.PROTOCOLS["cnn"]
    shapes = protocol.architecture.parameter_shapes
    params = {name: torch.randn(2, *shape) for name, shape in shapes.items()}
    kept = magnitude_masks(params, 0.95)
    test = TicketSet(params, kept, protocol.architecture)
    counts = {
        name: torch.stack([mask.flatten(1).sum(1) for mask in masks.values()]).sum(0).tolist()
        for name, masks in benchmark.plain_masks(test, protocol).items()
    }
    assert len({tuple(count) for count in counts.values()}) == 1


def test_rows_pair_networks_and_join_trainings() -> None:
    scores = {
        "random": {"accuracy": [0.5, 0.9], "overlap": 0.05},
        "NP/0": {"accuracy": [0.6, 1.0], "overlap": 0.5, "bound": -0.1, "seconds": 2.0},
        "NP/1": {"accuracy": [0.7, 0.9], "overlap": 0.7, "bound": -0.3, "seconds": 4.0},
    }
    rows = rows_of(scores)
    assert rows["NP"]["accuracy"] == pytest.approx(80)
    assert rows["NP"]["gain"] == pytest.approx(10)
    assert rows["NP"]["gain_half"] == pytest.approx(12.706 * 5, rel=1e-3)
    assert rows["NP"]["overlap"] == pytest.approx(0.6)
    assert rows["NP"]["seed_spread"] == pytest.approx(0, abs=1e-9)
    assert "| NP, 2 trainings | 80.0 ± " in table(rows)


def test_interval_covers_as_often_as_it_says() -> None:
    draws = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hits = [abs(mean) < half for mean, half in map(interval, draws)]
    assert sum(hits) / len(hits) == pytest.approx(0.95, abs=0.015)
