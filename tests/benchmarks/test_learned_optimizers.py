"""The benchmark from end to end on a tiny task: files, going on after a stop, refusals, comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import learned_optimizers as benchmark
from benchmarks import learned_optimizers_report as report
from benchmarks import learned_optimizers_runs as runs
from benchmarks.learned_optimizers_runs import (
    Options,
    Record,
    Training,
    carry_out,
    carry_out_all,
    refuse_overlap,
    trained_on,
)
from nfn_opt.meta import ClassificationTask, SuiteTask
from nfn_opt.optim import make_rule, save_rule


def tiny_suite(names: list[str] | None = None) -> tuple[SuiteTask, ...]:
    def build(_: object) -> ClassificationTask:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(12, 2, generator=generator)
        return ClassificationTask(torch.nn.Linear(2, 2), inputs, (inputs.sum(1) > 0).long(), batch_size=4)

    known = [SuiteTask(name, "cnn", build, horizon=10) for name in ("one", "two")]
    return tuple(task for task in known if names is None or task.name in names)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (benchmark, runs):
        monkeypatch.setattr(module, "suite", tiny_suite)
    monkeypatch.setattr(benchmark, "LONG_TASKS", ("two",))
    monkeypatch.setattr(benchmark, "FACTORS", (2,))
    monkeypatch.setattr(
        benchmark, "step_milliseconds", lambda task, rules: dict.fromkeys([*rules, *runs.OPTIMIZERS], 2.0)
    )
    runs.build.cache_clear()
    runs.task_digest.cache_clear()


@pytest.fixture
def rules(tmp_path: Path) -> list[str]:
    made = {"slow": make_rule("sgd", lr=1e-4), "fast": make_rule("adam", lr=0.3)}
    families = {"meta_training": {"families": [{"name": "mlp"}, {"name": "quadratic"}]}}
    return [str(save_rule(rule, tmp_path / f"{name}.safetensors", families)) for name, rule in made.items()]


def test_end_to_end_and_again(tmp_path: Path, rules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    arguments = ["--workers", "0", "--out", str(out), "--rules", *rules]
    benchmark.main(arguments)
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"]["adam/speed_up"] == 1
    assert result["metrics"]["slow/wins"] == 0
    assert result["metrics"]["fast against slow/win_rate"] == [1.0, 1.0, 1.0]
    assert {"learned_optimizers.md", "learned_optimizers.png", "learned_optimizers_time.png"} <= {
        path.name for path in out.iterdir()
    }
    text = (out / "learned_optimizers.md").read_text()
    assert "| two | 2x |" in text
    assert "| fast | slow | 2 of 2 |" in text
    monkeypatch.setattr(runs, "_train", lambda *_: pytest.fail("was trained again"))
    benchmark.main(arguments)


@pytest.mark.slow
def test_in_other_processes(tmp_path: Path) -> None:
    trainings = [Training(task="siren-patch", optimizer=kind) for kind in ("sgd", "lion")]
    options = Options(share=0.002, seeds=1, schedules=("constant",), extend=0)
    found = dict(carry_out_all(trainings, options, tmp_path, workers=1))
    assert {training.optimizer: record.losses.shape for training, record in found.items()} == {
        "sgd": (1, 2),
        "lion": (1, 2),
    }


def test_what_changed_is_trained_again(tmp_path: Path, rules: list[str]) -> None:
    training = Training(task="one", optimizer="fast", rule=rules[1])
    first = carry_out(training, Options(), tmp_path)
    save_rule(make_rule("adam", lr=1e-3), rules[1])
    second = carry_out(training, Options(), tmp_path)
    third = carry_out(training, Options(seeds=2), tmp_path)
    assert not np.allclose(first.final, second.final)
    np.testing.assert_allclose(second.final[:2], third.final, rtol=1e-5)


def test_a_failed_run_survives_its_file(tmp_path: Path) -> None:
    path = str(save_rule(make_rule("sgd", lr=1e300), tmp_path / "wild.safetensors"))
    training = Training(task="one", optimizer="wild", rule=path)
    trained, read = (carry_out(training, Options(seeds=1), tmp_path) for _ in range(2))
    assert trained.failed.all()
    assert read.failed.all()
    assert not np.isfinite(read.losses).all()


def test_families_of_a_rule(tmp_path: Path) -> None:
    def families(meta_training: dict[str, object], **more: object) -> tuple[str, ...]:
        path = tmp_path / "rule.safetensors"
        save_rule(make_rule("sgd"), path, {"meta_training": meta_training, **more})
        return trained_on(str(path))

    assert families({}) == ()
    assert families({"task": {"network": "mlp"}}) == ("mlp",)
    assert families({"families": [{"name": "inr"}, {"name": "cnn"}]}) == ("inr", "cnn")
    assert families({"families": [{"name": "images"}], "task": {"network": "cnn"}}) == ("cnn",)
    before = {"meta_training": {"families": [{"name": "inr"}]}}
    assert families({"families": [{"name": "mlp"}, {"name": "inr"}]}, started_from=before) == ("inr", "mlp")
    assert trained_on("default") == ("mlp", "teacher-student", "recurrent")


def test_a_rule_trained_on_the_family_is_refused(tmp_path: Path) -> None:
    families = {"meta_training": {"families": [{"name": "cnn"}]}}
    path = str(save_rule(make_rule("sgd"), tmp_path / "rule.safetensors", families))
    with pytest.raises(ValueError, match="was meta-trained on cnn"):
        refuse_overlap([path], tiny_suite())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--data", "mnist"], "--data got 'mnist', expected NAME=FILE"),
        (["--rules", "adam=x.safetensors"], "label 'adam' is taken"),
        (["--rules", "a/x.safetensors", "b/x.safetensors"], "label 'x' is taken"),
    ],
)
def test_refused_arguments(arguments: list[str], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "refuse_overlap", lambda *_: None)
    with pytest.raises(ValueError, match=match):
        benchmark.main(arguments)


def record(final: list[float], rate: float) -> Record:
    curve = np.exp(-rate * np.arange(200))
    return Record(np.stack([curve] * 3), np.ones(3), np.array(final), "0.01 cosine", False, 21, 1.0)


def test_failures_count_as_failures() -> None:
    records = {
        ("a", "adam"): record([0.1] * 3, 0.01),
        ("a", "rule"): record([0.05, 0.05, np.inf], 0.02),
        ("b", "adam"): record([0.1] * 3, 0.01),
        ("b", "rule"): record([0.05] * 3, 0.02),
    }
    summary = report.summarise(records, ["a", "b"], "rule")
    assert (summary.wins, summary.tasks, summary.failures, summary.runs) == (1, 2, 1, 6)
    assert summary.win_rate.value == 0.5
    assert report.speed_ups(records, ["a"], "rule")[0, 2] == 0
    assert summary.reached == pytest.approx(5 / 6)
    assert "failed (1 of 3)" in report.loss_table(records, ["a", "b"], ["rule", "adam"])
    again = report.summarise(records, ["a", "b"], "adam", "rule")
    assert again.wins == 1
