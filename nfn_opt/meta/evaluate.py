"""Comparing optimizers on a task: the same initial parameters and the same minibatches for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.meta.tasks import Params, Task, TaskWrapper
from nfn_opt.meta.trees import map_data
from nfn_opt.meta.unroll import init_state, unroll
from nfn_opt.optim.classic import AdamConfig, AdamRule
from nfn_opt.optim.rule import UpdateRule

OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""Makes an optimizer from named parameters, such as ``lambda params: torch.optim.Adam(params, lr=1e-3)``."""

ADAM_LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates that Adam is tuned over by default."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """How one optimizer trained, one row for each seed.

    Attributes:
        losses: Minibatch loss before each update, shape (seeds, steps).
        final: Loss on all training data after the last update, shape (seeds,).
    """

    losses: Tensor
    final: Tensor

    @property
    def score(self) -> float:
        """Mean final loss; infinite if a run ended with a loss that is not finite."""
        mean = float(self.final.mean())
        return mean if mean == mean else float("inf")

    @property
    def spread(self) -> float:
        """Sample standard deviation of the final loss over seeds, 0 for one seed."""
        return float(self.final.std()) if len(self.final) > 1 else 0.0


@torch.no_grad()
def evaluate(
    optimizer: UpdateRule | OptimizerFactory, task: Task, *, seeds: Sequence[int], steps: int
) -> Curves:
    """Train networks of a task and record their losses.

    A seed fixes initial parameters and minibatches, whatever the optimizer and the other seeds are.

    Args:
        optimizer: An update rule, which trains all networks at once, or what makes a :mod:`torch.optim`
            optimizer from named parameters, which trains one after the other.
        task: The inner problem.
        seeds: One network is trained for each.
        steps: Number of updates.

    Raises:
        ValueError: If there is no seed, or ``steps`` is not positive.

    Example:
        >>> from nfn_opt.meta.classification import ClassificationTask
        >>> from nfn_opt.optim import make_rule
        >>> data, labels = torch.eye(3), torch.arange(3)
        >>> task = ClassificationTask(nn.Linear(3, 3), data, labels, batch_size=8)
        >>> sgd = evaluate(make_rule("sgd", lr=0.5), task, seeds=(0, 1), steps=30)
        >>> same = evaluate(lambda params: torch.optim.SGD(params, lr=0.5), task, seeds=(0, 1), steps=30)
        >>> bool(sgd.losses[:, -1].mean() < sgd.losses[:, 0].mean()), torch.allclose(sgd.losses, same.losses)
        (True, True)
    """
    if not seeds:
        raise ValueError("seeds is empty, expected at least one, such as range(5)")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if isinstance(optimizer, UpdateRule):
        return _with_rule(optimizer, _Seeded(task, seeds), steps)
    runs = [_with_optimizer(optimizer, _Seeded(task, (seed,)), steps) for seed in seeds]
    return Curves(torch.cat([run.losses for run in runs]), torch.cat([run.final for run in runs]))


@dataclasses.dataclass(frozen=True)
class Tuned:
    """An optimizer tuned over learning rates.

    Attributes:
        curves: What each learning rate gave.
        best: The learning rate with the lowest mean final loss.
    """

    curves: dict[float, Curves]
    best: float

    @property
    def best_curves(self) -> Curves:
        """What the best learning rate gave."""
        return self.curves[self.best]


def tuned_adam(
    task: Task,
    *,
    seeds: Sequence[int],
    steps: int,
    learning_rates: Sequence[float] = ADAM_LEARNING_RATES,
) -> Tuned:
    """Train with Adam (decays 0.9 and 0.999) at each learning rate, and choose by the mean final loss.

    The choice is made on the seeds that are reported, in favour of Adam.

    Args:
        task: The inner problem.
        seeds: As for :func:`evaluate`.
        steps: Number of updates.
        learning_rates: What to choose from.

    Raises:
        ValueError: If there is no learning rate.
    """
    if not learning_rates:
        raise ValueError("learning_rates is empty, expected at least one, such as (1e-3,)")
    curves = {}
    for lr in learning_rates:
        rule = AdamRule(AdamConfig(lr=lr)).to(next(iter(task.init(torch.Generator(), 1).values())).dtype)
        curves[lr] = evaluate(rule, task, seeds=seeds, steps=steps)
    return Tuned(curves, min(curves, key=lambda lr: curves[lr].score))


class _Seeded(TaskWrapper):
    """A task that draws from its own generators, one for each seed, not from the one it is called with."""

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        super().__init__(task)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def init(self, generator: torch.Generator, n: int) -> Params:
        drawn = [self.task.init(own, 1) for own in self.generators]
        return {name: torch.cat([params[name] for params in drawn]) for name in drawn[0]}

    def batch(self, generator: torch.Generator, n: int) -> Any:
        drawn = [self.task.batch(own, 1) for own in self.generators]
        return map_data(lambda *parts: torch.cat(parts), *drawn)


def _with_rule(rule: UpdateRule, task: _Seeded, steps: int) -> Curves:
    unused = torch.Generator()
    params = task.init(unused, len(task.generators))
    state = init_state(rule, task, params)
    end = unroll(rule, task, params, state, steps=steps, start_step=0, generator=unused)
    return Curves(end.losses.t(), task.full_losses(end.params))


def _with_optimizer(factory: OptimizerFactory, task: _Seeded, steps: int) -> Curves:
    unused = torch.Generator()
    params = {name: nn.Parameter(p[0]) for name, p in task.init(unused, 1).items()}
    optimizer = factory(params.items())
    losses = []
    for _ in range(steps):
        batch = map_data(lambda tensor: tensor[0], task.batch(unused, 1))

        def closure(batch: Any = batch) -> float:
            optimizer.zero_grad()
            loss = task.loss(params, batch)
            loss.backward()
            return loss.item()

        losses.append(optimizer.step(closure))
    return Curves(
        torch.tensor([losses]), task.full_losses({name: p.detach()[None] for name, p in params.items()})
    )
