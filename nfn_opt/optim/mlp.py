"""The per-parameter MLP rule."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nfn_opt.optim.first_layer import Preactivation, affine, initial_weight
from nfn_opt.optim.layout import Layout
from nfn_opt.optim.learned import LearnedConfig, LearnedRule
from nfn_opt.optim.rule import register_rule
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig(LearnedConfig):
    """Options of :class:`MLPRule`: those of :class:`LearnedConfig`, and these.

    Attributes:
        hidden: Widths of the hidden layers.
    """

    hidden: tuple[int, ...] = (8, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected one or more positive widths, such as (8, 8)")

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

    @property
    def first_width(self) -> int:
        """See :class:`LearnedRule`."""
        return self.config.hidden[0]

    def reset_body(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`LearnedRule`."""
        widths = (*self.config.hidden, 1)
        scales = [1.0] * (len(widths) - 2) + [self.config.output_scale]
        self.weights = nn.ParameterList(
            initial_weight(n_out, n_in, generator, scale)
            for n_in, n_out, scale in zip(widths[:-1], widths[1:], scales, strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in widths[1:])

    def body(self, first: list[Preactivation], layout: Layout, space: WeightSpace) -> list[Tensor]:
        """See :class:`LearnedRule`."""
        return [torch.cat([self._mlp(block) for block in one.blocks()]) for one in first]

    def _mlp(self, hidden: Tensor) -> Tensor:
        """From the first layer's output ``(H, m)`` to the correction ``(m,)``."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = affine(weight, torch.relu_(hidden), bias)
        return hidden.squeeze(0)
