"""What the fast step must know of a rule: what its network is made of, and what becomes of its output."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nfn_opt.optim.accumulators import Accumulators
from nfn_opt.optim.features import time_features
from nfn_opt.optim.first_layer import FeatureLinear
from nfn_opt.optim.layout import Segment
from nfn_opt.optim.normalise import Over
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import UpdateRule
from nfn_opt.optim.shell_fast_chunks import Where
from nfn_opt.optim.shell_fast_features import Features, Piece
from nfn_opt.optim.shell_fast_stack import Stack
from nfn_opt.weight_space import WeightSpace

BOUND = 1e14
"""Outputs of a network that is taken here are known to stay below this, so that their squares are finite."""

LARGEST_FEATURE = 1e6
"""A normalised feature is at most the square root of the number of weights of its tensor."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What the fast step is told besides parameters and gradients.

    Attributes:
        step: Number of updates made, shape ``()``.
        total_steps: Number of updates of the training, shape ``()``, where known.
        time: Time features, shape ``(11,)``.
        space: The weight space, of all parameters.
    """

    step: Tensor
    total_steps: Tensor | None
    time: Tensor
    space: WeightSpace

    @staticmethod
    def at(where: Where, step: Tensor, total_steps: Tensor | None, space: WeightSpace) -> Told:
        """On a device, features in a dtype."""
        step = step.to(where[0])
        total_steps = None if total_steps is None else total_steps.to(where[0])
        return Told(step, total_steps, time_features(step, where[1]), space)


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over each matrix of a stack, found where its running means were updated.

    Attributes:
        features: Which channels there are.
        squares: Sum of squares of each channel, ``(T, channels)``.
        products: Sum of products of the gradient with each momentum, ``(T, M)``; ``None`` where not asked for.
    """

    features: Features
    squares: Tensor
    products: Tensor | None

    def square(self, feature: str) -> Tensor:
        """Sum of squares of the channels of a feature, ``(T, width)``."""
        return self.squares[:, self.features.slots[feature]]


@dataclasses.dataclass(frozen=True)
class Output:
    """What the network of a rule made of tensors of one shape.

    Attributes:
        segment: Any of the tensors.
        stack: Their matrices.
        direction: The output, ``(T, a, b)``; may be overwritten.
        sums: Of the features.
        states: Of each tensor; what is no running mean of :mod:`nfn_opt.optim.accumulators` is the form's to update.
    """

    segment: Segment
    stack: Stack
    direction: Tensor
    sums: Sums
    states: Sequence[Mapping[str, Tensor]]

    def wholes(self, x: Tensor) -> list[Tensor]:
        """Matrices ``(T, a, b)`` as tensors, in the shape of their statistics."""
        view = self.stack.view
        return [view.back(one) for one in x.split(view.matrices)]

    def per_tensor(self, sums: Tensor) -> Tensor:
        """Sums ``(T, channels)`` of each matrix added to ``(tensors, channels)``."""
        each = self.stack.view.matrices
        return sums if each == 1 else sums.reshape(-1, each, sums.shape[1]).sum(1)


class Form(abc.ABC):
    """One rule as the fast step applies it.

    A subclass says which rules it stands for, and what becomes of the network's output.

    Args:
        rule: A rule that :meth:`fits` accepts, on the device and in the dtype of the arithmetic.
    """

    rule_class: ClassVar[type[UpdateRule]]
    methods: ClassVar[Mapping[str, type]]
    """Methods of the rule whose work is done here, and whose they are: a rule that has others is not taken."""

    beside: ClassVar[bool] = False
    """Whether the first layer's last channel is added to the network's output, in place of going through it."""

    also: ClassVar[tuple[str, ...]] = ()
    """Features whose sums of squares are asked for, whether the network reads them or not."""

    compares: ClassVar[bool] = False
    """Whether the sums of products of the gradient with the momenta are asked for."""

    first: FeatureLinear
    layers: list[Tensor]
    accumulators: Accumulators
    clip: float
    over: Over

    def __init__(self, rule: Any) -> None:
        self.first, self.accumulators = rule.first, rule.accumulators
        self.clip, self.over = rule.config.gradient_clip, "tensor"
        self.layers = with_bias(rule.rest)

    @classmethod
    def fits(cls, rule: UpdateRule) -> bool:
        """Whether this makes the updates of a rule, and makes them finite wherever gradients and weights are."""
        if not isinstance(rule, cls.rule_class):
            return False
        if any(getattr(type(rule), name) is not getattr(owner, name) for name, owner in cls.methods.items()):
            return False
        with torch.no_grad():
            return cls.bounded(rule)

    @classmethod
    @abc.abstractmethod
    def bounded(cls, rule: Any) -> bool:
        """Whether updates of the rule are finite for all finite gradients and weights."""

    def takes(self, segment: Segment) -> bool:
        """Whether tensors of a kind are worked on."""
        return True

    def add_base(self, stack: Stack, piece: Piece, scratch: Tensor) -> None:
        """Add to the network's output of a box what it corrects, if anything.

        Args:
            stack: What the box is of.
            piece: The box.
            scratch: Shape of the box, to be overwritten.
        """
        return

    @abc.abstractmethod
    def finish(self, output: Output, told: Told) -> Sequence[Tensor]:
        """The update of each tensor, to be *added*, with its entries in the order of the tensor.

        Args:
            output: What the network made.
            told: What else is known.
        """


def with_bias(rest: PointwiseMLP) -> list[Tensor]:
    """Weights ``(1, n_out, n_in + 1)`` of the layers after the first, biases included."""
    pairs = zip(rest.weights, rest.biases, strict=True)
    return [torch.cat([weight, bias.unsqueeze(1)], dim=1).unsqueeze(0) for weight, bias in pairs]


def largest_output(first: FeatureLinear, layers: Sequence[Tensor]) -> Tensor:
    """A bound of the absolute values of a network's channels after its first layer, and after its last; ``(2,)``."""
    before = (LARGEST_FEATURE * first.weight.double().abs().sum(1) + first.bias.abs()).max()
    bound = before
    for layer in layers:
        bound = layer.double().abs().sum(2).max() * bound.clamp(min=1)
    return torch.stack([before, bound])
