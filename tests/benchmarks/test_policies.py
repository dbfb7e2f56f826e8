"""The benchmark of policies: runs end to end on a small zoo, goes on where it was stopped, computes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.policies import gain_rows, main
from benchmarks.policies_runs import KINDS, paired_interval, tau_by_run
from nfn_opt.data.policies import PolicyArchitecture
from nfn_opt.data.zoos import Zoo


def test_writes_tables_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--out", str(tmp_path)])
        first = json.loads((tmp_path / "result.json").read_text())
        main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    again = json.loads((tmp_path / "result.json").read_text())
    text = (tmp_path / "policies.md").read_text()
    assert text in capsys.readouterr().out
    assert all(f"| {kind} |" in text for kind in KINDS)
    assert (tmp_path / "policies.png").stat().st_size > 1000
    assert first["metrics"]["CartPole-v1/policies/train"] == 21
    timeless = [
        {name: value for name, value in each["metrics"].items() if "seconds" not in name}
        for each in (first, again)
    ]
    assert timeless[0] == timeless[1]


def zoo_of(target: torch.Tensor, run: torch.Tensor) -> Zoo:
    architecture = PolicyArchitecture(observations=1, outputs=1, hidden=(1,))
    params = {name: torch.zeros(len(run), *shape) for name, shape in architecture.parameter_shapes.items()}
    return Zoo(params, architecture, {"mean_return": target, "run": run})


def test_tau_is_resampled_by_run() -> None:
    """Runs of equal policies count once: the interval is as wide as with one policy a run."""
    generator = torch.Generator().manual_seed(0)
    target, predicted = torch.rand(2, 12, generator=generator, dtype=torch.float64)
    alone = tau_by_run(predicted[None], zoo_of(target, torch.arange(12)), 200)
    copied = tau_by_run(
        predicted.repeat_interleave(5)[None],
        zoo_of(target.repeat_interleave(5), torch.arange(12).repeat_interleave(5)),
        200,
    )
    assert copied["tau"] == pytest.approx(alone["tau"])
    assert copied["high"] - copied["low"] > 0.8 * (alone["high"] - alone["low"])


def test_intervals_and_rows() -> None:
    gains = torch.tensor([[1.0, 3.0, 2.0], [3.0, 5.0, 4.0]], dtype=torch.float64)
    assert paired_interval(gains[0])["mean"] == 2
    assert paired_interval(gains[0])["low"] < 2 < paired_interval(gains[0])["high"]
    rows = gain_rows(
        {
            "HNP": gains[0],
            "HNP and probes": gains[1],
            "random": gains[1] - 1,
            "predicted": gains[1] + 3,
            "before": gains[0],
            "distance": gains[0],
        }
    )
    assert rows["ascent by HNP"]["mean"] == 2
    assert rows["ascent by HNP and probes"]["mean"] == 4
    assert rows["ascent minus random step"] == {"mean": 1, "low": 1, "high": 1}
    assert rows["optimism (predicted minus real gain)"]["mean"] == 3
