"""SGD with momentum and Adam as update rules, with learnable step size and decays."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from nfn_opt.optim.rule import State, Tensors, UpdateRule, register_rule
from nfn_opt.optim.scalars import decay, positive, safe_sqrt
from nfn_opt.weight_space import WeightSpace


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} is {value!r}, expected a number in [{low}, {high})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """Initial values of :class:`SGDRule`.

    Attributes:
        lr: Step size.
        momentum: Momentum; with 0 there is none to learn.
    """

    lr: float = 0.1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check("lr", self.lr, 0.0, float("inf"))
        _check("momentum", self.momentum, 0.0, 1.0)


@register_rule
class SGDRule(UpdateRule):
    r"""Gradient descent with momentum, as :class:`torch.optim.SGD`, with learnable :math:`\alpha, \mu`.

    .. math:: b_{t+1} = \mu b_t + g_t \qquad u_t = -\alpha b_{t+1}

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

    def init(self, space: WeightSpace, params: Tensors) -> State:
        """A momentum of zero for each tensor, where there is momentum."""
        if self.config.momentum == 0:
            return {"tensors": {name: {} for name in params}, "shared": {}}
        return {
            "tensors": {name: {"momentum": torch.zeros_like(p)} for name, p in params.items()},
            "shared": {},
        }

    def update(
        self,
        params: Tensors,
        grads: Tensors,
        state: State,
        *,
        space: WeightSpace,
        step: Tensor,
        loss: Tensor | None = None,
        total_steps: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], State]:
        """See :class:`UpdateRule`."""
        tensors = state["tensors"]
        if self.config.momentum > 0:
            tensors = {
                name: {"momentum": self._accumulate(tensors[name]["momentum"], grads[name])}
                for name in params
            }
        updates = {}
        for name, p in params.items():
            direction = tensors[name].get("momentum", grads[name])
            updates[name] = -positive(self.config.lr, self.log_lr).to(p.dtype) * direction
        return updates, {"tensors": tensors, "shared": {}}

    def _accumulate(self, momentum: Tensor, grad: Tensor) -> Tensor:
        return decay(self.config.momentum, self.momentum).to(grad.dtype) * momentum + grad


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Initial values of :class:`AdamRule`.

    Attributes:
        lr: Step size.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the root of the second; not learned.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check("lr", self.lr, 0.0, float("inf"))
        _check("beta1", self.beta1, 0.0, 1.0)
        _check("beta2", self.beta2, 0.0, 1.0)
        _check("eps", self.eps, 0.0, float("inf"))


@register_rule
class AdamRule(UpdateRule):
    r"""Adam (arXiv:1412.6980), as :class:`torch.optim.Adam`, with learnable :math:`\alpha, \beta_1, \beta_2`.

    .. math:: u_t = -\alpha \, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    The steps that correct the bias are counted for each tensor, so that a tensor whose gradient is missing
    now and then is treated as torch treats it.
    """

    kind: ClassVar[str] = "adam"
    config_class = AdamConfig
    config: AdamConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Offsets of zero: the rule starts exactly at its configuration."""
        self.log_lr = nn.Parameter(torch.zeros(()))
        self.beta1 = nn.Parameter(torch.zeros(()))
        self.beta2 = nn.Parameter(torch.zeros(()))

    def init(self, space: WeightSpace, params: Tensors) -> State:
        """Moments and a step count of zero for each tensor."""
        return {"tensors": {name: self._init(p) for name, p in params.items()}, "shared": {}}

    def _init(self, p: Tensor) -> dict[str, Tensor]:
        count = torch.zeros((), dtype=torch.int64, device=p.device)
        return {"step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def update(
        self,
        params: Tensors,
        grads: Tensors,
        state: State,
        *,
        space: WeightSpace,
        step: Tensor,
        loss: Tensor | None = None,
        total_steps: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], State]:
        """See :class:`UpdateRule`."""
        tensors = {name: self._accumulate(state["tensors"][name], grads[name]) for name in params}
        updates = {name: self._update(tensors[name]) for name in params}
        return updates, {"tensors": tensors, "shared": {}}

    def _betas(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = self.config
        return decay(config.beta1, self.beta1).to(dtype), decay(config.beta2, self.beta2).to(dtype)

    def _accumulate(self, old: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
        beta1, beta2 = self._betas(grad.dtype)
        return {
            "step": old["step"] + 1,
            "exp_avg": beta1 * old["exp_avg"] + (1 - beta1) * grad,
            "exp_avg_sq": beta2 * old["exp_avg_sq"] + (1 - beta2) * grad * grad,
        }

    def _update(self, state: dict[str, Tensor]) -> Tensor:
        mean, square, count = state["exp_avg"], state["exp_avg_sq"], state["step"]
        beta1, beta2 = self._betas(mean.dtype)
        alpha = positive(self.config.lr, self.log_lr).to(mean.dtype) / (1 - beta1**count)
        return -alpha * mean / (safe_sqrt(square) / torch.sqrt(1 - beta2**count) + self.config.eps)
