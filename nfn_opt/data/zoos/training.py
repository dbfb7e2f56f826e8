"""Training of a zoo: chunks of networks of one kind in step, on the same images in the same order."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.data.images import ImageData
from nfn_opt.data.zoos.architecture import SCORES, CnnArchitecture
from nfn_opt.data.zoos.hyperparameters import Member, ZooOptions, initial_parameters
from nfn_opt.data.zoos.optimizers import StackedOptimizer
from nfn_opt.data.zoos.stacked import StackedCnn, pack, unpack
from nfn_opt.data.zoos.table import Column
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.randomness import seeded_generator

__all__ = ["ZooData", "batches", "draw_noise", "member_table", "plan_chunks", "score_networks", "train_zoo"]

SCORED_AT_ONCE = 100
"""Images in a batch whose outputs are scored."""


class BatchOptions(Protocol):
    """What `batches` needs of the options of a zoo."""

    @property
    def seed(self) -> int:
        """Seed of everything."""

    @property
    def batch_size(self) -> int:
        """Images in a step."""


class Stack(Protocol):
    """Networks of one architecture at once, as `score_networks` needs them."""

    def batch(self, images: Tensor) -> Any:
        """Images as `logits` takes them."""

    def logits(self, packed: Tensor, batch: Any) -> Tensor:
        """Logits, shape (N, B, classes)."""


@dataclasses.dataclass(frozen=True, eq=False)
class ZooData:
    """Images as the networks take them.

    Attributes:
        train: Pixel values in [-1, 1], shape (N, C, S, S).
        train_labels: Classes, int64, shape (N,).
        test: As `train`, for the test scores.
        test_labels: As `train_labels`.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @classmethod
    def from_images(cls, train: ImageData, test: ImageData) -> ZooData:
        """Take square images in [0, 1] with channels last.

        Raises:
            ValueError: If they are not square, or the sets differ in shape.
        """
        for data in (train, test):
            _, height, width, _ = data.images.shape
            if height != width or data.images.shape[1:] != train.images.shape[1:]:
                raise ValueError(
                    f"images must be square and of one shape, got {train!r} and {test!r}; resize them (size)"
                )
        pixels = [data.images.permute(0, 3, 1, 2).mul(2).sub(1).contiguous() for data in (train, test)]
        return cls(pixels[0], train.labels, pixels[1], test.labels)

    def to(self, dtype: torch.dtype) -> ZooData:
        """The same in another precision."""
        return dataclasses.replace(self, train=self.train.to(dtype), test=self.test.to(dtype))


def plan_chunks(members: Sequence[Member], chunk_size: int) -> list[list[Member]]:
    """Cut into chunks that can be trained in step: of one activation, optimizer, fraction of the images and dropout.

    Those of similar numbers of steps come together, those with most steps first. The chunks of a kind are of one size,
    as near as can be: small ones cost more for each network.
    """
    kinds: dict[tuple[str, str, float, float], list[Member]] = {}
    for member in members:
        kind_of = (member.activation, member.optimizer, member.train_fraction, member.dropout)
        kinds.setdefault(kind_of, []).append(member)
    chunks = []
    for _, kind in sorted(kinds.items()):
        kind.sort(key=lambda member: (-member.steps, member.number))
        size = math.ceil(len(kind) / math.ceil(len(kind) / chunk_size))
        chunks += [kind[start : start + size] for start in range(0, len(kind), size)]
    return chunks


def batches(options: BatchOptions, fraction: float, train_images: int) -> Iterator[Tensor]:
    """Numbers of the images of each step, without end: passes over the first part of a shuffled set.

    Each pass has a new order, and the rest that fills no batch is left out of it. All fractions begin with the same
    order of the set, so that a smaller part lies in a larger one.
    """
    kept = torch.randperm(train_images, generator=seeded_generator(options.seed, "zoo/images"))
    kept = kept[: round(fraction * train_images)]
    generator = seeded_generator(options.seed, f"zoo/order/{fraction}")
    while True:
        order = kept[torch.randperm(len(kept), generator=generator)]
        yield from order[: len(order) // options.batch_size * options.batch_size].view(-1, options.batch_size)


def train_zoo(
    members: Sequence[Member],
    data: ZooData,
    options: ZooOptions,
    architecture: CnnArchitecture,
    *,
    score_images: int = 10_000,
    dtype: torch.dtype = torch.float32,
    done: Callable[[int], object] = lambda steps: None,
) -> Zoo:
    """Train one chunk of networks and score them.

    A network depends on its own hyperparameters, the images and the options, not on the others of its chunk, save for
    the rounding of sums.

    Args:
        members: Networks of one activation, optimizer, fraction and dropout, those with most steps first; see
            `plan_chunks`.
        data: Images.
        options: Options of the whole zoo.
        architecture: Of all networks.
        score_images: Score on so many test images, and a quarter as many training images of those that the networks
            saw, at most.
        dtype: Precision of the training.
        done: Told after each step how many networks made it.

    Returns:
        The networks in the order of `members`, float32.
    """
    first = members[0]
    packed = _initial(members, architecture, options.seed).to(dtype)
    rates, penalties = (
        torch.tensor([getattr(member, name) for member in members], dtype=dtype)
        for name in ("learning_rate", "l2reg")
    )
    optimizer = StackedOptimizer(
        first.optimizer, packed, rates, penalties[:, None] * _weights_only(architecture).to(dtype)
    )
    size = options.batch_size
    cnn = StackedCnn(architecture, data.train.shape[-1], first.activation)
    targets = F.one_hot(data.train_labels, architecture.classes).to(dtype)
    noises = seeded_generator(options.seed, f"zoo/dropout/{first.train_fraction}")
    gradient = torch.empty_like(packed)
    order = itertools.islice(batches(options, first.train_fraction, len(data.train)), first.steps)
    left = len(members)
    for step, numbers in enumerate(order):
        while members[left - 1].steps <= step:
            left -= 1
        noise = draw_noise(size * sum(cnn.units), noises).to(dtype) if first.dropout else None
        batch = cnn.batch(data.train[numbers], first.dropout, noise)
        cnn.gradient(packed[:left], batch, targets[numbers], gradient[:left])
        optimizer.step(gradient[:left])
        done(left)
    scores = _scores(packed, cnn, data, options, first.train_fraction, score_images)
    params = {name: value.float() for name, value in unpack(packed, architecture).items()}
    return Zoo(params, architecture, {**member_table(members), **scores})


def draw_noise(count: int, generator: torch.Generator) -> Tensor:
    """Noise of dropout: numbers of 16 bits in (0, 1), four from each draw of 64, which is the slow part.

    Returns:
        Float32, shape (count,).

    Example:
        >>> noise = draw_noise(10_000, torch.Generator().manual_seed(0))
        >>> bool(noise.min() > 0), bool(noise.max() < 1), round(noise.mean().item(), 2)
        (True, True, 0.5)
    """
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:count].float().add_(2**15 + 0.5).div_(2**16)


def _initial(members: Sequence[Member], architecture: CnnArchitecture, seed: int) -> Tensor:
    drawn = [initial_parameters(member, architecture, seed) for member in members]
    return pack({name: torch.stack([params[name] for params in drawn]) for name in drawn[0]}, architecture)


def _weights_only(architecture: CnnArchitecture) -> Tensor:
    """1 for weights, 0 for biases, shape (1, P)."""
    shapes = architecture.parameter_shapes
    return pack(
        {name: torch.full((1, *shape), float(name.endswith("weight"))) for name, shape in shapes.items()},
        architecture,
    )


def member_table(members: Sequence[Any]) -> dict[str, Column]:
    """The hyperparameters as columns: the fields of dataclasses of one class, numbers or words."""
    columns: dict[str, Column] = {}
    for field in dataclasses.fields(members[0]):
        values = [getattr(member, field.name) for member in members]
        if isinstance(values[0], str):
            columns[field.name] = tuple(values)
        else:
            columns[field.name] = torch.tensor(
                values, dtype=torch.int64 if isinstance(values[0], int) else torch.float64
            )
    return columns


def _scores(
    packed: Tensor, cnn: StackedCnn, data: ZooData, options: ZooOptions, fraction: float, count: int
) -> dict[str, Column]:
    """`SCORES`, without dropout."""
    kept = torch.randperm(len(data.train), generator=seeded_generator(options.seed, "zoo/images"))
    kept = kept[: round(fraction * len(data.train))][: math.ceil(count / 4)]
    train = score_networks(packed, cnn, data.train[kept], data.train_labels[kept])
    test = score_networks(packed, cnn, data.test[:count], data.test_labels[:count])
    return dict(zip(SCORES, (*train, *test), strict=True))


def score_networks(packed: Tensor, cnn: Stack, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and share of right answers of each network, NaN where an output is not finite."""
    loss, right = torch.zeros(2, len(packed), dtype=torch.float64)
    for some, wanted in zip(images.split(SCORED_AT_ONCE), labels.split(SCORED_AT_ONCE), strict=True):
        outputs = cnn.logits(packed, cnn.batch(some)).transpose(1, 2)
        each = wanted.expand(len(packed), -1)
        loss += F.cross_entropy(outputs, each, reduction="none").sum(1)
        right += (outputs.argmax(1) == each).sum(1)
    loss, accuracy = loss / len(images), right / len(images)
    return loss, accuracy.masked_fill(~loss.isfinite(), torch.nan)
