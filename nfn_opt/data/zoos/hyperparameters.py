"""How the networks of a zoo are trained: options of all, ranges that each draws from, and initial parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nfn_opt.data.zoos.architecture import ACTIVATIONS, Activation, CnnArchitecture
from nfn_opt.data.zoos.optimizers import OPTIMIZERS, OptimizerName
from nfn_opt.meta.randomness import seeded_generator

__all__ = ["Initialization", "Member", "ZooOptions", "draw_members", "initial_parameters", "initialize"]

Initialization = Literal["glorot_normal", "he_normal", "orthogonal", "normal", "truncated_normal", "pytorch"]

INITIALIZATIONS: tuple[Initialization, ...] = get_args(Initialization)

SMALL_CNN_ZOO: tuple[Initialization, ...] = tuple(name for name in INITIALIZATIONS if name != "pytorch")
"""The initializations of arXiv:2002.11448, whose biases are zero."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZooOptions:
    """What decides a zoo, beside images and architecture. Each network draws its own values, independently.

    As in the Small CNN Zoo (arXiv:2002.11448, and the tables released with it), activation, optimizer, initialization,
    learning rate, penalty, dropout and the fraction of the training data vary, biases start at zero, and the order
    of the images and the noise of dropout are the same for all networks with the same fraction. Its networks
    were trained in batches of 512 for 86 epochs, and with any rate of dropout between 0 and 0.7; here batches are
    smaller and epochs much fewer, whose number varies too.

    Attributes:
        seed: Seed of everything.
        batch_size: Images in a step.
        epochs: Range of the images that a network sees, with repetition, in units of the *whole* training set whatever
            fraction of it the network sees; uniform.
        learning_rate: Range; uniform in the logarithm.
        l2reg: Range of the factor of the sum of squared weights, without biases, in the loss; uniform in the logarithm.
        dropout: Rates of dropout after each convolution to choose from. Few, so that networks with the same can be
            trained in step, which drop the same units.
        init_std: Range of the standard deviation of normal and truncated_normal weights; uniform in the logarithm.
        train_fraction: Fractions of the training images to choose from.
        activation: Activations to choose from.
        optimizer: Optimizers to choose from.
        w_init: Initializations to choose from. Beside those of the Small CNN Zoo there is ``"pytorch"``, that of
            PyTorch's layers: weights and biases uniform, up to the inverse square root of the inputs of a neuron.

    Raises:
        ValueError: If a range or a choice is empty or out of bounds.
    """

    seed: int = 0
    batch_size: int = 128
    epochs: tuple[float, float] = (0.2, 2.2)
    learning_rate: tuple[float, float] = (5e-4, 5e-2)
    l2reg: tuple[float, float] = (1e-8, 1e-2)
    dropout: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    init_std: tuple[float, float] = (1e-3, 0.5)
    train_fraction: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    activation: tuple[Activation, ...] = ACTIVATIONS
    optimizer: tuple[OptimizerName, ...] = OPTIMIZERS
    w_init: tuple[Initialization, ...] = SMALL_CNN_ZOO

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        for name in ("epochs", "learning_rate", "l2reg", "init_std"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be two positive numbers, the lower first, got {low}, {high}")
        if not self.dropout or not all(0 <= rate < 1 for rate in self.dropout):
            raise ValueError(f"dropout must be numbers in [0, 1), got {self.dropout}")
        if not self.train_fraction or not all(0 < fraction <= 1 for fraction in self.train_fraction):
            raise ValueError(f"train_fraction must be numbers in (0, 1], got {self.train_fraction}")
        for name, known in (
            ("activation", ACTIVATIONS),
            ("optimizer", OPTIMIZERS),
            ("w_init", INITIALIZATIONS),
        ):
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(known):
                raise ValueError(f"{name} must be some of {', '.join(known)}, got {chosen}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """How one network of a zoo is trained; the attributes are those of `ZooOptions`.

    Attributes:
        number: Which network it is.
        steps: Number of steps.
    """

    number: int
    activation: Activation
    optimizer: OptimizerName
    w_init: Initialization
    learning_rate: float
    l2reg: float
    dropout: float
    init_std: float
    train_fraction: float
    steps: int


def draw_members(options: ZooOptions, count: int, train_images: int) -> list[Member]:
    """Draw how each network is trained; a network's draw does not depend on how many there are.

    Args:
        options: What to draw from.
        count: Number of networks.
        train_images: Number of images of the whole training set.

    Raises:
        ValueError: If `count` is below 1, or a fraction of the images is less than a batch.

    Example:
        >>> draw_members(ZooOptions(), 5, 50_000)[:2] == draw_members(ZooOptions(), 2, 50_000)
        True
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    least = round(min(options.train_fraction) * train_images)
    if least < options.batch_size:
        raise ValueError(
            f"the fraction {min(options.train_fraction)} of {train_images} training images are {least} images, fewer "
            f"than a batch of {options.batch_size}; give more images, larger fractions or smaller batches"
        )
    return [_draw(options, number, train_images) for number in range(count)]


def _draw(options: ZooOptions, number: int, train_images: int) -> Member:
    # One uniform number for each hyperparameter, in an order that must not change.
    generator = seeded_generator(options.seed, f"zoo/hyperparameters/{number}")
    drawn = iter(torch.rand(9, generator=generator, dtype=torch.float64).tolist())

    def uniform(bounds: tuple[float, float]) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * next(drawn)

    def logarithmic(bounds: tuple[float, float]) -> float:
        return math.exp(uniform((math.log(bounds[0]), math.log(bounds[1]))))

    return Member(
        number=number,
        activation=options.activation[int(next(drawn) * len(options.activation))],
        optimizer=options.optimizer[int(next(drawn) * len(options.optimizer))],
        w_init=options.w_init[int(next(drawn) * len(options.w_init))],
        learning_rate=logarithmic(options.learning_rate),
        l2reg=logarithmic(options.l2reg),
        dropout=options.dropout[int(next(drawn) * len(options.dropout))],
        init_std=logarithmic(options.init_std),
        train_fraction=options.train_fraction[int(next(drawn) * len(options.train_fraction))],
        steps=max(1, round(uniform(options.epochs) * train_images / options.batch_size)),
    )


def initial_parameters(member: Member, architecture: CnnArchitecture, seed: int) -> dict[str, Tensor]:
    """Initial parameters of one network: weights as its ``w_init`` says, biases zero unless it is ``"pytorch"``.

    Normal distributions of Glorot and He are truncated at two standard deviations, as in Keras.
    """
    generator = seeded_generator(seed, f"zoo/initialization/{member.number}")
    params, bound = {}, 0.0
    for name, shape in architecture.parameter_shapes.items():
        params[name] = torch.zeros(shape)
        if name.endswith("weight"):
            bound = params[name][0].numel() ** -0.5
            initialize(params[name], member.w_init, generator, member.init_std)
        elif member.w_init == "pytorch":
            params[name].uniform_(-bound, bound, generator=generator)  # of the weight before it
    return params


def initialize(weight: Tensor, w_init: str, generator: torch.Generator, std: float = 0.05) -> None:
    """Draw one weight, in place, of a distribution of `INITIALIZATIONS`.

    Args:
        weight: Shape (out, in, ...).
        w_init: Which.
        generator: Where the randomness comes from.
        std: Standard deviation of "normal" and "truncated_normal".
    """
    if w_init == "orthogonal":
        nn.init.orthogonal_(weight, generator=generator)
        return
    if w_init == "normal":
        nn.init.normal_(weight, std=std, generator=generator)
        return
    fan_out, fan_in = weight.shape[0] * weight[0, 0].numel(), weight[0].numel()
    if w_init == "pytorch":
        nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        return
    std = {
        "truncated_normal": std,
        "he_normal": math.sqrt(2 / fan_in) / TRUNCATED_STD,
        "glorot_normal": math.sqrt(2 / (fan_in + fan_out)) / TRUNCATED_STD,
    }[w_init]
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal variable that is limited to [-2, 2]."""
