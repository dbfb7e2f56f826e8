"""The benchmark of fitting a set compares like with like, and writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.inr_set_fitting import Measured, main, plain_fit, speedup
from editors import FitOptions, fit
from editors.siren import initial_parameters
from nfn_opt.data import load_images


def test_the_plain_loop_makes_the_same_fits() -> None:
    data, options = load_images("digits").subset(2), FitOptions(steps=20)
    inrs = fit(data, steps=20)
    start = initial_parameters(inrs.config, 2, torch.Generator().manual_seed(0))
    for number, image in enumerate(data.images):
        quality = plain_fit(image, {name: value[number] for name, value in start.items()}, options)
        torch.testing.assert_close(quality, inrs.psnr[number], atol=0.1, rtol=0)


def test_the_faster_loop_counts() -> None:
    found = {
        "at once": Measured(10, 1.0, 41, 40, 1),
        "a": Measured(2, 1.0, 41, 40, 1),
        "b": Measured(2, 2.0, 41, 40, 1),
    }
    assert speedup(found) == 5


def test_writes_table_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--data", "digits", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["count"] == 12
    assert result["metrics"]["digits/at once/inrs"] == 12
    assert result["metrics"]["digits/one by one, 1 thread/inrs"] == 4
    assert result["metrics"]["digits/speedup"] > 0
    text = (tmp_path / "inr_set_fitting.md").read_text()
    assert text in capsys.readouterr().out
    assert "| digits | at once | 12 |" in text


def test_too_small_a_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--loop", "1", "--out", str(tmp_path / "a")])
    assert "--loop must be from 2 to --count" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
