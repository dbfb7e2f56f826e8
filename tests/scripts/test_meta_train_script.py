"""The command line of meta-training: help, results, refusals, and stopping by a signal."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nfn_opt.meta import MetaTrainConfig
from nfn_opt.optim import make_rule, save_rule
from scripts.meta_train import documented, main

ROOT = Path(__file__).parents[2]

SMALL = [
    "--rule=mlp",
    "--rule-options",
    "hidden=[4]",
    'features=["gradient"]',
    "--task.widths=4",
    "--task.batch-size=8",
    "--inner.tasks=2",
    "--inner.horizon=4",
    "--inner.truncation=2",
    "--outer.steps=2",
    "--evaluation-seeds=1",
    "--quiet",
]


def options(config: type, prefix: str = "--") -> Iterator[tuple[str, str]]:
    """Every option of a configuration and how its explanation begins."""
    texts = documented(config)
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name == "evaluation_families":  # none by default; they are given in recipes
            continue
        if isinstance(default, tuple) and any(map(dataclasses.is_dataclass, default)):
            yield from options(type(default[0]), f"{prefix}{field.name}.0.")
        elif dataclasses.is_dataclass(default):
            yield from options(type(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name.replace("_", "-"), " ".join(texts[field.name].split()[:4])


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    named = dict(options(MetaTrainConfig))
    assert {"--out", "--task.images", "--inner.horizon", "--outer.lr"} < named.keys()
    for option, explanation in named.items():
        assert re.search(rf"{re.escape(option)}[ ,].*?{re.escape(explanation)}", text), option
    assert "--resume" in text
    assert re.search(r"--rule mlp .*hidden=\[.*Widths of the hidden layers", text)


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([f"--out={out}", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "digits/final_loss" in printed
    result = json.loads((out / "result.json").read_text())
    assert shlex.split(result["command"]) == ["python", "scripts/meta_train.py", f"--out={out}", *SMALL]
    assert result["config"]["rule_options"] == {"hidden": [4], "features": ["gradient"]}
    assert str(out / "rule.safetensors") in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task.images=digit"], "did you mean 'digits'"),
        (["--rule=mpl"], "did you mean 'mlp'"),
        (["--rule-options", "hiden=[4]"], "did you mean 'hidden'"),
        (["--start-from=nothing.safetensors", "--rule-options"], "nothing.safetensors"),
        (["--inner.horizon=5"], "horizon is 5, expected a positive multiple of the truncation, 2"),
        (["--resume"], "no run to resume"),
        (["--rule-options", "lr=abc"], "lr is 'abc', expected a number, such as 0.0"),
        (["--rule-options", "hidden=wide"], "hidden is 'wide', expected a list"),
        (["--device=abacus"], "device is 'abacus', which cannot be used here"),
        (["--rule-options", "use_time=yes"], "use_time is 'yes', expected True or False"),
        (["--rule="], "there is no rule of kind ''"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--out={tmp_path / 'run'}", *SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--out={tmp_path / 'run'}", *SMALL, "--device=cuda"]) == 2
    assert "error: device is 'cuda', which cannot be used here" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]", '{"seed": 1}', '{"config": 3}'])
def test_a_damaged_configuration_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    assert main([f"--out={tmp_path}", *SMALL, "--resume"]) == 2
    assert f"error: {config} is not the configuration of a run" in capsys.readouterr().err


def test_starting_from_a_folder_names_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_rule(make_rule("mlp"), tmp_path / "rule.safetensors")
    for folder, match in (
        (tmp_path, f"give one of those in it: {tmp_path / 'rule.safetensors'}"),
        (ROOT, "no *."),
    ):
        assert main([f"--out={tmp_path / 'run'}", *SMALL, f"--start-from={folder}", "--rule-options"]) == 2
        captured = capsys.readouterr().err
        assert f"error: {folder} is a folder, expected a file" in captured
        assert match in captured


def test_an_option_that_is_not_name_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([f"--out={tmp_path / 'run'}", "--rule-options", "hidden"])
    assert end.value.code == 2
    assert "NAME=VALUE" in capsys.readouterr().err


def test_a_terminated_run_says_how_to_resume_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "scripts/meta_train.py", f"--out={out}", *SMALL, "--outer.steps=100000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    log = out / "train.csv"
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped by SIGTERM after outer step" in printed
    resume = printed.strip().splitlines()[-1].strip()
    assert shlex.split(resume) == ["python", "scripts/meta_train.py", *command[2:], "--resume"]
    assert (out / "checkpoint.safetensors").exists()
