"""Optimizers of many networks at once, with a learning rate and a weight penalty for each."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "OptimizerName", "StackedOptimizer"]

OptimizerName = Literal["sgd", "adam", "rmsprop"]

OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)

BETAS = (0.9, 0.999)
"""Adam's decay rates."""

DECAY = 0.9
"""RMSprop's decay rate."""

EPSILON = 1e-7
"""Of Adam and RMSprop, added to the root."""


class StackedOptimizer:
    """SGD, Adam or RMSprop as in `torch.optim`, with the constants of Keras, which the Small CNN Zoo was trained with.

    A step of ``n`` networks changes the first ``n`` rows, as long as ``n`` never grows.

    Args:
        name: "sgd", "adam" or "rmsprop".
        packed: Parameters, shape (N, P); changed in place by `step`.
        learning_rate: Shape (N,).
        penalty: Factor of the squared weights in the loss, for each parameter, shape (N, P).
    """

    def __init__(self, name: OptimizerName, packed: Tensor, learning_rate: Tensor, penalty: Tensor) -> None:
        if name not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
        self.name, self.packed = name, packed
        self.steps = 0
        self._rate, self._penalty = learning_rate[:, None], 2 * penalty
        self._first, self._second = torch.zeros_like(packed), torch.zeros_like(packed)
        self._scratch, self._update = torch.empty_like(packed), torch.empty_like(packed)

    def step(self, gradient: Tensor) -> None:
        """One step with the gradient of the loss without penalty, shape (n, P), which is overwritten."""
        count = len(gradient)
        packed, rate, update = self.packed[:count], self._rate[:count], self._update[:count]
        gradient.addcmul_(packed, self._penalty[:count])
        self.steps += 1
        if self.name == "sgd":
            packed.sub_(torch.mul(gradient, rate, out=update))
            return
        second, root = self._second[:count], self._scratch[:count]
        decay = BETAS[1] if self.name == "adam" else DECAY
        second.mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        torch.sqrt(second, out=root)
        if self.name == "adam":
            root.div_((1 - BETAS[1] ** self.steps) ** 0.5)
            gradient = self._first[:count].lerp_(gradient, 1 - BETAS[0])
            rate = rate / (1 - BETAS[0] ** self.steps)
        torch.mul(gradient, rate, out=update)
        packed.sub_(update.div_(root.add_(EPSILON)))
