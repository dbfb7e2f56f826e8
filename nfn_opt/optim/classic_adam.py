"""AdamW and NAdam as update rules, with learnable step size and decays."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from nfn_opt.optim.classic_base import (
    Memory,
    MomentConfig,
    MomentRule,
    accumulate_moments,
    adam_denominator,
    adam_direction,
    check_range,
)
from nfn_opt.optim.rule import register_rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig(MomentConfig):
    """Initial values of :class:`AdamWRule`: those of :class:`MomentConfig`, and one more.

    Attributes:
        weight_decay: Decoupled weight decay; not learned.
    """

    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("weight_decay", self.weight_decay)


@register_rule
class AdamWRule(MomentRule):
    r"""AdamW (arXiv:1711.05101), as :class:`torch.optim.AdamW`, with learnable :math:`\alpha, \beta_1, \beta_2`.

    .. math:: u_t = -\alpha \, (\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda p_t)
    """

    kind: ClassVar[str] = "adamw"
    config_class = AdamWConfig
    config: AdamWConfig

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        config, dtype = self.config, grad.dtype
        beta1, beta2 = self.betas(dtype)
        memory = accumulate_moments(memory, grad, beta1, beta2)
        direction = adam_direction(memory, beta1, beta2, config.eps) + config.weight_decay * param
        return -self.alpha(dtype) * direction, memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class NAdamConfig(MomentConfig):
    """Initial values of :class:`NAdamRule`: those of :class:`MomentConfig`, and one more.

    Attributes:
        momentum_decay: How fast the momentum rises from half of ``beta1`` to ``beta1``; not learned.
    """

    lr: float = 2e-3
    momentum_decay: float = 4e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("momentum_decay", self.momentum_decay)


@register_rule
class NAdamRule(MomentRule):
    r"""NAdam (Dozat, 2016), as :class:`torch.optim.NAdam`, with learnable :math:`\alpha, \beta_1, \beta_2`.

    .. math::
        u_t = -\frac{\alpha}{\sqrt{\hat v_t} + \epsilon} \left(
            \frac{1 - \mu_t}{1 - \prod_{i \le t} \mu_i} g_t
            + \frac{\mu_{t+1}}{1 - \prod_{i \le t+1} \mu_i} m_t \right) \qquad
        \mu_t = \beta_1 (1 - \tfrac12 \, 0.96^{\psi t})
    """

    kind: ClassVar[str] = "nadam"
    config_class = NAdamConfig
    config: NAdamConfig

    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """Moments and a step count of zero, and the empty product of momenta."""
        return {
            **super().init_tensor(name, param),
            "mu_product": torch.ones((), dtype=param.dtype, device=param.device),
        }

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        config, dtype = self.config, grad.dtype
        beta1, beta2 = self.betas(dtype)
        moments = accumulate_moments(memory, grad, beta1, beta2)
        now, ahead = self._momentum(beta1, moments["step"]), self._momentum(beta1, moments["step"] + 1)
        product = memory["mu_product"] * now
        looked_ahead = (1 - now) / (1 - product) * grad + ahead / (1 - product * ahead) * moments["exp_avg"]
        update = -self.alpha(dtype) * looked_ahead / adam_denominator(moments, beta2, config.eps)
        return update, {**moments, "mu_product": product}

    def _momentum(self, beta1: Tensor, step: Tensor) -> Tensor:
        age = step.to(beta1.dtype) * self.config.momentum_decay
        return beta1 * (1 - 0.5 * torch.pow(0.96, age))
