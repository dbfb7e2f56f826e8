"""SGD with momentum, Adam and Lion as update rules, with learnable step size and decays."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from nfn_opt.optim.classic_base import (
    Memory,
    MomentConfig,
    MomentRule,
    PerTensorRule,
    accumulate_moments,
    adam_direction,
    check_range,
)
from nfn_opt.optim.rule import register_rule
from nfn_opt.optim.scalars import decay, positive
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """Initial values of :class:`SGDRule`.

    Attributes:
        lr: Step size.
        momentum: Momentum; with 0 there is none to learn.
        nesterov: Whether to look ahead along the momentum.
    """

    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_range("lr", self.lr)
        check_range("momentum", self.momentum, 0.0, 1.0)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov is True and momentum is 0, expected a momentum; or nesterov=False")


@register_rule
class SGDRule(PerTensorRule):
    r"""Gradient descent with momentum, as :class:`torch.optim.SGD`, with learnable :math:`\alpha, \mu`.

    .. math:: b_{t+1} = \mu b_t + g_t \qquad u_t = -\alpha b_{t+1}

    or, with Nesterov's momentum, :math:`u_t = -\alpha (g_t + \mu b_{t+1})`.

    Example:
        >>> rule, p = SGDRule(SGDConfig(lr=0.5)), {"w": torch.ones(2)}
        >>> space = WeightSpace.independent(p)
        >>> rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))[0]["w"].tolist()
        [-0.5, -0.5]
    """

    kind: ClassVar[str] = "sgd"
    config_class = SGDConfig
    config: SGDConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Offsets of zero: the rule starts exactly at its configuration."""
        self.log_lr = nn.Parameter(torch.zeros(()))
        if self.config.momentum > 0:
            self.momentum = nn.Parameter(torch.zeros(()))

    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """A momentum of zero, where there is momentum."""
        return {"momentum": torch.zeros_like(param)} if self.config.momentum > 0 else {}

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        alpha, direction = positive(self.config.lr, self.log_lr).to(grad.dtype), grad
        if self.config.momentum > 0:
            mu = decay(self.config.momentum, self.momentum).to(grad.dtype)
            memory = {"momentum": mu * memory["momentum"] + grad}
            direction = grad + mu * memory["momentum"] if self.config.nesterov else memory["momentum"]
        return -alpha * direction, memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig(MomentConfig):
    """Initial values of :class:`AdamRule`, those of :class:`MomentConfig`."""


@register_rule
class AdamRule(MomentRule):
    r"""Adam (arXiv:1412.6980), as :class:`torch.optim.Adam`, with learnable :math:`\alpha, \beta_1, \beta_2`.

    .. math:: u_t = -\alpha \, \hat m_t / (\sqrt{\hat v_t} + \epsilon)
    """

    kind: ClassVar[str] = "adam"
    config_class = AdamConfig
    config: AdamConfig

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        config, dtype = self.config, grad.dtype
        beta1, beta2 = self.betas(dtype)
        memory = accumulate_moments(memory, grad, beta1, beta2)
        return -self.alpha(dtype) * adam_direction(memory, beta1, beta2, config.eps), memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class LionConfig:
    """Initial values of :class:`LionRule`.

    Attributes:
        lr: Step size.
        beta1: Weight of the momentum in the update; not learned, as a sign has no derivative.
        beta2: Decay of the momentum; not learned.
        weight_decay: Decoupled weight decay; not learned.
    """

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_range("lr", self.lr)
        check_range("beta1", self.beta1, 0.0, 1.0)
        check_range("beta2", self.beta2, 0.0, 1.0)
        check_range("weight_decay", self.weight_decay)


@register_rule
class LionRule(PerTensorRule):
    r"""Lion (Algorithm 2 of arXiv:2302.06675), with learnable :math:`\alpha`.

    .. math::
        u_t = -\alpha \, (\operatorname{sign}(\beta_1 m_t + (1 - \beta_1) g_t) + \lambda p_t) \qquad
        m_{t+1} = \beta_2 m_t + (1 - \beta_2) g_t
    """

    kind: ClassVar[str] = "lion"
    config_class = LionConfig
    config: LionConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """An offset of zero: the rule starts exactly at its configuration."""
        self.log_lr = nn.Parameter(torch.zeros(()))

    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """A momentum of zero."""
        return {"exp_avg": torch.zeros_like(param)}

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        config, mean = self.config, memory["exp_avg"]
        direction = torch.sign(config.beta1 * mean + (1 - config.beta1) * grad)
        if config.weight_decay > 0:
            direction = direction + config.weight_decay * param
        new = {"exp_avg": config.beta2 * mean + (1 - config.beta2) * grad}
        return -positive(config.lr, self.log_lr).to(grad.dtype) * direction, new
