"""What hand-designed rules share: each tensor is treated alone, and Adam's moments."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor, nn

from nfn_opt.optim.rule import State, Tensors, UpdateRule
from nfn_opt.optim.scalars import decay, positive, safe_sqrt
from nfn_opt.weight_space import WeightSpace

Memory = dict[str, Tensor]
"""What a rule remembers of one tensor."""


class PerTensorRule(UpdateRule, abc.ABC):
    """A rule that treats each tensor alone: a subclass gives :meth:`init_tensor` and :meth:`update_tensor`."""

    @abc.abstractmethod
    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """What is remembered of one tensor before its first update."""

    @abc.abstractmethod
    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """What is added to one tensor, and what is remembered of it then."""

    def init(self, space: WeightSpace, params: Tensors) -> State:
        """See :class:`UpdateRule`."""
        return {"tensors": {name: self.init_tensor(name, p) for name, p in params.items()}, "shared": {}}

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
        updates: dict[str, Tensor] = {}
        tensors: dict[str, Memory] = {}
        for name, p in params.items():
            updates[name], tensors[name] = self.update_tensor(name, p, grads[name], state["tensors"][name])
        return updates, {"tensors": tensors, "shared": {}}


def check_range(name: str, value: float, low: float = 0.0, high: float = float("inf")) -> None:
    """Refuse an option that is not in [low, high).

    Raises:
        ValueError: If it is not, or NaN.
    """
    if not low <= value < high:
        raise ValueError(f"{name} is {value!r}, expected a number in [{low}, {high})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentConfig:
    """Initial values that the rules with Adam's moments share.

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
        check_range("lr", self.lr)
        check_range("beta1", self.beta1, 0.0, 1.0)
        check_range("beta2", self.beta2, 0.0, 1.0)
        check_range("eps", self.eps)


class MomentRule(PerTensorRule, abc.ABC):
    """A rule with Adam's moments, whose step size and decays are learned."""

    config: MomentConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Offsets of zero: the rule starts exactly at its configuration."""
        self.log_lr = nn.Parameter(torch.zeros(()))
        self.beta1 = nn.Parameter(torch.zeros(()))
        self.beta2 = nn.Parameter(torch.zeros(()))

    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """Moments and a step count of zero."""
        return init_moments(param)

    def alpha(self, dtype: torch.dtype) -> Tensor:
        """The learned step size."""
        return positive(self.config.lr, self.log_lr).to(dtype)

    def betas(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The learned decays."""
        config = self.config
        return decay(config.beta1, self.beta1).to(dtype), decay(config.beta2, self.beta2).to(dtype)


def init_moments(param: Tensor) -> Memory:
    """Adam's moments and the number of its updates, all zero.

    The number is counted for each tensor, so that a tensor whose gradient is missing now and then is treated as
    torch treats it.
    """
    count = torch.zeros((), dtype=torch.int64, device=param.device)
    return {"step": count, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}


def accumulate_moments(old: Memory, grad: Tensor, beta1: Tensor, beta2: Tensor) -> Memory:
    """Moving means of the gradient and its square, one step further."""
    return {
        "step": old["step"] + 1,
        "exp_avg": beta1 * old["exp_avg"] + (1 - beta1) * grad,
        "exp_avg_sq": beta2 * old["exp_avg_sq"] + (1 - beta2) * grad * grad,
    }


def adam_denominator(moments: Memory, beta2: Tensor, eps: float) -> Tensor:
    r""":math:`\sqrt{\hat v} + \epsilon`."""
    root = safe_sqrt(moments["exp_avg_sq"]) / torch.sqrt(1 - beta2 ** moments["step"])
    return root + eps


def adam_direction(moments: Memory, beta1: Tensor, beta2: Tensor, eps: float) -> Tensor:
    r""":math:`\hat m / (\sqrt{\hat v} + \epsilon)`."""
    mean = moments["exp_avg"] / (1 - beta1 ** moments["step"])
    return mean / adam_denominator(moments, beta2, eps)
