"""What a learned optimizer is trained and measured on: families of inner problems, stateless and batched."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nfn_opt.weight_space import WeightSpace

Params = dict[str, Tensor]
"""Parameters of networks; of one in stored shapes, or of ``n`` with a leading axis."""


class Task(abc.ABC):
    """A family of inner problems of one architecture.

    A task holds no state: initial parameters and minibatches are drawn from a generator, and the loss is a
    pure function. Everything is batched, so that ``n`` inner problems are trained at once with one call for
    each operation.

    A subclass gives :attr:`space`, :meth:`init`, :meth:`batch`, :meth:`loss` and :meth:`full_losses`, and may
    override :meth:`losses` with faster batched arithmetic. A task whose loss has no derivative overrides
    :meth:`losses_and_grads`, too.
    """

    traceable: bool = True
    """Whether losses and gradients are tensor operations alone, which can be traced and compiled."""

    by_place: bool = False
    """Whether data depend on the place of a network in its batch, so that networks must stay at theirs."""

    @property
    @abc.abstractmethod
    def space(self) -> WeightSpace:
        """The parameters of one network and their symmetry."""

    @abc.abstractmethod
    def init(self, generator: torch.Generator, n: int) -> Params:
        """Draw initial parameters of ``n`` networks, ``{name: (n, *shape)}``."""

    @abc.abstractmethod
    def batch(self, generator: torch.Generator, n: int) -> Any:
        """Draw an independent minibatch for each of ``n`` networks.

        Returns:
            A tensor, or a tuple, list or dict of tensors, each with a leading axis of size ``n``.
        """

    @abc.abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The loss of one network on one minibatch, both without the leading axis: a 0-d tensor."""

    @abc.abstractmethod
    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """The loss of each of ``n`` networks on all training data, shape (n,), without gradient."""

    def losses(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The losses of ``n`` networks, each on its own minibatch, shape (n,)."""
        return torch.func.vmap(self.loss)(params, batch)

    def losses_and_grads(self, params: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Params] | None:
        """Losses (n,) and estimated gradients ``{name: (n, *shape)}`` where there is no derivative.

        Returns:
            ``None``, the default, if the gradient is the derivative of :meth:`losses`.
        """
        return None


class TaskWrapper(Task):
    """A task that behaves as another one; subclasses override a part.

    Args:
        task: The other task.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.traceable, self.by_place = task.traceable, task.by_place

    @property
    def space(self) -> WeightSpace:
        """See :class:`Task`."""
        return self.task.space

    def init(self, generator: torch.Generator, n: int) -> Params:
        """See :class:`Task`."""
        return self.task.init(generator, n)

    def batch(self, generator: torch.Generator, n: int) -> Any:
        """See :class:`Task`."""
        return self.task.batch(generator, n)

    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """See :class:`Task`."""
        return self.task.loss(params, batch)

    def losses(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """See :class:`Task`."""
        return self.task.losses(params, batch)

    def losses_and_grads(self, params: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Params] | None:
        """See :class:`Task`."""
        return self.task.losses_and_grads(params, batch)

    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Task`."""
        return self.task.full_losses(params)
