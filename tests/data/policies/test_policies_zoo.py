"""Zoos of policies: independent runs, real returns, the same bits however often they are stopped, refusals by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nfn_opt.data.policies import Policy, PolicyOptions, build_policy_zoo, building, roll_out, split_runs
from nfn_opt.data.policies.training import draw_runs, spread_snapshots, train_runs
from nfn_opt.data.zoos import Zoo
from scripts.build_zoo import main

OPTIONS = PolicyOptions(hidden=(4, 3), generations=4, snapshots=3, pairs=3)
SETTINGS: dict[str, Any] = {"runs": 5, "options": OPTIONS, "episodes": 2, "shard_runs": 2}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return build_policy_zoo(tmp_path_factory.mktemp("zoo") / "zoo.safetensors", **SETTINGS)


def numbers(zoo: Zoo, name: str) -> Tensor:
    column = zoo.table[name]
    assert isinstance(column, Tensor)
    return column


def test_a_zoo(zoo: Zoo) -> None:
    assert len(zoo) == 15
    assert numbers(zoo, "run").tolist() == [run for run in range(5) for _ in range(3)]
    assert (numbers(zoo, "step").view(5, 3)[:, 0] == 0).all()
    assert (numbers(zoo, "step").view(5, 3).diff() > 0).all()
    assert numbers(zoo, "number").tolist() == list(range(15))
    assert "policy 4-4-3-2 of 43 parameters, mean return" in repr(zoo)
    found = roll_out(zoo.params, OPTIONS.architecture, "CartPole-v1", episodes=2, seed=1_000_000)
    torch.testing.assert_close(numbers(zoo, "mean_return"), found.mean)
    torch.testing.assert_close(numbers(zoo, "standard_error"), found.standard_error)


def test_every_run_has_its_own_initial_weights_and_hyperparameters(zoo: Zoo) -> None:
    first = torch.cat([value[::3].flatten(1) for value in zoo.params.values()], 1)
    assert torch.cdist(first, first).add(torch.eye(5)).min() > 0.5
    for name in ("learning_rate", "sigma", "init_scale"):
        assert len(numbers(zoo, name).unique()) == 5


def test_saved_and_read(zoo: Zoo, tmp_path: Path) -> None:
    read = Zoo.load(zoo.save(tmp_path / "zoo.safetensors"))
    assert read.architecture == OPTIONS.architecture
    module = read.module(7)
    assert isinstance(module, Policy)
    assert torch.equal(module.layers[1].weight, zoo.params["layers.1.weight"][7])  # type: ignore[arg-type]
    assert "mean_return" in (tmp_path / "zoo.csv").read_text().splitlines()[0]


def test_stopped_and_resumed(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zoo.safetensors"
    calls: list[int] = []

    def stopping(*arguments: Any, **options: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return train_runs(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(building, "train_runs", stopping)
        with pytest.raises(KeyboardInterrupt):
            build_policy_zoo(path, **SETTINGS)
    with pytest.raises(FileExistsError, match="holds a zoo that was stopped"):
        build_policy_zoo(path, **SETTINGS)
    with pytest.raises(ValueError, match="episodes was 2, now 3"):
        build_policy_zoo(path, **{**SETTINGS, "episodes": 3}, resume=True)
    resumed = build_policy_zoo(path, **SETTINGS, resume=True)
    for name, value in zoo.params.items():
        assert torch.equal(resumed.params[name], value)
    assert torch.equal(numbers(resumed, "mean_return"), numbers(zoo, "mean_return"))


def test_runs_do_not_depend_on_each_other() -> None:
    runs = draw_runs(OPTIONS, 4)
    together, steps, _ = train_runs(runs, OPTIONS)
    alone, alone_steps, _ = train_runs(runs[2:3], OPTIONS)
    assert torch.equal(steps[2:3], alone_steps)
    for name, value in alone.items():
        torch.testing.assert_close(together[name][2:3], value)


def test_training_raises_the_return() -> None:
    """From falling over at once to balancing, in most runs."""
    options = PolicyOptions(hidden=(6,), generations=12, pairs=8, learning_rate=(0.1, 0.1), sigma=(0.2, 0.2))
    kept, _, losses = train_runs(draw_runs(options, 4), options)
    ends = {name: torch.cat([value[:, 0], value[:, -1]]) for name, value in kept.items()}
    returns = roll_out(ends, options.architecture, "CartPole-v1", episodes=2).mean
    assert returns[4:].median() > 3 * returns[:4].median()
    assert losses[:, -1].mean() < losses[:, 0].mean()


def test_snapshots_are_spread() -> None:
    losses = torch.tensor([[1.0, 0.9, 0.2, 0.19, 0.5, 0.0, 0.3], [0.0] * 7])
    assert spread_snapshots(losses, 4).tolist() == [[0, 4, 5, 6], [0, 1, 2, 3]]


def test_runs_are_dealt_out_whole(zoo: Zoo) -> None:
    parts = split_runs(zoo, {"train": 3, "test": 2}, seed=1)
    runs = {name: set(numbers(part, "run").tolist()) for name, part in parts.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 9, "test": 6}
    assert runs["train"] | runs["test"] == set(range(5))
    assert not runs["train"] & runs["test"]
    again = split_runs(zoo, {"train": 3, "test": 2}, seed=1)
    assert torch.equal(numbers(again["test"], "number"), numbers(parts["test"], "number"))
    bare = Zoo(zoo.params, zoo.architecture, {"mean_return": zoo.table["mean_return"]})
    with pytest.raises(ValueError, match="has not the column 'run'"):
        split_runs(bare)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"environment": "Cartpole-v1"},
            "environment is 'Cartpole-v1', expected one of CartPole-v1, Pendulum-v1",
        ),
        ({"snapshots": 1}, "snapshots must be >= 2, got 1"),
        ({"sigma": (0.2, 0.1)}, "sigma must be two positive numbers"),
        ({"generations": 1, "snapshots": 3}, "snapshots is 3, expected at most 2"),
    ],
)
def test_options_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyOptions(**changes)


def test_policies_that_cannot_be_built_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one hidden layer"):
        build_policy_zoo(tmp_path / "zoo.safetensors", runs=2, options=PolicyOptions(hidden=()))
    assert not list(tmp_path.iterdir())


def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--kind=policies", "--environment=Pendulum-v1", "--count=2", "--hidden", "3", "--pairs=2"]
    words += ["--generations=1", "--snapshots=2", "--episodes=1", f"--out={tmp_path / 'zoo'}"]
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo.csv", "zoo.png", "zoo.safetensors"]
    assert "Zoo(4 x policy 3-3-1 of 16 parameters" in capsys.readouterr().out
    assert main(words) == 2
    assert "exists, expected a new file" in capsys.readouterr().err
