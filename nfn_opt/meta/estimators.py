"""How the outer gradient is obtained."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from nfn_opt.meta.carry import Carry
from nfn_opt.meta.reparametrization import Reparametrization
from nfn_opt.meta.stepper import losses_and_grads
from nfn_opt.meta.tasks import Task, TaskWrapper
from nfn_opt.meta.trees import map_data, tree_map
from nfn_opt.meta.unroll import init_state, unroll
from nfn_opt.optim.rule import UpdateRule


class MetaGradient(abc.ABC):
    """An estimator of the gradient of the meta-loss with respect to the parameters of a rule.

    It advances a set of inner problems, the *carry*, and adds the gradient to ``parameter.grad``.
    """

    @abc.abstractmethod
    def start(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        """Draw the first inner problems."""

    @abc.abstractmethod
    def step(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator
    ) -> tuple[Tensor, Carry]:
        """Advance the inner problems and accumulate the gradient of the meta-loss.

        Inner problems that stop being finite are left out of meta-loss and gradient, counted in
        ``carry.dropped`` and drawn anew.

        Args:
            rule: The update rule; the gradient is added to the ``grad`` of its parameters.
            task: What it is trained on.
            carry: The inner problems, from :meth:`start` or the last step.
            generator: Source of randomness.

        Returns:
            The meta-loss, 0-d and detached, and the inner problems after this step. If no inner problem was
            finite the meta-loss is NaN and there is no gradient.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedBackprop(MetaGradient):
    r"""Backpropagation through pieces of the inner training.

    One step unrolls every inner problem for :math:`K` updates from where it stands. The meta-loss is

    .. math:: \frac{1}{nK} \sum_{i=1}^{n} \sum_{t=1}^{K} \ell_i(p_{i,t})

    the mean loss *after* each update, on the minibatch of the next one: data that the update has not seen.
    An inner problem that has reached its horizon is drawn anew. With ``truncation=horizon`` this is
    backpropagation through the whole inner training. A gradient through pieces is biased towards what pays
    off within :math:`K` updates.

    Attributes:
        tasks: Number of inner problems trained at once, n.
        truncation: Updates in one piece, K.
        horizon: Updates of one inner problem; a multiple of ``truncation``.
        shortest_horizon: If given, horizons are random between this and ``horizon``, their logarithm uniform,
            rounded up to a multiple of ``truncation``.
        second_order: Also differentiate the inner gradients, see :func:`unroll`.
        stagger: Spread the inner problems over all stages of training, by ending the first ones early:
            problem i of n first ends at the fraction (i + 1) / n of its horizon.
        reparametrization: Random change of units of each inner problem.
    """

    tasks: int = 8
    truncation: int = 20
    horizon: int = 100
    shortest_horizon: int | None = None
    second_order: bool = False
    stagger: bool = True
    reparametrization: Reparametrization | None = None

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.truncation < 1:
            raise ValueError(
                f"tasks and truncation must be at least 1, got {self.tasks} and {self.truncation}"
            )
        if self.horizon < self.truncation or self.horizon % self.truncation:
            raise ValueError(
                f"horizon is {self.horizon}, expected a positive multiple of the truncation, "
                f"{self.truncation}; inner problems end at the end of a piece"
            )
        if self.shortest_horizon is not None and not 1 <= self.shortest_horizon <= self.horizon:
            raise ValueError(
                f"shortest_horizon is {self.shortest_horizon}, expected from 1 to the horizon, {self.horizon}"
            )

    def start(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        """See :class:`MetaGradient`."""
        carry = self._fresh(rule, task, generator)
        if not self.stagger:
            return carry
        part = (torch.arange(self.tasks, device=carry.horizon.device) + 1) / self.tasks
        return dataclasses.replace(carry, horizon=self._in_pieces(part * carry.horizon))

    def step(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator
    ) -> tuple[Tensor, Carry]:
        """See :class:`MetaGradient`."""
        before = generator.get_state()
        losses, after = self._advance(rule, task, carry, generator)
        finite = _finite(losses, after)
        meta_loss = losses.mean()
        if not bool(finite.all()):
            meta_loss = self._without(rule, task, carry, generator, before, finite)
        if meta_loss.requires_grad:
            meta_loss.backward()
        return meta_loss.detach(), self._next(rule, task, after, finite, generator)

    def _advance(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator
    ) -> tuple[Tensor, Carry]:
        """Losses after each update, (K, n), with their graph, and the inner problems without one."""
        scale = carry.scale or None
        end = unroll(
            rule,
            task,
            carry.params,
            carry.state,
            steps=self.truncation,
            start_step=carry.step,
            generator=generator,
            differentiable=True,
            second_order=self.second_order,
            scale=scale,
        )
        batch = task.batch(generator, len(carry.step))
        last, _ = losses_and_grads(
            task, end.params, batch, differentiable=True, second_order=self.second_order, scale=scale
        )
        after = dataclasses.replace(
            carry,
            params=tree_map(torch.detach, end.params),
            state=tree_map(torch.detach, end.state),
            step=carry.step + self.truncation,
        )
        return torch.cat([end.losses[1:], last[None]]), after

    def _without(
        self,
        rule: UpdateRule,
        task: Task,
        carry: Carry,
        generator: torch.Generator,
        before: Tensor,
        finite: Tensor,
    ) -> Tensor:
        """The meta-loss of the finite problems alone, with the random numbers of the first attempt.

        Masking the others would not do: the gradient of a masked infinite number is not a number.
        """
        if not bool(finite.any()):
            return torch.full((), torch.nan)
        now = generator.get_state()
        generator.set_state(before)
        losses, _ = self._advance(rule, _Chosen(task, finite), carry.keep(finite), generator)
        generator.set_state(now)
        return losses.mean()

    def _next(
        self, rule: UpdateRule, task: Task, after: Carry, finite: Tensor, generator: torch.Generator
    ) -> Carry:
        finished = finite & (after.step >= after.horizon)
        ended = finished | ~finite
        if not bool(ended.any()):
            return after
        after = after.replaced(ended, self._fresh(rule, task, generator))
        return dataclasses.replace(
            after,
            finished=after.finished + finished.sum().to(after.finished.device),
            dropped=after.dropped + (~finite).sum().to(after.dropped.device),
        )

    @torch.no_grad()
    def _fresh(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        params = task.init(generator, self.tasks)
        scale = self.reparametrization.sample(generator, params) if self.reparametrization else {}
        params = {name: p / scale[name] if scale else p for name, p in params.items()}
        device = next(iter(params.values())).device
        return Carry(
            params=params,
            state=tree_map(torch.clone, init_state(rule, task, params)),
            step=torch.zeros(self.tasks, dtype=torch.int64, device=device),
            horizon=self._horizons(generator).to(device),
            scale=scale,
        )

    def _horizons(self, generator: torch.Generator) -> Tensor:
        if self.shortest_horizon is None:
            return torch.full((self.tasks,), self.horizon, dtype=torch.int64)
        low, high = math.log(self.shortest_horizon), math.log(self.horizon)
        uniform = torch.rand(self.tasks, generator=generator, dtype=torch.float64, device=generator.device)
        return self._in_pieces(torch.exp(low + (high - low) * uniform)).clamp(max=self.horizon)

    def _in_pieces(self, steps: Tensor) -> Tensor:
        """Round up to a multiple of the truncation."""
        return (torch.ceil(steps / self.truncation) * self.truncation).to(torch.int64)


class _Chosen(TaskWrapper):
    """A task that draws minibatches for all inner problems and hands out those of some."""

    def __init__(self, task: Task, chosen: Tensor) -> None:
        super().__init__(task)
        self.chosen = chosen

    def batch(self, generator: torch.Generator, n: int) -> Any:
        return map_data(lambda tensor: tensor[self.chosen], self.task.batch(generator, len(self.chosen)))


def _finite(losses: Tensor, after: Carry) -> Tensor:
    """Which inner problems have finite losses and parameters, bool (n,)."""
    finite = torch.isfinite(losses.detach()).all(0)
    for p in after.params.values():
        finite = finite & torch.isfinite(p).flatten(1).all(1)
    return finite
