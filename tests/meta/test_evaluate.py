"""Comparisons are fair: the same start and the same minibatches for every optimizer, whatever its form."""

from __future__ import annotations

import math

import pytest
import torch

from nfn_opt.data import ImageData
from nfn_opt.meta import ClassificationTask, Curves, Probe, evaluate, evaluate_runs, tuned_adam
from nfn_opt.meta.families import InrTask
from nfn_opt.meta.families.networks import siren
from nfn_opt.optim import LearnedOptimizer, make_rule


@pytest.mark.parametrize(
    ("rule", "factory"),
    [
        (
            make_rule("sgd", lr=0.3, momentum=0.9),
            lambda params: torch.optim.SGD(params, lr=0.3, momentum=0.9),
        ),
        (make_rule("adam", lr=0.05), lambda params: torch.optim.Adam(params, lr=0.05)),
        (make_rule("mlp"), lambda params: LearnedOptimizer(params, rule=make_rule("mlp").double())),
    ],
    ids=["sgd", "adam", "mlp"],
)
def test_a_rule_and_its_optimizer_give_the_same_curves(rule, factory, tiny_task: ClassificationTask) -> None:  # type: ignore[no-untyped-def]
    batched = evaluate(rule.double(), tiny_task, seeds=(3, 5), steps=12)
    single = evaluate(factory, tiny_task, seeds=(3, 5), steps=12)
    assert batched.losses.shape == single.losses.shape == (2, 12)
    torch.testing.assert_close(batched.losses, single.losses.double(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(batched.final, single.final, rtol=1e-6, atol=1e-8)


def test_a_seed_does_not_depend_on_the_others(tiny_task: ClassificationTask) -> None:
    rule = make_rule("adam", lr=0.05).double()
    both, one = (evaluate(rule, tiny_task, seeds=seeds, steps=5) for seeds in ((1, 2), (2,)))
    torch.testing.assert_close(both.losses[1], one.losses[0], rtol=1e-12, atol=0)
    assert not torch.equal(both.losses[0], both.losses[1])


def test_adam_is_tuned_by_its_final_loss(tiny_task: ClassificationTask) -> None:
    rates = (1e-4, 0.1)
    tuned = tuned_adam(tiny_task, seeds=(0, 1), steps=30, learning_rates=rates)
    for lr in rates:
        alone = evaluate(make_rule("adam", lr=lr).double(), tiny_task, seeds=(0, 1), steps=30)
        torch.testing.assert_close(tuned.curves[lr].losses, alone.losses, rtol=1e-10, atol=0)
    assert tuned.best == 0.1
    assert tuned.best_curves.score < tuned.curves[1e-4].score


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # from within torch's own compiler
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_many_runs_are_one_batch(tiny_task: ClassificationTask, compiled: bool) -> None:
    rates = {"log_lr": torch.tensor([0.01, 0.1, 0.3], dtype=torch.float64).log()}
    rule = make_rule("adam", lr=1.0).double()
    runs = evaluate_runs(rule, tiny_task, rates, seeds=(3, 5), steps=6, max_networks=4, compiled=compiled)
    for run, lr in zip(runs, (0.01, 0.1, 0.3), strict=True):
        alone = evaluate(make_rule("adam", lr=lr).double(), tiny_task, seeds=(3, 5), steps=6)
        for mine, expected in ((run.losses, alone.losses), (run.final, alone.final)):
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(run.initial, alone.initial, rtol=0, atol=0)


def test_a_probe_measures_on_the_way(tiny_task: ClassificationTask) -> None:
    rule = make_rule("adam", lr=0.05).double()
    probe = Probe(tiny_task.full_losses, every=4)
    batched = evaluate(rule, tiny_task, seeds=(3, 5), steps=12, probe=probe)
    single = evaluate(lambda p: torch.optim.Adam(p, lr=0.05), tiny_task, seeds=(3, 5), steps=12, probe=probe)
    assert batched.probes is not None
    assert batched.probes.shape == (2, 3)
    torch.testing.assert_close(batched.probes, single.probes, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(batched.probes[:, -1], batched.final, rtol=0, atol=0)
    with pytest.raises(ValueError, match="every is 0"):
        Probe(tiny_task.full_losses, every=0)


NAN, INF = math.nan, math.inf


def test_a_failed_run_scores_infinity() -> None:
    losses = torch.tensor([[1.0, 0.5], [1.0, NAN], [1.0, 0.5], [1.0, 0.5], [1.0, 0.5]])
    curves = Curves(losses, torch.tensor([0.5, 0.5, NAN, 1.5, 1.5]))
    assert curves.failed.tolist() == [False, True, True, True, True]
    assert curves.outcome.tolist() == [0.5, INF, INF, INF, INF]
    assert curves.score == INF
    initial = Curves(losses, curves.final, torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0]))
    assert initial.failed.tolist() == [False, True, True, True, False]


def test_unknown_outer_parameters_are_refused(tiny_task: ClassificationTask) -> None:
    for name, shape in (("lr", (2,)), ("log_lr", (2, 3))):
        with pytest.raises(ValueError, match=rf"theta gives '{name}' of shape"):
            evaluate_runs(
                make_rule("adam").double(), tiny_task, {name: torch.zeros(shape)}, seeds=(0,), steps=1
            )


@pytest.mark.parametrize(("seeds", "steps", "match"), [((), 1, "seeds is empty"), ((0,), 0, "got 0")])
def test_refused_options(
    seeds: tuple[int, ...], steps: int, match: str, tiny_task: ClassificationTask
) -> None:
    with pytest.raises(ValueError, match=match):
        evaluate(make_rule("sgd").double(), tiny_task, seeds=seeds, steps=steps)
    with pytest.raises(ValueError, match="learning_rates is empty"):
        tuned_adam(tiny_task, seeds=(0,), steps=1, learning_rates=())


def test_networks_of_a_task_by_place_are_evaluated_on_what_they_were_trained_on() -> None:
    images = torch.linspace(0, 1, 3).reshape(3, 1, 1, 1).expand(3, 4, 4, 1)
    data = ImageData(images, torch.zeros(3, dtype=torch.int64), ("gray",), "shades of gray")
    task = InrTask(siren(4, 1, 1, 3.0), data, batch_size=None, dtype=torch.float64)
    rule = make_rule("adam", lr=1e-6).double()
    factory = lambda params: torch.optim.Adam(params, lr=1e-6)  # noqa: E731
    for optimizer in (rule, factory):
        curves = evaluate(optimizer, task, seeds=(0, 1, 2), steps=2)
        torch.testing.assert_close(curves.initial, curves.losses[:, 0], rtol=1e-6, atol=0, check_dtype=False)
        torch.testing.assert_close(curves.final, curves.losses[:, -1], rtol=1e-3, atol=0, check_dtype=False)
