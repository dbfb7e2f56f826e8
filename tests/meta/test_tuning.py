"""Tuning trains every setting as it would be trained alone, and chooses the best fairly."""

from __future__ import annotations

import math

import pytest
import torch

from nfn_opt.meta import ClassificationTask, Setting, evaluate, tune
from nfn_opt.meta.tuning import LEARNING_RATES
from nfn_opt.optim import Scheduled, make_rule

RATES = (0.01, 0.3)


@pytest.mark.parametrize("kind", LEARNING_RATES)
def test_every_setting_is_as_if_trained_alone(kind: str, tiny_task: ClassificationTask) -> None:
    tuned = tune(kind, tiny_task, learning_rates=RATES, seeds=(0, 1), steps=8)
    assert len(tuned.curves) == 6
    for setting in (Setting(0.01, "linear"), Setting(0.3, "cosine")):
        rule = Scheduled.of(make_rule(kind, lr=setting.lr).double(), setting.schedule)
        alone = evaluate(rule, tiny_task, seeds=(0, 1), steps=8)
        torch.testing.assert_close(tuned.curves[setting].losses, alone.losses, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(tuned.curves[setting].final, alone.final, rtol=1e-9, atol=1e-12)
    assert tuned.best_curves is tuned.curves[tuned.best]
    assert tuned.best_curves.score == min(curves.score for curves in tuned.curves.values())


def test_tuned_on_one_seed_and_reported_on_all(tiny_task: ClassificationTask) -> None:
    all_seeds = tune("adam", tiny_task, learning_rates=RATES, seeds=(0, 1), steps=20)
    one = tune("adam", tiny_task, learning_rates=RATES, seeds=(0, 1), steps=20, tuning_seeds=(0,))
    assert all(len(curves.final) == 1 for curves in one.curves.values())
    torch.testing.assert_close(one.best_curves.losses, all_seeds.curves[one.best].losses, rtol=1e-9, atol=0)
    best = min(one.curves, key=lambda setting: one.curves[setting].final.item())
    assert one.best == best


def test_the_grid_grows_at_its_edges(tiny_task: ClassificationTask) -> None:
    tuned = tune("sgd", tiny_task, learning_rates=(1e-3, 3e-3), seeds=(0,), steps=10, extend=2)
    assert sorted({setting.lr for setting in tuned.curves}) == [1e-3, 3e-3, 9e-3, 3e-2]
    assert tuned.at_edge
    inside = tune("sgd", tiny_task, learning_rates=(1e-4, 0.3, math.inf), seeds=(0,), steps=10, extend=2)
    assert len(inside.curves) == 9
    assert not inside.at_edge


def test_a_setting_that_fails_on_any_seed_is_not_chosen(tiny_task: ClassificationTask) -> None:
    tuned = tune("sgd", tiny_task, learning_rates=(0.1, math.inf), seeds=(0, 1), steps=10)
    assert tuned.best.lr == 0.1
    assert tuned.curves[Setting(math.inf, "constant")].score == math.inf


def test_refusals(tiny_task: ClassificationTask) -> None:
    with pytest.raises(ValueError, match="got 0 learning rates and 3 schedules for 'mlp'"):
        tune("mlp", tiny_task, seeds=(0,), steps=1)
    with pytest.raises(ValueError, match=r"tuning_seeds are \(5,\)"):
        tune("adam", tiny_task, seeds=(0,), steps=1, tuning_seeds=(5,))
