"""AdamW and NAdam as update rules, with learnable step size and decays."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from nfn_opt.optim.classic_base import (
    Memory,
    PerTensorRule,
    accumulate_moments,
    adam_denominator,
    adam_direction,
    check_range,
    init_moments,
)
from nfn_opt.optim.rule import register_rule
from nfn_opt.optim.scalars import decay, positive
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """Initial values of :class:`AdamWRule`.

    Attributes:
        lr: Step size.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the root of the second; not learned.
        weight_decay: Decoupled weight decay; not learned.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        check_range("lr", self.lr)
        check_range("beta1", self.beta1, 0.0, 1.0)
        check_range("beta2", self.beta2, 0.0, 1.0)
        check_range("eps", self.eps)
        check_range("weight_decay", self.weight_decay)


@register_rule
class AdamWRule(PerTensorRule):
    r"""AdamW (arXiv:1711.05101), as :class:`torch.optim.AdamW`, with learnable :math:`\alpha, \beta_1, \beta_2`.

    .. math:: u_t = -\alpha \, (\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda p_t)
    """

    kind: ClassVar[str] = "adamw"
    config_class = AdamWConfig
    config: AdamWConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Offsets of zero: the rule starts exactly at its configuration."""
        self.log_lr = nn.Parameter(torch.zeros(()))
        self.beta1 = nn.Parameter(torch.zeros(()))
        self.beta2 = nn.Parameter(torch.zeros(()))

    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """Moments and a step count of zero."""
        return init_moments(param)

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        config, dtype = self.config, grad.dtype
        beta1, beta2 = decay(config.beta1, self.beta1).to(dtype), decay(config.beta2, self.beta2).to(dtype)
        memory = accumulate_moments(memory, grad, beta1, beta2)
        direction = adam_direction(memory, beta1, beta2, config.eps) + config.weight_decay * param
        return -positive(config.lr, self.log_lr).to(dtype) * direction, memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class NAdamConfig:
    """Initial values of :class:`NAdamRule`.

    Attributes:
        lr: Step size.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the root of the second; not learned.
        momentum_decay: How fast the momentum rises from half of ``beta1`` to ``beta1``; not learned.
    """

    lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum_decay: float = 4e-3

    def __post_init__(self) -> None:
        check_range("lr", self.lr)
        check_range("beta1", self.beta1, 0.0, 1.0)
        check_range("beta2", self.beta2, 0.0, 1.0)
        check_range("eps", self.eps)
        check_range("momentum_decay", self.momentum_decay)


@register_rule
class NAdamRule(PerTensorRule):
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

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Offsets of zero: the rule starts exactly at its configuration."""
        self.log_lr = nn.Parameter(torch.zeros(()))
        self.beta1 = nn.Parameter(torch.zeros(()))
        self.beta2 = nn.Parameter(torch.zeros(()))

    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """Moments and a step count of zero, and the empty product of momenta."""
        return {**init_moments(param), "mu_product": torch.ones((), dtype=param.dtype, device=param.device)}

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        config, dtype = self.config, grad.dtype
        beta1, beta2 = decay(config.beta1, self.beta1).to(dtype), decay(config.beta2, self.beta2).to(dtype)
        moments = accumulate_moments(memory, grad, beta1, beta2)
        now, ahead = self._momentum(beta1, moments["step"]), self._momentum(beta1, moments["step"] + 1)
        product = memory["mu_product"] * now
        looked_ahead = (1 - now) / (1 - product) * grad + ahead / (1 - product * ahead) * moments["exp_avg"]
        alpha = positive(config.lr, self.log_lr).to(dtype)
        update = -alpha * looked_ahead / adam_denominator(moments, beta2, config.eps)
        return update, {**moments, "mu_product": product}

    def _momentum(self, beta1: Tensor, step: Tensor) -> Tensor:
        age = step.to(beta1.dtype) * self.config.momentum_decay
        return beta1 * (1 - 0.5 * torch.pow(0.96, age))
