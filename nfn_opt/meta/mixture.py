"""Obtaining the outer gradient in several ways at once."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from nfn_opt.meta.carry import Carry
from nfn_opt.meta.pieces import MetaGradient
from nfn_opt.meta.tasks import Task
from nfn_opt.optim.rule import UpdateRule


@dataclasses.dataclass(frozen=True)
class Mixture(MetaGradient):
    r"""A weighted sum of estimates, each from inner problems of its own.

    .. math:: \hat g = \sum_j w_j \hat g_j

    For example backpropagation, precise but short-sighted, with persistent evolution strategies, unbiased but
    noisy. An estimate without any finite inner problem counts as zero.

    Attributes:
        estimators: What gives the :math:`\hat g_j`.
        weights: The :math:`w_j`, one for each.
    """

    estimators: tuple[MetaGradient, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.estimators or len(self.estimators) != len(self.weights):
            raise ValueError(
                f"got {len(self.estimators)} estimators and {len(self.weights)} weights, expected one or more "
                "and a weight for each"
            )

    def start(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        """See :class:`MetaGradient`."""
        return _joined([estimator.start(rule, task, generator) for estimator in self.estimators])

    def step(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator
    ) -> tuple[Tensor, Carry]:
        """See :class:`MetaGradient`; the meta-loss is the weighted mean of those that are finite."""
        before = {name: p.grad for name, p in rule.named_parameters()}
        total = {name: g for name, g in before.items() if g is not None}
        losses, after = [], []
        for i, (estimator, weight) in enumerate(zip(self.estimators, self.weights, strict=True)):
            rule.zero_grad()
            loss, one = estimator.step(rule, task, Carry(**carry.extra[str(i)]), generator)
            losses.append(loss)
            after.append(one)
            for name, p in rule.named_parameters():
                if p.grad is not None:
                    total[name] = weight * p.grad + total.get(name, 0)
        for name, p in rule.named_parameters():
            p.grad = total.get(name)
        return self._mean(torch.stack(losses)), _joined(after)

    def _mean(self, losses: Tensor) -> Tensor:
        weights = torch.tensor(self.weights, dtype=losses.dtype, device=losses.device)
        finite = torch.isfinite(losses)
        return torch.where(finite, weights * losses, 0).sum() / (weights * finite).sum()


def _joined(carries: list[Carry]) -> Carry:
    """One carry whose inner problems are those of all, each with its own structure."""
    none = torch.zeros(0, dtype=torch.int64)
    return Carry(
        params={},
        state={},
        step=none,
        horizon=none,
        finished=torch.stack([carry.finished for carry in carries]).sum(),
        dropped=torch.stack([carry.dropped for carry in carries]).sum(),
        extra={str(i): carry.tree() for i, carry in enumerate(carries)},
    )
