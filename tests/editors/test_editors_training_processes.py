"""Editors trained by several processes under torchrun: the gradient and the run of one process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.train_editor import main

ROOT = Path(__file__).parents[2]

SMALL = [
    "--images=digits",
    "--size=8",
    "--inrs=8",
    "--held-out=3",
    "--fitting.steps=3",
    "--fitting.hidden-width=4",
    "--body.hidden-channels=4",
    "--body.hidden-layers=1",
    "--training.steps=3",
    "--training.batch-size=5",
    "--quiet",
]

WORKER = """
import sys
import torch
from safetensors.torch import save_file
from editors import Editor, EditorConfig, InrSet, SirenConfig, TrainEditorConfig
from editors.siren import initial_parameters
from editors.training import EditorTraining
from nfn_opt.meta.processes import joined_processes

siren = SirenConfig(hidden_width=4, omega_0=5.0)
generator = torch.Generator().manual_seed(0)
params = {name: value.double() for name, value in initial_parameters(siren, 7, generator).items()}
targets = torch.rand(7, 4, 3, 1, generator=generator, dtype=torch.float64)
inrs = InrSet(params, siren, torch.zeros(7), (4, 3))
editor = Editor(EditorConfig(siren=siren, edit="invert", image_size=(4, 3))).double()
with joined_processes() as processes:
    training = EditorTraining(
        editor, inrs, targets, config=TrainEditorConfig(batch_size=5), validation=(inrs, targets), processes=processes
    )
    error, norm = training.gradient()
    found = {name: p.grad for name, p in editor.named_parameters()}
    found |= {"error": torch.tensor(error), "norm": torch.tensor(norm)}
    found["validation"] = torch.tensor(training.validate()["validation"])
    if processes.main:
        save_file({name: value.contiguous() for name, value in found.items()}, sys.argv[1])
"""


def start(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.slow
def test_the_gradient_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    start(str(worker), str(tmp_path / "one"))
    start(*TORCHRUN, str(worker), str(tmp_path / "two"))
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one["norm"] > 0
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["dilate", "blur(sigma=0.5..2), invert"])
def test_two_processes_begin_and_one_goes_on(edit: str, tmp_path: Path) -> None:
    options = [*SMALL, f"--edit={edit}"]
    start(*TORCHRUN, "scripts/train_editor.py", f"--out={tmp_path / 'part'}", *options, "--minutes=1e-9")
    assert main([f"--out={tmp_path / 'part'}", *options, "--resume"]) == 0
    assert main([f"--out={tmp_path / 'whole'}", *options]) == 0
    logs = []
    for name in ("part", "whole"):
        with (tmp_path / name / "train.csv").open() as file:
            logs.append(
                [[float(row[key]) for key in ("error", "gradient_norm")] for row in csv.DictReader(file)]
            )
    assert len(logs[0]) == 3
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]), rtol=1e-3, atol=0)
