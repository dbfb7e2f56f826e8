"""The outer loop: several families, exact resumption with every estimator, guards, timers."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nfn_opt.artifacts import ArtifactError, read_header
from nfn_opt.meta import (
    DivergenceError,
    FamilyConfig,
    InnerConfig,
    MetaTrainConfig,
    MetaTrainResult,
    OuterConfig,
    Processes,
    RunFolder,
    TaskConfig,
    evaluate,
    meta_train,
)
from nfn_opt.meta.checkpoint import load_checkpoint
from nfn_opt.meta.run import Run
from nfn_opt.meta.stopping import Agenda, StopRequest
from nfn_opt.optim import load_rule, rule_metadata

FAMILIES = (
    FamilyConfig(name="quadratic", instances=2, networks=3, redraw_every=3),
    FamilyConfig(instances=1),
)


def config(out: Path, **changes: Any) -> MetaTrainConfig:
    """Six outer steps on two random quadratics and the digits."""
    small = MetaTrainConfig(
        out=out,
        rule="mlp",
        rule_options={"hidden": [4], "features": ["gradient", "scaled_momentum"]},
        families=FAMILIES,
        task=TaskConfig(widths=(4,), batch_size=8),
        inner=InnerConfig(tasks=2, horizon=8, truncation=2, shortest_horizon=3, estimator="pes"),
        outer=OuterConfig(steps=6, warmup=2, lr=0.01),
        evaluate_every=6,
        evaluation_seeds=2,
        compare_with_adam=False,
        checkpoint_every=2,
        log_tasks_every=3,
        quiet=True,
    )
    return dataclasses.replace(small, **changes)


def inner(**changes: Any) -> InnerConfig:
    return dataclasses.replace(config(Path()).inner, **changes)


def rows(path: Path) -> list[Mapping[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def weights(result: MetaTrainResult) -> dict[str, torch.Tensor]:
    return load_rule(result.folder.rule).state_dict()


def stopped_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the time of a sitting be over after an outer step."""
    after = Agenda.after

    def over(self: Agenda, made: int) -> Any:
        due = after(self, made)
        return dataclasses.replace(due, time_over=made == step, checkpoint=due.checkpoint or made == step)

    monkeypatch.setattr(Agenda, "after", over)


@pytest.mark.parametrize(
    "changes",
    [
        {"inner": inner(estimator="pes", rescale=("none", "global", "parameter"))},
        {"inner": inner(estimator="es", shortest_truncation=1)},
        {"inner": inner(mixture={"pes": 1.0, "backprop": 0.5})},
        {"outer": OuterConfig(steps=6, warmup=2, lr=0.01, ema=0.5, balance=True, tasks_per_step=1)},
    ],
    ids=["pes", "es", "mixture", "outer"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = meta_train(config(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        part = meta_train(config(tmp_path / "part", **changes))
    assert (part.step, part.finished, part.stopped_by, part.metrics) == (3, False, None, {})
    part = meta_train(config(tmp_path / "part", **changes), resume=True)
    assert part.finished
    for name in ("train_log", "task_log", "evaluation_log"):
        assert rows(getattr(part.folder, name)) == rows(getattr(whole.folder, name))
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(part)[name], tensor)
    stored = [load_checkpoint(result.folder.checkpoint)[0] for result in (whole, part)]
    torch.testing.assert_close(*stored, rtol=0, atol=0, equal_nan=True)


def test_what_several_families_log(tmp_path: Path) -> None:
    result = meta_train(config(tmp_path / "run"))
    names = ["quadratic/0", "digits", "quadratic/1"]
    assert [row["task"] for row in rows(result.folder.task_log)] == 2 * names
    assert [row["task"] for row in rows(result.folder.evaluation_log)] == ["quadratic/0", "digits"]
    assert {"quadratic/0/final_loss", "digits/final_loss"} < result.metrics.keys()
    assert [path.name for path in result.folder.rules.iterdir()] == ["step_0000006.safetensors"]
    trained = rule_metadata(result.folder.snapshot(6))["meta_training"]["families"]
    assert [family["name"] for family in trained] == ["quadratic", "images"]
    last = rows(result.folder.train_log)[-1]
    losses = [float(row["meta_loss"]) for row in rows(result.folder.task_log)[-3:]]
    assert float(last["meta_loss"]) == pytest.approx(sum(losses) / 3)


def test_tasks_take_turns_and_are_redrawn() -> None:
    run = Run(config(Path("x"), outer=OuterConfig(steps=9, tasks_per_step=1)))
    first = run.slots[0].task
    turns = []
    for _ in range(4):
        turns += run.active()
        run.advance()
    assert turns == [0, 1, 2, 0]
    assert run.slots[0].task is not first
    assert run.slots[0].epoch == 1


def test_a_slot_does_not_depend_on_the_others() -> None:
    whole = Run(config(Path("x")))
    alone = Run(config(Path("x"), families=FAMILIES[:1]))
    for a, b in ((0, 0), (2, 1)):
        one, other = (run.slots[i].advance(0, run.outer.parameters) for run, i in ((whole, a), (alone, b)))
        assert torch.equal(one, other)


def test_a_slot_that_is_not_finite_is_left_out() -> None:
    run, clean = (Run(config(Path("x"), outer=OuterConfig(steps=6, warmup=0))) for _ in range(2))
    for p in run.slots[1].carry.params.values():
        p.fill_(torch.inf)
    row = run.advance()
    assert (row["left_out"], row["dropped"], row["skipped"]) == (1, 2, 0)
    rows = torch.stack([clean.slots[i].advance(0, clean.outer.parameters) for i in (0, 2)])
    assert row["meta_loss"] == pytest.approx(float(rows[:, -3].mean()))
    assert row["gradient_norm"] == pytest.approx(float(rows[:, :-3].mean(0).norm()))


def test_balance_gives_every_task_the_same_weight() -> None:
    run = Run(config(Path("x"), outer=OuterConfig(steps=6, balance=True)))
    gradients = torch.zeros(2, run.outer.size, dtype=torch.float64)
    gradients[0, 0], gradients[1, 1] = 1000.0, 0.001
    norm = run.outer.apply(0, [0, 2], gradients, torch.tensor([True, True]))
    assert norm == pytest.approx(0.5**0.5)
    assert run.outer.norms.tolist() == pytest.approx([1000.0, 0.0, 0.001])


def test_ema_is_the_rule_that_is_kept(tmp_path: Path) -> None:
    result = meta_train(config(tmp_path / "run", outer=OuterConfig(steps=3, warmup=0, lr=0.1, ema=0.5)))
    seen: list[dict[str, torch.Tensor]] = []
    run = Run(config(tmp_path, outer=OuterConfig(steps=3, warmup=0, lr=0.1)))
    for _ in range(3):
        run.advance()
        seen.append({name: tensor.clone() for name, tensor in run.rule.state_dict().items()})
    for name, tensor in weights(result).items():
        mean = 0.25 * seen[0][name] + 0.25 * seen[1][name] + 0.5 * seen[2][name]
        torch.testing.assert_close(tensor, mean)


def test_learning_rates_of_single_parameters() -> None:
    outer = OuterConfig(steps=6, warmup=0, lr=0.1, lr_factors={"*bias*": 0, "*.weight": 0.5})
    run = Run(config(Path("x"), outer=outer))
    names = [name for name, _ in run.rule.named_parameters()]
    before = {name: p.detach().clone() for name, p in run.rule.named_parameters()}
    run.advance()
    for name, p in run.rule.named_parameters():
        assert torch.equal(p, before[name]) == ("bias" in name)
    assert any("bias" in name for name in names)
    with pytest.raises(
        ValueError, match=r"the pattern 'lstm.\*', which matches none of the outer parameters"
    ):
        Run(config(Path("x"), outer=OuterConfig(lr_factors={"lstm.*": 0.5})))
    with pytest.raises(ValueError, match="nothing is left to train"):
        Run(config(Path("x"), outer=OuterConfig(lr_factors={"*": 0})))


def diverging(out: Path, **changes: Any) -> MetaTrainConfig:
    """A run that goes well for three outer steps; then nothing is finite any more."""
    return config(
        out,
        families=(FamilyConfig(),),
        outer=OuterConfig(steps=20, give_up_after=3),
        checkpoint_every=1,
        **changes,
    )


def break_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    advance = Run.advance

    def broken(self: Run) -> dict[str, Any]:
        if self.step == step:
            with torch.no_grad():
                for p in self.rule.parameters():
                    p.fill_(torch.inf)
        return advance(self)

    monkeypatch.setattr(Run, "advance", broken)


def test_divergence_names_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_after(patch, 3)
        with pytest.raises(
            DivergenceError, match=r"in 3 outer steps up to step 6.*dropped so far: digits 6"
        ) as e:
            meta_train(diverging(tmp_path / "run"))
    good = tmp_path / "run" / "checkpoint.safetensors"
    assert f"the last good checkpoint is {good}" in str(e.value)
    tensors, progress = load_checkpoint(good)
    assert (progress["step"], progress["in_a_row"]) == (3, 0)
    assert all(torch.isfinite(tensor).all() for name, tensor in tensors.items() if name.startswith("rule/"))
    assert (tmp_path / "run" / "diverged.txt").read_text() == f"{e.value}\n"
    again = config(tmp_path / "again", rule_options={}, start_from=good, outer=OuterConfig(steps=1, lr=1e-9))
    for name, tensor in weights(meta_train(again)).items():
        torch.testing.assert_close(tensor, tensors[f"rule/{name}"], rtol=0, atol=1e-8)


def test_a_stop_among_failing_steps_keeps_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_after(patch, 3)
        stopped_after(patch, 4)
        folder = meta_train(diverging(tmp_path / "run")).folder
    assert read_header(folder.checkpoint)[1]["progress"]["in_a_row"] == 1
    assert folder.last_good() == folder.previous
    assert read_header(folder.previous)[1]["progress"]["step"] == 3
    with pytest.raises(DivergenceError, match=r"the last good checkpoint is .*checkpoint_before"):
        meta_train(diverging(tmp_path / "run"), resume=True)


def test_resuming_a_restarted_run_that_has_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_after(patch, 2)
        with pytest.raises(DivergenceError):
            meta_train(diverging(tmp_path / "run"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(DivergenceError, match="up to step 5"):
        meta_train(diverging(tmp_path / "run"))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    assert meta_train(diverging(tmp_path / "run"), resume=True).finished  # nothing breaks it now
    assert not (tmp_path / "run" / "diverged.txt").exists()


def test_restarted_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = config(tmp_path / "run", families=FAMILIES[:1], outer=OuterConfig(steps=1))
    RunFolder(small.out).claim(small.record(), "")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert meta_train(small).finished


def test_agenda_counts_steps_and_minutes() -> None:
    now = [0.0]
    timed = config(
        Path("x"), evaluate_every=4, evaluate_minutes=2, checkpoint_every=100, checkpoint_minutes=3, minutes=5
    )
    agenda = Agenda(timed, Processes(), StopRequest(), clock=lambda: now[0])
    seen = []
    for step, minutes in ((1, 1), (2, 2), (3, 3), (4, 3.5), (5, 5.0)):
        now[0] = 60.0 * minutes
        due = agenda.after(step)
        seen.append((due.evaluate, due.checkpoint, due.time_over))
    assert seen == [
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (True, False, False),
        (False, True, True),
    ]


def test_a_rule_for_one_weight_space(tmp_path: Path) -> None:
    options = {"hidden": [4], "channels": 2, "sharing": "per_parameter"}
    images = (FamilyConfig(),)
    one = config(
        tmp_path / "run", rule="nfn", rule_options=options, families=images, outer=OuterConfig(steps=2)
    )
    result = meta_train(one)
    held_out = Run(one).held_out[0].draw(0)
    rule = load_rule(result.folder.rule, space=held_out.space)
    curves = evaluate(rule, held_out, seeds=(0,), steps=2)
    assert torch.isfinite(curves.losses).all()
    further = config(tmp_path / "more", rule_options={}, start_from=result.folder.rule, families=images)
    assert Run(further).rule.space_fingerprint == held_out.space.fingerprint
    with pytest.raises(ValueError, match=r"outer parameters for one weight space, but .*redrawn"):
        Run(dataclasses.replace(one, families=FAMILIES))
    several = (*images, FamilyConfig(name="quadratic"))
    with pytest.raises(ValueError, match=r"have several: digits has \w+, quadratic/0 has \w+; train on one"):
        Run(dataclasses.replace(one, families=several))


@pytest.mark.parametrize(
    ("changes", "processes", "match"),
    [
        (
            {"families": (FamilyConfig(name="quadratics"),)},
            1,
            r"family .* 'quadratics' \(did you mean 'quadratic'",
        ),
        (
            {"families": (FamilyConfig(name="mlp", options={"size": 3}),)},
            1,
            "the family 'mlp' refuses its options",
        ),
        ({"families": (FamilyConfig(), FamilyConfig())}, 1, "the family 'images' is given twice"),
        ({"outer": OuterConfig(tasks_per_step=2)}, 1, "tasks_per_step is 2, expected a divisor of .* 3"),
        ({}, 4, "there are 4 processes for the 3 instances"),
    ],
)
def test_runs_that_cannot_be(changes: dict[str, Any], processes: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Run(config(Path("x"), **changes), Processes(0, processes))


def test_a_checkpoint_of_other_families_is_refused(tmp_path: Path) -> None:
    run = Run(config(tmp_path))
    run.save(tmp_path / "c.safetensors")
    with pytest.raises(ArtifactError, match="does not fit this run"):
        Run(config(tmp_path, task=TaskConfig(widths=(5,)))).load(tmp_path / "c.safetensors")


def test_augmented_families_and_their_record(tmp_path: Path) -> None:
    options = {"augmentation": {"loss_scale": [10.0, 10.0]}}
    plain, scaled = (
        Run(config(tmp_path, families=(FamilyConfig(name="quadratic", options=o),))).slots[0].task
        for o in ({}, options)
    )
    generator = torch.Generator().manual_seed(0)
    params = plain.init(generator, 2)
    torch.testing.assert_close(10 * plain.full_losses(params), scaled.full_losses(params))
    json.dumps(config(tmp_path, families=(FamilyConfig(name="quadratic", options=options),)).record())
