"""The outer loop: it learns, it resumes exactly, and it loses nothing."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nfn_opt.artifacts import ArtifactError
from nfn_opt.meta import InnerConfig, MetaTrainConfig, MetaTrainResult, OuterConfig, TaskConfig, meta_train
from nfn_opt.meta.config import differences
from nfn_opt.meta.logs import TRAIN_COLUMNS, CsvLog
from nfn_opt.meta.run import Run, learning_rate
from nfn_opt.meta.stopping import StopRequest
from nfn_opt.optim import load_rule, pretrained, pretrained_metadata, rule_metadata
from nfn_opt.optim.features import FEATURES
from nfn_opt.optim.first_layer import FeatureLinear


def config(out: Path, **changes: Any) -> MetaTrainConfig:
    """Six outer steps on two image sets, of which one is the digits at another size."""
    small = MetaTrainConfig(
        out=out,
        rule="mlp",
        rule_options={"hidden": [4], "features": ["gradient", "scaled_momentum"]},
        task=TaskConfig(widths=(6,), batch_size=16),
        inner=InnerConfig(tasks=3, horizon=8, truncation=4, shortest_horizon=3, rescale=("tensor",)),
        outer=OuterConfig(steps=6, warmup=2, lr=0.01),
        evaluate_every=2,
        evaluation_seeds=2,
        checkpoint_every=2,
        quiet=True,
    )
    return dataclasses.replace(small, **changes)


def stopped_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Let a signal arrive in the middle of an outer step."""
    advance = Run.advance

    def interrupted(self: Run) -> dict[str, Any]:
        if self.step == step - 1:
            signal.raise_signal(number)
        return advance(self)

    monkeypatch.setattr(Run, "advance", interrupted)


def rows(path: Path) -> list[Mapping[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def weights(result: MetaTrainResult) -> dict[str, torch.Tensor]:
    return load_rule(result.folder.rule).state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MetaTrainResult:
    """A run that was never interrupted."""
    return meta_train(config(tmp_path_factory.mktemp("runs") / "whole"), command="the command")


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (3, signal.SIGTERM), (4, signal.SIGINT)])
def test_interrupted_and_resumed_equals_uninterrupted(
    step: int, number: int, whole: MetaTrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopped_at(patch, step, number)
        result = meta_train(config(tmp_path / "run"))
    assert (result.step, result.stopped_by, result.metrics) == (step, number, {})
    assert not result.folder.rule.exists()
    result = meta_train(config(tmp_path / "run"), resume=True)
    assert (result.step, result.stopped_by) == (6, None)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(result)[name], tensor)
    assert rows(result.folder.train_log) == rows(whole.folder.train_log)
    assert rows(result.folder.evaluation_log) == rows(whole.folder.evaluation_log)
    speeds = {"inner_steps_per_s"}
    assert {k: v for k, v in result.metrics.items() if k not in speeds} == {
        k: v for k, v in whole.metrics.items() if k not in speeds
    }


def test_killed_between_checkpoints(
    whole: MetaTrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "_receive", signal.default_int_handler)
        stopped_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            meta_train(config(tmp_path / "run"))
    log = tmp_path / "run" / "train.csv"
    assert len(rows(log)) == 3
    log.write_text(log.read_text() + "4,0.1")  # half a row
    result = meta_train(config(tmp_path / "run"), resume=True)
    assert rows(log) == rows(whole.folder.train_log)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(result)[name], tensor)


def test_what_a_run_leaves(whole: MetaTrainResult) -> None:
    folder = whole.folder
    recorded, result = (json.loads(path.read_text()) for path in (folder.config, folder.result))
    assert recorded["command"] == result["command"] == "the command"
    assert recorded["config"] == result["config"] == json.loads(json.dumps(config(folder.path).record()))
    assert recorded["environment"]["versions"]["torch"] == str(torch.__version__)
    assert result["metrics"] == whole.metrics == rule_metadata(folder.rule)["scores"]
    assert rule_metadata(folder.rule)["command"] == "the command"
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
    assert [row["step"] for row in rows(folder.train_log)] == [str(step) for step in range(1, 7)]
    assert [row["step"] for row in rows(folder.evaluation_log)] == ["2", "4", "6"]
    assert float(rows(folder.evaluation_log)[-1]["final_loss"]) == whole.metrics["digits/final_loss"]
    names = ("final_loss", "final_loss_std", "adam_final_loss", "adam_final_loss_std", "adam_lr")
    assert {f"digits/{name}" for name in names} < whole.metrics.keys()


def test_a_folder_with_another_run_is_refused(whole: MetaTrainResult, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"holds another run.*give another name, or resume"):
        meta_train(config(whole.folder.path))
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        meta_train(config(tmp_path))
    with pytest.raises(NotADirectoryError, match=r"note\.txt is a file"):
        meta_train(config(tmp_path / "note.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_resuming_needs_the_same_configuration(whole: MetaTrainResult, tmp_path: Path) -> None:
    changed = config(whole.folder.path, seed=1, outer=OuterConfig(steps=6, warmup=2, lr=0.02))
    with pytest.raises(
        ValueError, match=r"another configuration: outer.lr was 0.01, now 0.02; seed was 0, now 1"
    ):
        meta_train(changed, resume=True)
    with pytest.raises(FileNotFoundError, match=r"no run to resume in .*nothing"):
        meta_train(config(tmp_path / "nothing"), resume=True)
    assert not (tmp_path / "nothing").exists()


def test_resuming_a_finished_run_changes_nothing(whole: MetaTrainResult) -> None:
    before = weights(whole)
    result = meta_train(config(whole.folder.path, quiet=False, checkpoint_every=1), resume=True)
    assert result.metrics["digits/final_loss"] == whole.metrics["digits/final_loss"]
    assert all(torch.equal(tensor, weights(result)[name]) for name, tensor in before.items())


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopped_at(patch, 2)
        folder = meta_train(config(tmp_path / "run")).folder
    content = folder.checkpoint.read_bytes()
    folder.checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="may be truncated"):
        meta_train(config(tmp_path / "run"), resume=True)


def test_a_damaged_checkpoint_names_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: MetaTrainResult
) -> None:
    with monkeypatch.context() as patch:
        stopped_at(patch, 5)
        folder = meta_train(config(tmp_path / "run")).folder
    folder.checkpoint.write_bytes(b"nothing")
    with pytest.raises(
        ArtifactError, match=r"copy .*checkpoint_before.safetensors to .*checkpoint.safetensors and"
    ):
        meta_train(config(tmp_path / "run"), resume=True)
    folder.checkpoint.write_bytes(folder.previous.read_bytes())
    result = meta_train(config(tmp_path / "run"), resume=True)
    assert all(torch.equal(tensor, weights(result)[name]) for name, tensor in weights(whole).items())


def test_meta_training_lowers_the_loss_on_held_out_images(tmp_path: Path) -> None:
    """From Adam at a far too small step size."""
    result = meta_train(
        config(
            tmp_path / "run",
            rule="adam",
            rule_options={"lr": 1e-3},
            inner=InnerConfig(tasks=4, horizon=10, truncation=5),
            outer=OuterConfig(steps=40, warmup=0, lr=0.2),
            evaluate_every=20,
        )
    )
    first, last = (float(row["final_loss"]) for row in rows(result.folder.evaluation_log))
    rule = result.rule
    assert last < first < 2.2
    assert last < result.metrics["digits/adam_final_loss"]  # type: ignore[operator]
    assert rule.log_lr.item() > 1  # type: ignore[operator]


def test_a_rule_is_trained_further(whole: MetaTrainResult, tmp_path: Path) -> None:
    further = config(
        tmp_path / "run", rule_options={}, start_from=whole.folder.rule, outer=OuterConfig(steps=1, lr=1e-9)
    )
    result = meta_train(further)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(result)[name], tensor, rtol=0, atol=1e-8)


def test_a_rule_is_trained_further_with_other_options(tmp_path: Path) -> None:
    start = pretrained("default")
    more = {"neighbours": True, "hidden": [3], "features": FEATURES, "momentum_decays": [0.5, 0.9, 0.99]}
    further = config(
        tmp_path / "run", rule_options=more, start_from=Path("default"), outer=OuterConfig(steps=1, lr=1e-9)
    )
    result = meta_train(further)
    got, was = weights(result), start.state_dict()
    assert result.rule.config == dataclasses.replace(start.config, **more)
    first = result.rule.first
    assert isinstance(first, FeatureLinear)
    read = [first.columns["gradient"][0], first.columns["momentum"][1]]
    linear = got["first.weight"][-1]
    torch.testing.assert_close(linear[read], was.pop("first.weight")[0], rtol=0, atol=1e-8)
    assert (linear.abs() > 1e-8).sum() == 2
    for name, tensor in was.items():
        if name != "first.bias":
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-8)
    assert rule_metadata(result.folder.rule)["started_from"] == pretrained_metadata("default")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"neighbors": True}, "no option 'neighbors'"),
        (
            {"momentum_decays": [0.9, 0.99]},
            "do not fit default: .* mean: first.weight; expected options that keep",
        ),
        ({"features": ["momentum", "gradient"]}, "do not fit default: .* mean: features;"),
        (
            {"hidden": [4], "momentum_decays": [0.8]},
            "whose decays are kept; make a new rule, without start_from",
        ),
    ],
)
def test_options_that_a_rule_cannot_be_trained_further_with(
    tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        meta_train(config(tmp_path / "run", rule_options=options, start_from=Path("default")))


def test_a_hopeless_run_is_given_up(tmp_path: Path) -> None:
    outer = OuterConfig(steps=6, give_up_after=3)
    hopeless = config(tmp_path / "run", rule="sgd", rule_options={"lr": 1e30}, outer=outer)
    with pytest.raises(RuntimeError, match="no outer gradient was finite in 3 outer steps up to"):
        meta_train(hopeless)


def test_several_image_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    images, labels = generator.random((60, 8, 8)), generator.integers(0, 3, 60)
    np.savez(tmp_path / "noise.npz", images=images, labels=labels)
    noise = str(tmp_path / "noise.npz")
    task = TaskConfig(images=("digits", noise), network="cnn", widths=(4,), batch_size=8)
    result = meta_train(config(tmp_path / "run", task=task, outer=OuterConfig(steps=2)))
    assert {"digits/final_loss", f"{noise}/final_loss"} < result.metrics.keys()
    assert [row["task"] for row in rows(result.folder.evaluation_log)] == ["digits", noise]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    result = meta_train(config(tmp_path / "run", tensorboard=True, outer=OuterConfig(steps=2)))
    events = EventAccumulator(str(result.folder.tensorboard)).Reload()
    logged = events.Scalars("train/meta_loss")
    assert [event.step for event in logged] == [1, 2]
    expected = [float(row["meta_loss"]) for row in rows(result.folder.train_log)]
    assert [event.value for event in logged] == pytest.approx(expected)


def test_missing_tensorboard_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nfn-opt\[log\]'"):
        meta_train(config(tmp_path / "run", tensorboard=True))
    assert list(tmp_path.iterdir()) == []


def test_a_log_goes_on_after_a_step(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    first = CsvLog(path, ("step", "x"))
    for step in (1, 2, 3):
        first.write({"step": step, "x": 0.1})
    first.close()
    path.write_text(path.read_text() + "4,0.")
    second = CsvLog(path, ("step", "x"), after=2)
    second.write({"step": 3, "x": 1 / 3})
    second.close()
    assert path.read_text() == f"step,x\n1,0.1\n2,0.1\n3,{1 / 3!r}\n"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TaskConfig(images=()), r"images is \(\), expected one or more"),
        (lambda: TaskConfig(held_out=1.0), "held_out is 1.0, expected a fraction"),
        (lambda: TaskConfig(network="rnn"), "network is 'rnn', expected one of mlp, cnn"),  # type: ignore[arg-type]
        (lambda: OuterConfig(steps=0), "steps and warmup are 0 and 20"),
        (lambda: OuterConfig(lr=0.0), "lr and clip are 0.0 and 1.0"),
        (lambda: MetaTrainConfig(out=Path("x"), evaluate_every=0), "evaluate_every is 0"),
    ],
)
def test_refused_options(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_differences_ignore_what_does_not_matter(tmp_path: Path) -> None:
    one, two = (config(tmp_path / name, quiet=name == "a").record() for name in "ab")
    assert differences(one, two) == []
    assert differences(one, two | {"device": "cuda"}) == ["device was 'cpu', now 'cuda'"]


def test_learning_rate_rises_then_falls() -> None:
    outer = OuterConfig(steps=100, warmup=10, lr=2.0, final_lr=0.1)
    rates = [learning_rate(outer, step) for step in range(100)]
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.2, abs=2e-3)
    assert len(TRAIN_COLUMNS) == len(set(TRAIN_COLUMNS))
