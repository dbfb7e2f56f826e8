"""The per-parameter MLP rule."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from nfn_opt.optim.first_layer import Preactivation
from nfn_opt.optim.learned import LearnedConfig, LearnedRule
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import register_rule
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig(LearnedConfig):
    """Options of :class:`MLPRule`, those of :class:`LearnedConfig`."""

    @classmethod
    def celo2_base(cls, lr: float = 1e-3) -> MLPConfig:
        """The released form of Celo2-base (arXiv:2602.19142): no base direction, no time, normalised output.

        One output channel in place of three, of which the released form uses the first; the features of a
        tensor with more than two axes are normalised over all of them, not over two.
        """
        return cls(
            lr=lr,
            base="none",
            correction=1.0,
            output_scale=1.0,
            use_time=False,
            normalise_output=True,
            schedule=False,
            by_kind=False,
            hidden=(8, 8),
        )


@register_rule
class MLPRule(LearnedRule):
    r"""The same small MLP for every weight, on its features; see :class:`LearnedRule` for the formula.

    Before any meta-training it is close to Adam with a constant step size. It commutes with every permutation
    of every axis, its outer parameters fit every network, and it treats each tensor on its own.

    Example:
        >>> rule, p = MLPRule(), {"w": torch.ones(2, 3)}
        >>> space = WeightSpace.independent(p)
        >>> updates, state = rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
        >>> updates["w"].shape, state["tensors"]["w"]["momentum"].shape
        (torch.Size([2, 3]), torch.Size([3, 2, 3]))
    """

    kind: ClassVar[str] = "mlp"
    config_class: ClassVar[type[Any]] = MLPConfig
    config: MLPConfig

    def reset_body(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`LearnedRule`."""
        self.rest = PointwiseMLP((*self.config.hidden, 1), self.config.output_scale, generator)

    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """See :class:`LearnedRule`."""
        return [torch.cat([self.rest(block) for block in one.blocks()], dim=1).squeeze(0) for one in first]
