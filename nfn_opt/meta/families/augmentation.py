"""Changing inner problems: noisy gradients, weight decay, another scale of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nfn_opt.meta.families.base import TaskFamily, log_uniform
from nfn_opt.meta.tasks import Params, Task, TaskWrapper


class NoisyGradients(TaskWrapper):
    """A task whose gradients have normal noise added; its losses stay as they are.

    Args:
        task: The other task; it must be traceable, that is have a derivative.
        deviation: Standard deviation of the noise on each entry.

    Raises:
        ValueError: If the deviation is negative or the task estimates its gradients.
    """

    def __init__(self, task: Task, deviation: float) -> None:
        _check(task, "deviation", deviation)
        super().__init__(task)
        self.deviation = deviation
        self._like = task.init(torch.Generator().manual_seed(0), 1)

    def batch(self, generator: torch.Generator, n: int) -> dict[str, Any]:
        """The other task's minibatch, and the noise ``{name: (n, *shape)}``."""
        inner = self.task.batch(generator, n)
        noise = {
            name: torch.randn(
                (n, *p.shape[1:]), generator=generator, dtype=p.dtype, device=generator.device
            ).to(p.device)
            for name, p in self._like.items()
        }
        return {"batch": inner, "noise": noise}

    def loss(self, params: Mapping[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """See :class:`NoisyGradients`."""
        tilt = sum((batch["noise"][name] * (p - p.detach())).sum() for name, p in params.items())
        return self.task.loss(params, batch["batch"]) + self.deviation * tilt

    def losses(self, params: Mapping[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """See :class:`NoisyGradients`."""
        tilt = sum((batch["noise"][name] * (p - p.detach())).flatten(1).sum(1) for name, p in params.items())
        return self.task.losses(params, batch["batch"]) + self.deviation * tilt


class WeightDecay(TaskWrapper):
    r"""A task with :math:`\frac{\lambda}{2} \sum p^2` added to its loss.

    Args:
        task: The other task; it must be traceable, that is have a derivative.
        strength: The factor lambda.

    Raises:
        ValueError: If the strength is negative or the task estimates its gradients.
    """

    def __init__(self, task: Task, strength: float) -> None:
        _check(task, "strength", strength)
        super().__init__(task)
        self.strength = strength

    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """See :class:`WeightDecay`."""
        squares = sum(p.square().sum() for p in params.values())
        return self.task.loss(params, batch) + 0.5 * self.strength * squares

    def losses(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """See :class:`WeightDecay`."""
        return self.task.losses(params, batch) + self._penalty(params)

    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """See :class:`WeightDecay`."""
        return self.task.full_losses(params) + self._penalty(params).detach()

    def _penalty(self, params: Mapping[str, Tensor]) -> Tensor:
        squares = [p.square().flatten(1).sum(1) for p in params.values()]
        return 0.5 * self.strength * torch.stack(squares).sum(0)


class LossScale(TaskWrapper):
    """A task whose loss, and so its gradient, is multiplied by a factor.

    Args:
        task: The other task.
        factor: The factor.

    Raises:
        ValueError: If the factor is not positive.
    """

    def __init__(self, task: Task, factor: float) -> None:
        if not factor > 0:
            raise ValueError(f"factor must be positive, got {factor}")
        super().__init__(task)
        self.factor = factor

    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """See :class:`LossScale`."""
        return self.factor * self.task.loss(params, batch)

    def losses(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """See :class:`LossScale`."""
        return self.factor * self.task.losses(params, batch)

    def losses_and_grads(self, params: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Params] | None:
        """See :class:`LossScale`."""
        found = self.task.losses_and_grads(params, batch)
        if found is None:
            return None
        return self.factor * found[0], {name: self.factor * g for name, g in found[1].items()}

    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """See :class:`LossScale`."""
        return self.factor * self.task.full_losses(params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How much a family's instances are changed; each range is log-uniform, and None leaves them as they are.

    Attributes:
        noise: Range of the deviation of gradient noise.
        weight_decay: Range of the strength of weight decay.
        loss_scale: Range of the factor on the loss.
        share: Probability with which noise, and likewise weight decay, is applied to an instance.
    """

    noise: tuple[float, float] | None = None
    weight_decay: tuple[float, float] | None = None
    loss_scale: tuple[float, float] | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("noise", "weight_decay", "loss_scale"):
            given = getattr(self, name)
            if given is not None and not 0 < given[0] <= given[1]:
                raise ValueError(f"{name} is {given}, expected a range (low, high) with 0 < low <= high")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, expected a probability")


class AugmentedFamily(TaskFamily):
    """Another family whose instances are changed at random.

    Args:
        inner: The other family.
        augmentation: By how much.
    """

    def __init__(self, inner: TaskFamily, augmentation: Augmentation) -> None:
        super().__init__(inner.data)
        self.inner, self.augmentation = inner, augmentation

    @property
    def name(self) -> str:
        """The other family's."""
        return self.inner.name

    @property
    def family(self) -> str:  # type: ignore[override]
        """The other family's."""
        return self.inner.family

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        task, given = self.inner.sample(generator), self.augmentation
        if task.traceable:
            if given.weight_decay and self._applies(generator):
                task = WeightDecay(task, log_uniform(generator, *given.weight_decay))
            if given.noise and self._applies(generator):
                task = NoisyGradients(task, log_uniform(generator, *given.noise))
        if given.loss_scale:
            task = LossScale(task, log_uniform(generator, *given.loss_scale))
        return task

    def _applies(self, generator: torch.Generator) -> bool:
        uniform = float(torch.rand((), generator=generator, device=generator.device))
        return uniform < self.augmentation.share


def _check(task: Task, name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    if not task.traceable:
        raise ValueError(
            f"{type(task).__name__} estimates its gradients, which do not see a term of the loss that is added; "
            "use LossScale only"
        )
