"""Tuning hand-designed optimizers on a task, over learning rates and schedules in one batch of networks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nfn_opt.meta.evaluate import MAX_NETWORKS, Curves, Probe, evaluate_runs
from nfn_opt.meta.tasks import Task
from nfn_opt.optim.classic_schedule import SCHEDULES, Schedule, Scheduled, ScheduledConfig, one_hot

LEARNING_RATES: dict[str, tuple[float, ...]] = {
    "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "nadam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "lion": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "muon": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
"""Learning rates to tune over, for each kind of rule."""


class Setting(NamedTuple):
    """What is tuned: the learning rate and its schedule."""

    lr: float
    schedule: Schedule


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What each setting gave.

    Attributes:
        curves: Of each setting, with the seeds that it was tuned on.
        best: The setting with the lowest mean final loss; a failed run counts as infinite.
        best_curves: Of the best setting, with all seeds.
    """

    curves: dict[Setting, Curves]
    best: Setting
    best_curves: Curves

    @property
    def at_edge(self) -> bool:
        """Whether the best learning rate is the smallest or the largest one, so that others may be better."""
        rates = [setting.lr for setting in self.curves]
        return self.best.lr in (min(rates), max(rates))


def tune(
    kind: str,
    task: Task,
    *,
    learning_rates: Sequence[float] | None = None,
    schedules: Sequence[Schedule] = SCHEDULES,
    seeds: Sequence[int],
    steps: int,
    tuning_seeds: Sequence[int] | None = None,
    extend: int = 0,
    probe: Probe | None = None,
    options: Mapping[str, Any] | None = None,
    compiled: bool = False,
    max_networks: int = MAX_NETWORKS,
) -> Tuning:
    """Train with every learning rate and schedule, and choose by the mean final loss.

    Args:
        kind: Kind of a rule with the option ``lr``, such as ``"adam"``.
        task: The inner problem.
        learning_rates: To choose from; those of :data:`LEARNING_RATES` if ``None``.
        schedules: To choose from.
        seeds: As for :func:`nfn_opt.meta.evaluate`; the best setting is trained with all.
        steps: Number of updates.
        tuning_seeds: The seeds that the choice is made with, among ``seeds``; all of them if ``None``, which
            favours the optimizer most.
        extend: While the best learning rate is the smallest or largest, try the next one beyond, at most so often.
        probe: What else to measure on the way.
        options: Other options of the rule.
        compiled: As for :func:`nfn_opt.meta.evaluate`.
        max_networks: As for :func:`nfn_opt.meta.evaluate_runs`.

    Raises:
        ValueError: If there is nothing to choose from, the kind is unknown, or tuning seeds are no seeds.

    Example:
        >>> from nfn_opt.meta.classification import ClassificationTask
        >>> task = ClassificationTask(torch.nn.Linear(3, 3), torch.eye(3), torch.arange(3), batch_size=8)
        >>> tuned = tune("sgd", task, learning_rates=(0.01, 1.0), seeds=(0, 1), steps=20, tuning_seeds=(0,))
        >>> tuned.best.lr, len(tuned.curves), len(tuned.best_curves.final)
        (1.0, 6, 2)
    """
    rates = list(LEARNING_RATES.get(kind, ()) if learning_rates is None else learning_rates)
    if not rates or not schedules:
        raise ValueError(
            f"got {len(rates)} learning rates and {len(schedules)} schedules for {kind!r}, expected at least "
            "one of each, such as (1e-3,) and ('constant',)"
        )
    chosen_with = tuple(seeds if tuning_seeds is None else tuning_seeds)
    if not set(chosen_with) <= set(seeds):
        raise ValueError(f"tuning_seeds are {chosen_with}, expected some of the seeds {tuple(seeds)}")
    rule = _scheduled(kind, dict(options or {}), task)

    def run(settings: Sequence[Setting], with_seeds: Sequence[int]) -> dict[Setting, Curves]:
        found = evaluate_runs(
            rule,
            task,
            outer_parameters(settings),
            seeds=with_seeds,
            steps=steps,
            probe=probe,
            compiled=compiled,
            max_networks=max_networks,
        )
        return dict(zip(settings, found, strict=True))

    curves = run([Setting(*pair) for pair in itertools.product(rates, schedules)], chosen_with)
    best = _best(curves)
    for _ in range(extend):
        further = beyond([setting.lr for setting in curves], best.lr)
        if further is None:
            break
        curves |= run([Setting(further, schedule) for schedule in schedules], chosen_with)
        best = _best(curves)
    whole = curves[best] if chosen_with == tuple(seeds) else run([best], seeds)[best]
    return Tuning(curves, best, whole)


def outer_parameters(settings: Sequence[Setting]) -> dict[str, Tensor]:
    """What :class:`Scheduled` around a rule with ``lr=1`` takes for each setting, ``{name: (runs, *shape)}``."""
    rates = torch.tensor([setting.lr for setting in settings], dtype=torch.float64)
    return {
        "rule.log_lr": rates.log(),
        "mix": torch.stack([one_hot(setting.schedule) for setting in settings]),
    }


def _scheduled(kind: str, options: dict[str, Any], task: Task) -> Scheduled:
    example = next(iter(task.init(torch.Generator(), 1).values()))
    return Scheduled(ScheduledConfig(rule=kind, options={**options, "lr": 1.0})).to(example)


def _best(curves: Mapping[Setting, Curves]) -> Setting:
    return min(curves, key=lambda setting: curves[setting].score)


def beyond(rates: Sequence[float], best: float) -> float | None:
    """The next learning rate past the edge that the best one is at, if it is at one."""
    low, high = min(rates), max(rates)
    if best not in (low, high) or low == high:
        return None
    ratio = 10**0.5
    return float(f"{best / ratio:.1g}" if best == low else f"{best * ratio:.1g}")
