"""Comparing optimizers on a task: the same initial parameters and the same minibatches for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.meta.seeded import SeededTask
from nfn_opt.meta.stepper import InnerStep
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.meta.trees import map_data
from nfn_opt.meta.unroll import init_state
from nfn_opt.optim.classic import AdamConfig, AdamRule
from nfn_opt.optim.rule import UpdateRule

OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""Makes an optimizer from named parameters, such as ``lambda params: torch.optim.Adam(params, lr=1e-3)``."""

ADAM_LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates that Adam is tuned over by default."""

MAX_NETWORKS = 64
"""Networks that are trained as one batch by default; more are trained batch after batch."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """Something to measure while networks are trained, such as the loss on test data.

    Attributes:
        measure: From parameters ``{name: (n, *shape)}`` to one number, or several, for each network, shape
            (n,) or (n, k).
        every: Number of updates between measurements.
    """

    measure: Callable[[Params], Tensor]
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}, expected at least 1 update between measurements")


@dataclasses.dataclass(frozen=True)
class Curves:
    """How one optimizer trained, one row for each seed.

    Attributes:
        losses: Minibatch loss before each update, shape (seeds, steps).
        final: Loss on all training data after the last update, shape (seeds,).
        initial: Loss on all training data before the first update, shape (seeds,).
        probes: What was measured on the way, after ``every``, ``2 * every``, ... updates, shape
            (seeds, measurements) or (seeds, measurements, k).
    """

    losses: Tensor
    final: Tensor
    initial: Tensor | None = None
    probes: Tensor | None = None

    @property
    def failed(self) -> Tensor:
        """Which runs failed, bool, shape (seeds,): a loss was not finite, or the last is above the first."""
        start = self.losses[:, 0].to(self.final.dtype) if self.initial is None else self.initial
        finite = torch.isfinite(self.final) & torch.isfinite(self.losses).all(1)
        return ~finite | (self.final > start)

    @property
    def outcome(self) -> Tensor:
        """Final loss of each seed, infinite where the run failed, shape (seeds,)."""
        return self.final.masked_fill(self.failed, float("inf"))

    @property
    def score(self) -> float:
        """Mean final loss; infinite if a run failed."""
        return float(self.outcome.mean())

    @property
    def spread(self) -> float:
        """Sample standard deviation of the final loss over seeds, 0 for one seed."""
        return float(self.final.std()) if len(self.final) > 1 else 0.0


@torch.no_grad()
def evaluate(
    optimizer: UpdateRule | OptimizerFactory,
    task: Task,
    *,
    seeds: Sequence[int],
    steps: int,
    probe: Probe | None = None,
    compiled: bool = False,
) -> Curves:
    """Train networks of a task and record their losses.

    A seed fixes initial parameters and minibatches, whatever the optimizer and the other seeds are. A rule is
    told that the training has ``steps`` updates.

    Args:
        optimizer: An update rule, which trains all networks at once, or what makes a :mod:`torch.optim`
            optimizer from named parameters, which trains one after the other.
        task: The inner problem.
        seeds: One network is trained for each.
        steps: Number of updates.
        probe: What else to measure on the way.
        compiled: Whether to compile a rule's step, see :class:`InnerStep`; worth it for long trainings.

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
    if isinstance(optimizer, UpdateRule):
        return evaluate_runs(optimizer, task, {}, seeds=seeds, steps=steps, probe=probe, compiled=compiled)[0]
    _check(seeds, steps)
    runs = [_with_optimizer(optimizer, SeededTask(task, (seed,)), steps, probe) for seed in seeds]
    return _join(runs)


@torch.no_grad()
def evaluate_runs(
    rule: UpdateRule,
    task: Task,
    theta: Mapping[str, Tensor],
    *,
    seeds: Sequence[int],
    steps: int,
    probe: Probe | None = None,
    compiled: bool = False,
    max_networks: int = MAX_NETWORKS,
) -> list[Curves]:
    """Train with several values of a rule's outer parameters, each with every seed, in batches of networks.

    Args:
        rule: The update rule.
        task: The inner problem.
        theta: Outer parameters that differ from those of the rule, ``{name: (runs, *shape)}``; others are the
            same for all. Empty for one run with the parameters of the rule.
        seeds: As for :func:`evaluate`.
        steps: Number of updates.
        probe: What else to measure on the way.
        compiled: As for :func:`evaluate`.
        max_networks: Networks that are trained as one batch.

    Returns:
        One for each run.

    Raises:
        ValueError: If there is no seed, ``steps`` is not positive, or an outer parameter is unknown or has
            another shape.

    Example:
        >>> from nfn_opt.meta.classification import ClassificationTask
        >>> from nfn_opt.optim import make_rule
        >>> task = ClassificationTask(nn.Linear(3, 3), torch.eye(3), torch.arange(3), batch_size=8)
        >>> rates = {"log_lr": torch.log(torch.tensor([0.01, 1.0]))}
        >>> slow, fast = evaluate_runs(make_rule("sgd", lr=1.0), task, rates, seeds=(0, 1), steps=30)
        >>> fast.score < slow.score
        True
    """
    _check(seeds, steps)
    known = dict(rule.named_parameters())
    for name, values in theta.items():
        if name not in known or values.shape[1:] != known[name].shape:
            raise ValueError(
                f"theta gives {name!r} of shape {tuple(values.shape)}, expected (runs, *shape) of one of "
                f"{ {key: tuple(p.shape) for key, p in known.items()} }"
            )
    runs = len(next(iter(theta.values()))) if theta else 1
    size = max(1, max_networks // len(seeds))
    curves: list[Curves] = []
    for start in range(0, runs, size):
        part = {name: values[start : start + size] for name, values in theta.items()}
        count = min(size, runs - start)
        end = _train(rule, SeededTask(task, seeds, repeats=count), part, steps, probe, compiled)
        curves += _split(end, count)
    return curves


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

    The choice is made on the seeds that are reported, in favour of Adam. :func:`nfn_opt.meta.tune` does the same
    for other optimizers, with schedules.

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
    example = next(iter(task.init(torch.Generator(), 1).values()))
    rates = torch.tensor(learning_rates, dtype=torch.float64).log().to(example)
    rule = AdamRule(AdamConfig(lr=1.0)).to(example)
    found = evaluate_runs(rule, task, {"log_lr": rates}, seeds=seeds, steps=steps)
    curves = dict(zip(learning_rates, found, strict=True))
    return Tuned(curves, min(curves, key=lambda lr: curves[lr].score))


def _check(seeds: Sequence[int], steps: int) -> None:
    if not seeds:
        raise ValueError("seeds is empty, expected at least one, such as range(5)")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def _train(
    rule: UpdateRule,
    task: SeededTask,
    theta: Mapping[str, Tensor],
    steps: int,
    probe: Probe | None,
    compiled: bool,
) -> Curves:
    unused = torch.Generator()
    params = task.init(unused, task.networks)
    initial, state = task.full_losses(params), init_state(rule, task, params)
    given = _outer_parameters(rule, theta, len(task.seeds)) if theta else None
    step = InnerStep(rule, task, compiled=compiled)
    device = initial.device
    total, losses, probes = torch.full((task.networks,), steps, device=device), [], []
    for t in range(steps):
        now, batch = torch.full_like(total, t), task.batch(unused, task.networks)
        params, state, loss = step(params, state, batch, step=now, total_steps=total, theta=given)
        losses.append(loss)
        if probe is not None and (t + 1) % probe.every == 0:
            probes.append(probe.measure(params))
    return Curves(
        torch.stack(losses, 1), task.full_losses(params), initial, torch.stack(probes, 1) if probes else None
    )


def _outer_parameters(rule: UpdateRule, theta: Mapping[str, Tensor], seeds: int) -> Params:
    """Outer parameters of each network: each run has as many networks as there are seeds."""
    runs = len(next(iter(theta.values())))
    return {
        name: theta[name].to(p).repeat_interleave(seeds, 0)
        if name in theta
        else p.detach().expand(runs * seeds, *p.shape)
        for name, p in rule.named_parameters()
    }


def _with_optimizer(factory: OptimizerFactory, task: SeededTask, steps: int, probe: Probe | None) -> Curves:
    unused = torch.Generator()
    params = {name: nn.Parameter(p[0]) for name, p in task.init(unused, 1).items()}
    initial, optimizer = task.full_losses(_batched(params)), factory(params.items())
    losses, probes = [], []
    for t in range(steps):
        batch = map_data(lambda tensor: tensor[0], task.batch(unused, 1))

        def closure(batch: Any = batch) -> float:
            optimizer.zero_grad()
            loss = task.loss(params, batch)
            loss.backward()
            return loss.item()

        losses.append(optimizer.step(closure))
        if probe is not None and (t + 1) % probe.every == 0:
            probes.append(probe.measure(_batched(params)))
    measured = torch.stack(probes, 1) if probes else None
    return Curves(torch.tensor([losses]), task.full_losses(_batched(params)), initial, measured)


def _batched(params: Mapping[str, nn.Parameter]) -> Params:
    return {name: p.detach()[None] for name, p in params.items()}


def _split(curves: Curves, runs: int) -> list[Curves]:
    """The curves of each run, from those of all networks of all runs."""
    columns = [_rows(curves, field.name, runs) for field in dataclasses.fields(Curves)]
    return [Curves(*fields) for fields in zip(*columns, strict=True)]


def _rows(curves: Curves, field: str, runs: int) -> Sequence[Any]:
    tensor: Tensor | None = getattr(curves, field)
    return [None] * runs if tensor is None else tensor.chunk(runs)


def _join(curves: Sequence[Curves]) -> Curves:
    """The curves of several seeds as one."""

    def join(field: str) -> Any:
        parts = [getattr(one, field) for one in curves]
        return None if parts[0] is None else torch.cat(parts)

    return Curves(**{field.name: join(field.name) for field in dataclasses.fields(Curves)})
