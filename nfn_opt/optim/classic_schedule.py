"""Schedules of the step size, as a rule around a rule."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nfn_opt.optim.classic_base import check_range
from nfn_opt.optim.rule import State, Tensors, UpdateRule, make_rule, register_rule, rule_class
from nfn_opt.weight_space import WeightSpace

Schedule = Literal["constant", "cosine", "linear"]

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def schedule_factors(step: Tensor, total_steps: Tensor, warmup: float = 0.05) -> Tensor:
    r"""The factor of the step size by each of :data:`SCHEDULES`.

    .. math::
        1 \qquad \tfrac12 (1 + \cos \pi t / T) \qquad \min((t + 1) / W, \; (T - t) / (T - W))

    with :math:`W = \max(1, w T)`: the last rises over the share ``warmup`` of the training and then falls.

    Args:
        step: Number of updates made before this one, shape ().
        total_steps: Number of updates of the whole training, shape ().
        warmup: :math:`w`, in [0, 1).

    Returns:
        Shape (3,), float64. Past the end of the training the second and third are 0.

    Example:
        >>> schedule_factors(torch.tensor(50), torch.tensor(100), warmup=0.0).tolist()
        [1.0, 0.5, 0.50...]
    """
    t, total = step.double(), total_steps.double()
    rise = (warmup * total).clamp(min=1.0)
    cosine = 0.5 * (1 + torch.cos(math.pi * (t / total).clamp(max=1.0)))
    fall = (total - t) / (total - rise).clamp(min=1.0)
    linear = torch.minimum((t + 1) / rise, fall).clamp(0.0, 1.0)
    return torch.stack([torch.ones_like(t), cosine, linear])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduledConfig:
    """Configuration of :class:`Scheduled`.

    Attributes:
        rule: Kind of the rule that is scheduled.
        options: Fields of its configuration; those left out are filled in with their defaults.
        schedule: The schedule that the mixture starts at.
        warmup: Share of the training in which the linear schedule rises.
    """

    rule: str = "adam"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Schedule = "cosine"
    warmup: float = 0.05

    def __post_init__(self) -> None:
        check_range("warmup", self.warmup, 0.0, 1.0)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")
        object.__setattr__(self, "options", _complete(self.rule, self.options))


def _complete(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return dataclasses.asdict(rule_class(kind).config_class(**options))
    except TypeError as error:
        raise ValueError(f"options {options} are none of a {kind!r} rule: {error}") from error


@register_rule
class Scheduled(UpdateRule):
    """Another rule, its updates multiplied by a schedule: constant, cosine to 0, or linear with warm-up to 0.

    The outer parameter ``mix``, shape (3,), weighs the :data:`SCHEDULES`, and is one-hot at first; those of the
    other rule begin with ``rule.``. So runs with different schedules are one batched unroll with different
    ``theta``.

    Example:
        >>> rule = Scheduled(ScheduledConfig(rule="sgd", options={"lr": 1.0}, schedule="cosine"))
        >>> [name for name, _ in rule.named_parameters()]
        ['mix', 'rule.log_lr']
        >>> p = {"w": torch.ones(1)}
        >>> space = WeightSpace.independent(p)
        >>> steps = {"step": torch.tensor(5), "total_steps": torch.tensor(10)}
        >>> round(rule.update(p, p, rule.init(space, p), space=space, **steps)[0]["w"].item(), 6)
        -0.5
    """

    kind: ClassVar[str] = "scheduled"
    config_class = ScheduledConfig
    coupled = True
    needs_total_steps = True
    config: ScheduledConfig

    @classmethod
    def of(cls, rule: UpdateRule, schedule: Schedule = "cosine", warmup: float = 0.05) -> Scheduled:
        """Schedule a rule at hand; its outer parameters are copied.

        Raises:
            ValueError: If its outer parameters belong to one weight space.
        """
        if rule.space_fingerprint is not None:
            raise ValueError(
                f"the outer parameters of this {rule.kind!r} rule belong to one weight space, expected a rule "
                "that fits all; make it by Scheduled(config, space=space)"
            )
        options = dataclasses.asdict(rule.config)
        config = ScheduledConfig(rule=rule.kind, options=options, schedule=schedule, warmup=warmup)
        made = cls(config)
        made.rule.load_state_dict(rule.state_dict())
        return made.to(next(rule.parameters()).dtype)

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """The rule as it starts, and a one-hot mixture."""
        self.rule = make_rule(self.config.rule, generator=generator, space=space, **self.config.options)
        self.mix = nn.Parameter(one_hot(self.config.schedule))

    def init(self, space: WeightSpace, params: Tensors) -> State:
        """The state of the rule that is scheduled."""
        return self.rule.init(space, params)

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
        """See :class:`UpdateRule`; ``total_steps`` is required.

        Raises:
            ValueError: If ``total_steps`` is not given.
        """
        if total_steps is None:
            raise ValueError(
                "total_steps is None, expected the number of updates of the whole training, which a schedule needs"
            )
        updates, state = self.rule.update(
            params, grads, state, space=space, step=step, loss=loss, total_steps=total_steps
        )
        factors = schedule_factors(step, total_steps, self.config.warmup).to(self.mix.dtype)
        factor = (self.mix * factors).sum()
        return {name: factor.to(u.dtype) * u for name, u in updates.items()}, state

    @property
    def space_fingerprint(self) -> str | None:
        """That of the rule that is scheduled."""
        return self.rule.space_fingerprint


def one_hot(schedule: Schedule) -> Tensor:
    """The mixture that is one schedule alone, shape (3,).

    Example:
        >>> one_hot("cosine").tolist()
        [0.0, 1.0, 0.0]
    """
    return torch.tensor([float(schedule == name) for name in SCHEDULES])
