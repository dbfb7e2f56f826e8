"""The command lines that prune networks and train a mask generator: small runs, resumed ones, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nfn_opt.data.tickets import TicketSet, initial_parameters, kept_share
from nfn_opt.mask_generator import MaskGenerator
from scripts.build_tickets import main as build
from scripts.train_mask_generator import main as train

SMALL = ["--images=digits", "--count=6", "--training.epochs=0.5", "--score-images=50"]


def test_from_images_to_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build([*SMALL, "--widths", "6", "--pruning.sparsity=0.8", f"--out={tmp_path / 'set'}"]) == 0
    out = capsys.readouterr().out
    assert "TicketSet(6 x MLP 64-6-10 of 460 parameters, 20.0 % of the weights kept)" in out
    tickets = TicketSet.load(tmp_path / "set.safetensors")
    assert tickets.meta["command"].startswith("python scripts/build_tickets.py --images=digits")
    words = [
        f"--tickets={tmp_path / 'set.safetensors'}",
        f"--out={tmp_path / 'run'}",
        "--model.hidden-channels=4",
        "--training.steps=4",
        "--training.validate-every=2",
        "--held-out=0.34",
    ]
    assert train(words) == 0
    out = capsys.readouterr().out
    assert "a random one 20.0%" in out
    model = MaskGenerator.load(tmp_path / "run" / "generator.safetensors")
    params = initial_parameters(tickets.architecture, range(7, 9), 0)
    masks = model.generate(params, 0.5, torch.Generator().manual_seed(0))
    assert kept_share(masks).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert train(words) == 2
    assert "holds another run" in capsys.readouterr().err
    assert train([*words, "--resume"]) == 0
    assert capsys.readouterr().out == out


def test_cnn_and_resumed_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *SMALL,
        "--network=cnn",
        "--size=16",
        "--widths",
        "3",
        "3",
        f"--out={tmp_path / 'set.safetensors'}",
    ]
    assert build(words) == 0
    assert "TicketSet(6 x CNN 1-3-3-10" in capsys.readouterr().out
    assert build(words) == 2
    assert "exists" in capsys.readouterr().err
    assert build([*words, "--resume"]) == 0


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        build([*SMALL, "--pruning.sparsity=1.2", f"--out={tmp_path / 'set'}"])
    assert refused.value.code == 2
    assert "sparsity is 1.2" in capsys.readouterr().err
    assert train([f"--tickets={tmp_path / 'set'}", f"--out={tmp_path / 'run'}"]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
