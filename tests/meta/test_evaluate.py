"""Comparisons are fair: the same start and the same minibatches for every optimizer, whatever its form."""

from __future__ import annotations

import math

import pytest
import torch

from nfn_opt.meta import ClassificationTask, Curves, evaluate, tuned_adam
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


def test_a_diverged_run_scores_infinity() -> None:
    curves = Curves(torch.zeros(2, 1), torch.tensor([0.5, math.nan]))
    assert curves.score == math.inf


@pytest.mark.parametrize(("seeds", "steps", "match"), [((), 1, "seeds is empty"), ((0,), 0, "got 0")])
def test_refused_options(
    seeds: tuple[int, ...], steps: int, match: str, tiny_task: ClassificationTask
) -> None:
    with pytest.raises(ValueError, match=match):
        evaluate(make_rule("sgd").double(), tiny_task, seeds=seeds, steps=steps)
    with pytest.raises(ValueError, match="learning_rates is empty"):
        tuned_adam(tiny_task, seeds=(0,), steps=1, learning_rates=())
