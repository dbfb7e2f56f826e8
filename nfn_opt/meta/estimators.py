"""Obtaining the outer gradient by backpropagation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from nfn_opt.meta.carry import Carry
from nfn_opt.meta.pieces import Pieces, finite_problems
from nfn_opt.meta.stepper import losses_and_grads
from nfn_opt.meta.tasks import Task, TaskWrapper
from nfn_opt.meta.trees import map_data, tree_map
from nfn_opt.meta.unroll import unroll
from nfn_opt.optim.rule import UpdateRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedBackprop(Pieces):
    r"""Backpropagation through pieces of the inner training.

    One step unrolls every inner problem for :math:`K` updates from where it stands. The meta-loss is

    .. math:: \frac{1}{nK} \sum_{i=1}^{n} \sum_{t=1}^{K} \ell_i(p_{i,t})

    the mean loss *after* each update, on the minibatch of the next one: data that the update has not seen.
    With ``truncation=horizon`` this is backpropagation through the whole inner training. A gradient through
    pieces is biased towards what pays off within :math:`K` updates.

    Attributes:
        second_order: Also differentiate the inner gradients, see :func:`unroll`.
    """

    second_order: bool = False

    def step(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator
    ) -> tuple[Tensor, Carry]:
        """See :class:`MetaGradient`."""
        steps = self.piece(generator)
        before = generator.get_state()
        losses, after = self._advance(rule, task, carry, generator, steps)
        finite = finite_problems(losses, after)
        meta_loss = losses.mean()
        if not bool(finite.all()):
            meta_loss = self._without(rule, task, carry, generator, before, finite, steps)
        if meta_loss.requires_grad:
            meta_loss.backward()
        return meta_loss.detach(), self.succeed(rule, task, after, finite, generator)

    def _advance(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator, steps: int
    ) -> tuple[Tensor, Carry]:
        """Losses after each update, (K, n), with their graph, and the inner problems without one."""
        scale, shift = carry.scale or None, carry.shift or None
        end = unroll(
            rule,
            task,
            carry.params,
            carry.state,
            steps=steps,
            start_step=carry.step,
            total_steps=carry.horizon,
            generator=generator,
            differentiable=True,
            second_order=self.second_order,
            scale=scale,
            shift=shift,
        )
        batch = task.batch(generator, len(carry.step))
        last, _ = losses_and_grads(
            task,
            end.params,
            batch,
            differentiable=True,
            second_order=self.second_order,
            scale=scale,
            shift=shift,
        )
        after = dataclasses.replace(
            carry,
            params=tree_map(torch.detach, end.params),
            state=tree_map(torch.detach, end.state),
            step=carry.step + steps,
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
        steps: int,
    ) -> Tensor:
        """The meta-loss of the finite problems alone, with the random numbers of the first attempt.

        Masking the others would not do: the gradient of a masked infinite number is not a number.
        """
        if not bool(finite.any()):
            return torch.full((), torch.nan)
        now = generator.get_state()
        generator.set_state(before)
        losses, _ = self._advance(rule, _Chosen(task, finite), carry.keep(finite), generator, steps)
        generator.set_state(now)
        return losses.mean()


class _Chosen(TaskWrapper):
    """A task that draws minibatches for all inner problems and hands out those of some."""

    def __init__(self, task: Task, chosen: Tensor) -> None:
        super().__init__(task)
        self.chosen = chosen

    def batch(self, generator: torch.Generator, n: int) -> Any:
        return map_data(lambda tensor: tensor[self.chosen], self.task.batch(generator, len(self.chosen)))
