"""The benchmark of optimizer steps compares like with like, and writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.optimizer_step import OPTIMIZERS, main, peak_growth
from benchmarks.optimizer_step_literal import LiteralCelo2Base
from benchmarks.optimizer_step_networks import resnet18
from nfn_opt.optim import LearnedOptimizer, MLPConfig, MLPRule

SHAPES = [(4, 3), (4,), (3, 4, 2, 2), (3, 3), (), (1, 5), (8, 3, 7), (2, 3, 4)]


def test_the_literal_transcription_makes_the_same_updates() -> None:
    rule, generator = MLPRule(MLPConfig.celo2_base()).double(), torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = LearnedOptimizer(ours, rule), LiteralCelo2Base(theirs, rule)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_resnet18_is_that_of_the_paper() -> None:
    network = resnet18()
    assert sum(p.numel() for p in network.parameters()) == 11_689_512
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_writes_table_picture_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--networks", "MLP 64-32-10", "--no-memory", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    for name in OPTIMIZERS:
        assert result["metrics"][f"MLP 64-32-10/{name}/ms"] > 0
        assert name in (tmp_path / "optimizer_step.md").read_text()
    assert (tmp_path / "optimizer_step.png").stat().st_size > 1000
    assert "MLP 64-32-10 (2,410)" in capsys.readouterr().out


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_counted(name: str) -> None:
    _, state = peak_growth("MLP 64-32-10", name)
    low = 4 if name.startswith("Muon") or name == "default" else 8  # bytes a weight: one momentum, or more
    assert low * 2410 <= 1e6 * state <= 40 * 2410
