"""Inner problems of one task in the middle of their training, with randomness of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nfn_opt.meta.carry import Carry
from nfn_opt.meta.pieces import MetaGradient
from nfn_opt.meta.problems import TaskSource
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.optim.rule import UpdateRule

COUNTS = 3
"""Numbers behind the gradient in a row of :meth:`Slot.advance`: meta-loss, finished and dropped problems."""


class Slot:
    """The inner problems of one instance of a family, and their share of the outer gradient.

    Their random numbers depend on the seed and the name of the slot alone, so that the gradient does not
    depend on which process computes it, nor on what else it computes.

    Args:
        source: Where the instance comes from.
        estimator: What gives the gradient.
        rule: The rule that is trained.
        seed: Seed of the run.
        step: Outer step that comes next, counted from 0.
    """

    def __init__(
        self, source: TaskSource, estimator: MetaGradient, rule: UpdateRule, *, seed: int, step: int = 0
    ) -> None:
        self.source, self.estimator, self.rule = source, estimator, rule
        self.generator = seeded_generator(seed, f"inner problems/{source.name}")
        self.prepare(step)

    def prepare(self, step: int) -> None:
        """Draw the instance that outer step ``step`` is made on, and its first inner problems."""
        self.epoch = self.source.epoch(step)
        self.task = self.source.draw(self.epoch)
        self.carry: Carry = self.estimator.start(self.rule, self.task, self.generator)

    def advance(self, step: int, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Train the inner problems by one piece.

        Args:
            step: The outer step, counted from 0.
            parameters: Outer parameters that the gradient is taken of; their ``grad`` is left ``None``.

        Returns:
            One row, float64 on the CPU: the gradient, the meta-loss, and the numbers of inner problems that have
            been finished and dropped so far. Meta-loss and gradient may not be finite.
        """
        if self.source.epoch(step) != self.epoch:
            before = self.carry
            self.prepare(step)
            self.carry = dataclasses.replace(self.carry, finished=before.finished, dropped=before.dropped)
        for p in parameters:
            p.grad = None
        loss, self.carry = self.estimator.step(self.rule, self.task, self.carry, self.generator)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for p in self.rule.parameters():
            p.grad = None
        counts = (loss, self.carry.finished, self.carry.dropped)
        return torch.cat([part.detach().flatten().double().cpu() for part in (*parts, *counts)])

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how the slot goes on."""
        return {**self.carry.tensors(), "generator": self.generator.get_state()}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Go back to what :meth:`tensors` gave when ``step`` outer steps had been made.

        Raises:
            ValueError: If the tensors do not fit.
        """
        if self.source.epoch(max(step - 1, 0)) != self.epoch:
            self.prepare(max(step - 1, 0))
        stored = dict(tensors)
        state = stored.pop("generator", None)
        if state is None:
            raise ValueError(f"nothing is stored for the inner problems of {self.source.name}")
        self.carry = self.carry.restored(stored)
        self.generator.set_state(state)
