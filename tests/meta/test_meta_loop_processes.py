"""Several processes under torchrun: the same run as in one, also when one of them is killed."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from nfn_opt.meta import load_recipe, meta_train
from nfn_opt.meta.checkpoint import load_checkpoint
from nfn_opt.meta.processes import Processes, joined_processes
from scripts.meta_train import main
from tests.processes import results, run_processes

ROOT = Path(__file__).parents[2]

RECIPE = """
rule = "mlp"
rule_options = {hidden = [4], features = ["gradient", "scaled_momentum"]}
evaluate_every = 2
evaluation_seeds = 1
checkpoint_every = 2
compare_with_adam = false
quiet = true
[[families]]
name = "quadratic"
instances = 3
[inner]
tasks = 3
estimator = "pes"
horizon = 8
truncation = 2
[outer]
steps = 5
warmup = 0
ema = 0.5
"""

WORKER = """
import os, signal, sys
from nfn_opt.meta.run import Run
from scripts.meta_train import main

advance = Run.advance

def killed(self):
    if self.step == 3 and os.environ["RANK"] == sys.argv[1] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(self)

Run.advance = killed
sys.exit(main(sys.argv[2:]))
"""


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes."""
    options = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def rows(path: Path) -> list[Mapping[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same(one: Path, other: Path) -> None:
    """Check that two runs agree: meta-gradients, outer parameters, inner problems and generators."""
    for name in ("train.csv", "evaluation.csv"):
        for a, b in zip(rows(one / name), rows(other / name), strict=True):
            for key, value in a.items():
                assert (
                    b[key] == value
                    if key == "task"
                    else float(b[key]) == pytest.approx(float(value), rel=1e-6)
                )
    stored = [load_checkpoint(path / "checkpoint.safetensors")[0] for path in (one, other)]
    torch.testing.assert_close(*stored, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The run in one process."""
    return meta_train(load_recipe(recipe, out=recipe.parent / "whole")).folder.path


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_equal_one(recipe: Path, whole: Path, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    arguments = [f"--recipe={recipe}", f"--out={tmp_path / 'run'}"]
    done = torchrun(str(worker), "0", *arguments, restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr
    assert done.stdout.count("outer_steps") == 1
    same(whole, tmp_path / "run")


def test_going_on_with_another_number_of_processes(recipe: Path, whole: Path, tmp_path: Path) -> None:
    outcomes = run_processes(main, [f"--recipe={recipe}", f"--out={tmp_path / 'run'}", "--minutes=1e-9"])
    assert results(outcomes) == [0, 0]
    assert "stopped by the end of its time after outer step 1; everything is saved" in outcomes[0].output
    config = load_recipe(recipe, out=tmp_path / "run")
    assert meta_train(config, resume=True).finished
    same(whole, tmp_path / "run")


def test_two_processes_refuse_together(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    outcomes = run_processes(main, [f"--recipe={recipe}", f"--out={tmp_path}"])
    assert results(outcomes) == [2, 2]
    assert f"error: the folder {tmp_path} holds other files" in outcomes[0].errors
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_one_process_is_alone() -> None:
    with joined_processes() as processes:
        assert processes == Processes()
        assert processes.shared(3) == 3
        assert processes.device("cpu") == "cpu"
        if torch.cuda.is_available():
            assert processes.device("cuda") == "cuda"
        else:
            with pytest.raises(ValueError, match="device is 'cuda', which cannot be used here"):
                processes.device("cuda")
    with pytest.raises(ValueError, match="no"):
        processes.on_main(lambda: int("no"))


def test_work_is_divided() -> None:
    owned = [[index for index in range(5) if Processes(rank, 2).owns(index)] for rank in range(2)]
    assert owned == [[0, 2, 4], [1, 3]]
