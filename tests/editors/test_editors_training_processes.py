"""Editors trained by several processes: the gradient and the run of one process."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

from editors import Editor, EditorConfig, InrSet, SirenConfig, TrainEditorConfig
from editors.siren import initial_parameters
from editors.training import EditorTraining
from nfn_opt.meta.processes import joined_processes
from scripts.train_editor import main
from tests.processes import results, run_processes

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


def gradient() -> dict[str, torch.Tensor]:
    """Error, gradient, its norm and the validation error of an editor of seven INRs, in this process's group."""
    siren = SirenConfig(hidden_width=4, omega_0=5.0)
    generator = torch.Generator().manual_seed(0)
    params = {name: value.double() for name, value in initial_parameters(siren, 7, generator).items()}
    targets = torch.rand(7, 4, 3, 1, generator=generator, dtype=torch.float64)
    inrs = InrSet(params, siren, torch.zeros(7), (4, 3))
    editor = Editor(EditorConfig(siren=siren, edit="invert", image_size=(4, 3))).double()
    with joined_processes() as processes:
        training = EditorTraining(
            editor,
            inrs,
            targets,
            config=TrainEditorConfig(batch_size=5),
            validation=(inrs, targets),
            processes=processes,
        )
        error, norm = training.gradient()
        found = {name: p.grad for name, p in editor.named_parameters() if p.grad is not None}
        found |= {"error": torch.tensor(error), "norm": torch.tensor(norm)}
        found["validation"] = torch.tensor(training.validate()["validation"])
    return found


def saved_gradient(folder: Path) -> None:
    """Write it to a file of this process."""
    torch.save(gradient(), folder / os.environ["RANK"])


def test_the_gradient_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    results(run_processes(saved_gradient, tmp_path))
    one, two = gradient(), torch.load(tmp_path / "0")
    assert one["norm"] > 0
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("edit", ["dilate", "blur(sigma=0.5..2), invert"])
def test_two_processes_begin_and_one_goes_on(edit: str, tmp_path: Path) -> None:
    options = [*SMALL, f"--edit={edit}"]
    stopped = [f"--out={tmp_path / 'part'}", *options, "--minutes=1e-9"]
    assert results(run_processes(main, stopped)) == [0, 0]
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
