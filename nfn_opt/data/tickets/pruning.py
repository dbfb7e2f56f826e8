"""Training of many masked networks at once, and iterative magnitude pruning of them (arXiv:1803.03635)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.data.images import ImageData
from nfn_opt.data.tickets.architecture import Architecture, MlpArchitecture, prunable
from nfn_opt.data.tickets.masks import Masks, Scope, apply_masks, kept_counts, magnitude_masks, top_masks
from nfn_opt.data.tickets.stacked_mlp import StackedMlp
from nfn_opt.data.zoos.stacked import StackedCnn, pack, unpack
from nfn_opt.data.zoos.training import ZooData, score_networks

__all__ = [
    "PruningOptions",
    "TrainOptions",
    "find_tickets",
    "stacked_networks",
    "accuracy",
    "ticket_data",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a network is trained, masked or not: Adam, the learning rate falling to zero along a half cosine.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        learning_rate: Of the first step.
    """

    epochs: float = 2.0
    batch_size: int = 128
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")

    def steps(self, images: int) -> int:
        """Steps on so many training images, at least one."""
        return max(1, round(self.epochs * images / self.batch_size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """Iterative magnitude pruning: train, prune the smallest weights, rewind the others to where they began, repeat.

    Attributes:
        sparsity: Share of the weights that is pruned in the end, in [0, 1).
        rounds: Rounds; each prunes the same share of what is left. One round is what arXiv:2302.14040 learns from.
        scope: "global": the smallest weights of the whole network; "layer": of each layer.

    Example:
        >>> [round(share, 3) for share in PruningOptions(sparsity=0.95, rounds=3).schedule]
        [0.632, 0.864, 0.95]
    """

    sparsity: float = 0.95
    rounds: int = 1
    scope: Scope = "global"

    def __post_init__(self) -> None:
        kept_counts({}, self.sparsity, self.scope)
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}, expected at least 1")

    @property
    def schedule(self) -> tuple[float, ...]:
        """The sparsity after each round."""
        return tuple(
            1 - (1 - self.sparsity) ** (number / self.rounds) for number in range(1, self.rounds + 1)
        )


def ticket_data(train: ImageData, test: ImageData, architecture: Architecture) -> ZooData:
    """Images as the networks take them: in [0, 1] for MLPs, so that empty pixels say nothing, [-1, 1] for CNNs.

    Raises:
        ValueError: If the images do not fit the architecture; the message says how.
    """
    data = ZooData.from_images(train, test)
    channels, side = data.train.shape[1:3]
    if isinstance(architecture, MlpArchitecture):
        wanted: tuple[int, int] = (architecture.in_channels, architecture.side)
        if (channels, side) != wanted:
            raise ValueError(
                f"{train!r} has {channels} channels of {side} x {side} pixels, expected {wanted[0]} of {wanted[1]} x "
                f"{wanted[1]}; resize the images, or give another architecture"
            )
        data = dataclasses.replace(data, train=data.train.add(1).div_(2), test=data.test.add(1).div_(2))
    elif channels != architecture.in_channels:
        raise ValueError(f"{train!r} has {channels} channels, expected {architecture.in_channels}")
    else:
        architecture.sizes(side)  # refuses images that are too small
    if len(train.class_names) > architecture.classes:
        raise ValueError(
            f"{train!r} has {len(train.class_names)} classes, expected at most {architecture.classes}"
        )
    return data


def stacked_networks(architecture: Architecture, side: int) -> StackedMlp | StackedCnn:
    """What computes outputs and gradients of many networks at once."""
    if isinstance(architecture, MlpArchitecture):
        return StackedMlp(architecture)
    return StackedCnn(architecture, side, "relu")


def train_masked(
    params: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None,
    data: ZooData,
    architecture: Architecture,
    options: TrainOptions,
    generator: torch.Generator,
    done: Callable[[int], object] = lambda steps: None,
) -> dict[str, Tensor]:
    """Train N networks in step, on the same images in the same order; pruned weights stay zero.

    A network depends on its own initial parameters and mask, the images and their order, not on the other networks,
    save for the rounding of sums.

    Args:
        params: Initial parameters, tensors of shape (N, *shape).
        masks: For each weight a bool tensor of shape (N, *shape); None keeps all.
        data: Images.
        architecture: Of all networks.
        options: How to train.
        generator: Source of the order of the images.
        done: Told after each step how many networks made it.

    Returns:
        The trained parameters.
    """
    networks = stacked_networks(architecture, data.train.shape[-1])
    packed = pack(params if masks is None else apply_masks(params, masks), architecture)
    kept = None if masks is None else _packed_masks(params, masks, architecture)
    targets = F.one_hot(data.train_labels, architecture.classes).to(packed.dtype)
    packed.requires_grad_().grad = torch.empty_like(packed)
    optimizer = torch.optim.Adam([packed], lr=options.learning_rate, fused=True)
    steps = options.steps(len(data.train))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        for _, numbers in zip(range(steps), _batches(data, options, generator), strict=False):
            assert packed.grad is not None
            networks.gradient(packed, networks.batch(data.train[numbers]), targets[numbers], packed.grad)  # type: ignore[arg-type]
            if kept is not None:
                packed.grad.mul_(kept)
            optimizer.step()
            schedule.step()
            done(len(packed))
    return unpack(packed.detach(), architecture)


def accuracy(
    params: Mapping[str, Tensor], data: ZooData, architecture: Architecture, images: int = 10_000
) -> Tensor:
    """Share of right answers of each network on the first test images, float64, shape (N,)."""
    networks = stacked_networks(architecture, data.test.shape[-1])
    packed = pack(params, architecture)
    return score_networks(packed, networks, data.test[:images], data.test_labels[:images])[1]


def find_tickets(
    params: Mapping[str, Tensor],
    data: ZooData,
    architecture: Architecture,
    pruning: PruningOptions,
    options: TrainOptions,
    generator: torch.Generator,
    done: Callable[[int], object] = lambda steps: None,
) -> tuple[Masks, dict[str, Tensor]]:
    """Masks of N networks by iterative magnitude pruning.

    Args:
        params: Initial parameters, tensors of shape (N, *shape).
        data: Images.
        architecture: Of all networks.
        pruning: Sparsity and rounds.
        options: How each round trains.
        generator: Source of the order of the images.
        done: Told after each step how many networks made it.

    Returns:
        The masks, and the parameters after the first training, which is that of the dense networks.
    """
    masks: Masks | None = None
    dense: dict[str, Tensor] = {}
    for sparsity in pruning.schedule:
        trained = train_masked(params, masks, data, architecture, options, generator, done)
        dense = dense or trained
        if masks is None:
            masks = magnitude_masks(trained, sparsity, scope=pruning.scope)
            continue
        scores = {name: trained[name].abs().masked_fill(~masks[name], -1) for name in prunable(architecture)}
        masks = top_masks(scores, sparsity, scope=pruning.scope)
    assert masks is not None
    return masks, dense


def _packed_masks(
    params: Mapping[str, Tensor], masks: Mapping[str, Tensor], architecture: Architecture
) -> Tensor:
    """Ones for what is trained, shape (N, P)."""
    ones = {name: torch.ones_like(value) for name, value in params.items()}
    return pack(apply_masks(ones, masks), architecture)


def _batches(data: ZooData, options: TrainOptions, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers of the images of each step, without end; each pass has a new order, its rest is left out."""
    size = min(options.batch_size, len(data.train))
    while True:
        order = torch.randperm(len(data.train), generator=generator)
        yield from order[: len(order) // size * size].view(-1, size)
