"""What the networks of a varied zoo are drawn from: architectures, and how each network is trained."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from nfn_opt.data.zoos.hyperparameters import initialize
from nfn_opt.data.zoos.optimizers import OPTIMIZERS, OptimizerName
from nfn_opt.data.zoos.varied_architecture import VARIED_ACTIVATIONS, VariedActivation, VariedArchitecture
from nfn_opt.meta.randomness import seeded_generator

__all__ = [
    "VariedMember",
    "VariedOptions",
    "draw_architecture",
    "draw_varied_members",
    "initial_varied",
]

W_INITS = ("glorot_normal", "he_normal", "orthogonal")
"""Initializations of the weights to choose from; biases start at zero."""

SMALLEST = 4
"""A layer has stride 1 if fewer rows than these would be left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariedOptions:
    """What decides a varied zoo, beside the images. Architectures and networks draw their values independently.

    In the manner of the CNN Wild Park (arXiv:2403.12143 and the code released with it), but smaller, so that a
    processor trains it: there, all strides are 1, widths go up to 64, kernels to 7, depth to 8, and training is always
    the same.

    Attributes:
        seed: Seed of everything.
        per_architecture: Networks of each architecture, which are trained in step.
        depth: Least and greatest number of convolutions; uniform.
        widths: Numbers of channels to choose from, for each layer.
        kernel_sizes: Odd sizes of kernels to choose from, for each layer.
        strides: Strides to choose from, for each layer, as long as 4 x 4 pixels are left.
        residual: Probability that a layer, from the third on, has a residual connection, if a layer before the one
            before it has as many pixels.
        activation: Activations to choose from, for each layer.
        batch_size: Images in a step.
        epochs: Range of the images that a network sees, in units of the training set; uniform.
        learning_rate: Range; uniform in the logarithm.
        l2reg: Range of the factor of the sum of squared weights, without biases, in the loss; uniform in the logarithm.
        optimizer: Optimizers to choose from, for each architecture.

    Raises:
        ValueError: If a range or a choice is empty or out of bounds.
    """

    seed: int = 0
    per_architecture: int = 4
    depth: tuple[int, int] = (2, 5)
    widths: tuple[int, ...] = (4, 8, 16)
    kernel_sizes: tuple[int, ...] = (3, 5)
    strides: tuple[int, ...] = (1, 2)
    residual: float = 0.5
    activation: tuple[VariedActivation, ...] = ("relu", "gelu", "tanh", "sigmoid", "leaky_relu")
    batch_size: int = 64
    epochs: tuple[float, float] = (0.1, 1.0)
    learning_rate: tuple[float, float] = (1e-3, 3e-2)
    l2reg: tuple[float, float] = (1e-8, 1e-2)
    optimizer: tuple[OptimizerName, ...] = ("sgd", "adam", "rmsprop")

    def __post_init__(self) -> None:
        for name in ("per_architecture", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 1 <= self.depth[0] <= self.depth[1]:
            raise ValueError(f"depth must be two numbers >= 1, the lower first, got {self.depth}")
        for name in ("widths", "kernel_sizes", "strides"):
            chosen = getattr(self, name)
            if not chosen or min(chosen) < 1:
                raise ValueError(f"{name} must be numbers >= 1, got {chosen}")
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, got {self.kernel_sizes}")
        if not 0 <= self.residual <= 1:
            raise ValueError(f"residual must be a probability, got {self.residual}")
        for name in ("epochs", "learning_rate", "l2reg"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be two positive numbers, the lower first, got {low}, {high}")
        for name, known in (("activation", VARIED_ACTIVATIONS), ("optimizer", OPTIMIZERS)):
            if not getattr(self, name) or not set(getattr(self, name)) <= set(known):
                raise ValueError(f"{name} must be some of {', '.join(known)}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariedMember:
    """How one network is trained; the attributes are those of `VariedOptions`.

    Attributes:
        number: Which network it is.
        architecture: Number of its architecture.
        steps: Number of steps.
    """

    number: int
    architecture: int
    optimizer: OptimizerName
    w_init: str
    learning_rate: float
    l2reg: float
    steps: int


def draw_architecture(
    options: VariedOptions, number: int, *, in_channels: int, side: int, classes: int = 10
) -> VariedArchitecture:
    """Draw one architecture, for square images of a given side; it depends on nothing but its number.

    Example:
        >>> draw_architecture(VariedOptions(), 1, in_channels=1, side=16).sizes(16)[0]
        16
    """
    generator = seeded_generator(options.seed, f"varied/architecture/{number}")

    def pick(choices: tuple[int, ...]) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    depth = int(torch.randint(options.depth[0], options.depth[1] + 1, (), generator=generator))
    sizes, strides, residuals = [side], [], []
    for layer in range(depth):
        stride = pick(options.strides)
        strides.append(stride if -(-sizes[-1] // stride) >= SMALLEST else 1)
        sizes.append(-(-sizes[-1] // strides[-1]))
        sources = tuple(before for before in range(layer - 1) if sizes[before + 1] == sizes[-1])
        wanted = torch.rand((), generator=generator).item() < options.residual
        residuals.append(pick(sources) if sources and wanted else -1)
    activations = tuple(range(len(options.activation)))
    return VariedArchitecture(
        in_channels=in_channels,
        widths=tuple(pick(options.widths) for _ in range(depth)),
        kernel_sizes=tuple(pick(options.kernel_sizes) for _ in range(depth)),
        strides=tuple(strides),
        residuals=tuple(residuals),
        activations=tuple(options.activation[pick(activations)] for _ in range(depth)),
        classes=classes,
    )


def draw_varied_members(options: VariedOptions, count: int, train_images: int) -> list[VariedMember]:
    """Draw how each network is trained; a network's draw does not depend on how many there are.

    Raises:
        ValueError: If `count` is below 1, or the images are fewer than a batch.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    if train_images < options.batch_size:
        raise ValueError(
            f"{train_images} training images are fewer than a batch of {options.batch_size}; give more images or "
            "smaller batches"
        )
    return [_draw(options, number, train_images) for number in range(count)]


def _draw(options: VariedOptions, number: int, train_images: int) -> VariedMember:
    architecture = number // options.per_architecture
    shared = seeded_generator(options.seed, f"varied/optimizer/{architecture}")
    own = seeded_generator(options.seed, f"varied/hyperparameters/{number}")
    drawn = iter(torch.rand(4, generator=own, dtype=torch.float64).tolist())

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * next(drawn)

    return VariedMember(
        number=number,
        architecture=architecture,
        optimizer=options.optimizer[int(torch.randint(len(options.optimizer), (), generator=shared))],
        w_init=W_INITS[int(next(drawn) * len(W_INITS))],
        learning_rate=math.exp(uniform(*map(math.log, options.learning_rate))),
        l2reg=math.exp(uniform(*map(math.log, options.l2reg))),
        steps=max(1, round(uniform(*options.epochs) * train_images / options.batch_size)),
    )


def initial_varied(member: VariedMember, architecture: VariedArchitecture, seed: int) -> dict[str, Tensor]:
    """Initial parameters of one network: weights as its ``w_init`` says, biases zero."""
    generator = seeded_generator(seed, f"varied/initialization/{member.number}")
    params = {name: torch.zeros(shape) for name, shape in architecture.parameter_shapes.items()}
    for name, value in params.items():
        if name.endswith("weight"):
            initialize(value, member.w_init, generator)
    return params
