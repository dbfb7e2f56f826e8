"""Training of a varied zoo: the networks of one architecture in step, on the same images in the same order."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from nfn_opt.data.images import ImageData
from nfn_opt.data.zoos.architecture import SCORES
from nfn_opt.data.zoos.building import checksum
from nfn_opt.data.zoos.optimizers import StackedOptimizer
from nfn_opt.data.zoos.shards import ZooShards, build_in_shards
from nfn_opt.data.zoos.table import Column
from nfn_opt.data.zoos.training import ZooData, batches, member_table, score_networks
from nfn_opt.data.zoos.varied import VariedGroup, VariedZoo
from nfn_opt.data.zoos.varied_architecture import VariedArchitecture, VariedCnn
from nfn_opt.data.zoos.varied_options import (
    VariedMember,
    VariedOptions,
    draw_architecture,
    draw_varied_members,
    initial_varied,
)
from nfn_opt.meta.processes import Processes

__all__ = ["VariedStack", "build_varied_zoo", "train_varied"]


class VariedStack:
    """Outputs and gradients of networks of one architecture on the same images, by `torch.func.vmap`.

    Parameters are packed into one matrix of shape (N, P), one parameter after the other, each flattened.

    Args:
        architecture: Of all networks.
    """

    def __init__(self, architecture: VariedArchitecture) -> None:
        self.shapes = architecture.parameter_shapes
        self._module = VariedCnn(architecture).requires_grad_(False)
        self._logits = vmap(self._one, in_dims=(0, None))
        self._gradient = vmap(grad(self._loss), in_dims=(0, None, None))

    def pack(self, params: Mapping[str, Tensor]) -> Tensor:
        """Stacked parameters as one matrix."""
        return torch.cat([params[name].flatten(1) for name in self.shapes], 1)

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """The inverse of `pack`, as views; one network's vector gives one network's parameters."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = packed.split(sizes, -1)
        return {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def batch(self, images: Tensor) -> Tensor:
        """Images as `logits` takes them: as they are."""
        return images

    def logits(self, packed: Tensor, images: Tensor) -> Tensor:
        """Logits, shape (N, B, classes), of images of shape (B, channels, H, W)."""
        return self._logits(packed, images)

    def gradient(self, packed: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Gradient of each network's mean cross-entropy, shape (N, P)."""
        return self._gradient(packed, images, labels)

    def _one(self, vector: Tensor, images: Tensor) -> Tensor:
        return functional_call(self._module, self.unpack(vector), (images,))

    def _loss(self, vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._one(vector, images), labels)


def train_varied(
    members: Sequence[VariedMember],
    data: ZooData,
    options: VariedOptions,
    *,
    classes: int = 10,
    score_images: int = 10_000,
    done: Callable[[int], object] = lambda steps: None,
) -> VariedZoo:
    """Train networks of one architecture and score them.

    Args:
        members: Of one architecture, those with most steps first.
        data: Images.
        options: Options of the whole zoo.
        classes: Number of classes.
        score_images: Score on so many training and test images, at most.
        done: Told after each step how many networks made it.

    Returns:
        The networks in the order of `members`, float32.
    """
    _, channels, side, _ = data.train.shape
    architecture = draw_architecture(
        options, members[0].architecture, in_channels=channels, side=side, classes=classes
    )
    stack = VariedStack(architecture)
    drawn = [initial_varied(member, architecture, options.seed) for member in members]
    packed = stack.pack({name: torch.stack([params[name] for params in drawn]) for name in drawn[0]})
    rates, penalties = (
        torch.tensor([getattr(member, name) for member in members], dtype=packed.dtype)
        for name in ("learning_rate", "l2reg")
    )
    weights = stack.pack(
        {
            name: torch.full((1, *shape), float(name.endswith("weight")))
            for name, shape in stack.shapes.items()
        }
    )
    optimizer = StackedOptimizer(members[0].optimizer, packed, rates, penalties[:, None] * weights)
    left = len(members)
    for step, numbers in enumerate(
        itertools.islice(batches(options, 1.0, len(data.train)), members[0].steps)
    ):
        while members[left - 1].steps <= step:
            left -= 1
        optimizer.step(stack.gradient(packed[:left], data.train[numbers], data.train_labels[numbers]))
        done(left)
    train = score_networks(packed, stack, data.train[:score_images], data.train_labels[:score_images])
    test = score_networks(packed, stack, data.test[:score_images], data.test_labels[:score_images])
    group = VariedGroup(architecture, stack.unpack(packed), torch.arange(len(members)))
    return VariedZoo(
        (group,), _table(members, architecture) | dict(zip(SCORES, (*train, *test), strict=True))
    )


def _table(members: Sequence[VariedMember], architecture: VariedArchitecture) -> dict[str, Column]:
    """Hyperparameters, and what the architecture is, as columns."""
    described = {
        "depth": len(architecture.widths),
        "parameters": architecture.parameters,
        "residual_connections": sum(source >= 0 for source in architecture.residuals),
    }
    words = {
        "widths": "-".join(map(str, architecture.widths)),
        "activations": "-".join(architecture.activations),
    }
    count = len(members)
    return {
        **member_table(members),
        **{name: torch.full((count,), value) for name, value in described.items()},
        **{name: (word,) * count for name, word in words.items()},
    }


def build_varied_zoo(
    images: ImageData,
    path: str | os.PathLike[str],
    *,
    count: int,
    options: VariedOptions | None = None,
    test_fraction: float = 1 / 6,
    score_images: int = 10_000,
    shard_size: int = 32,
    resume: bool = False,
    processes: Processes | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> VariedZoo:
    """Train a varied zoo to a file; one that is stopped can be resumed. Arguments and errors as `build_zoo`.

    Example:
        >>> import tempfile
        >>> from nfn_opt.data import load_images
        >>> path = Path(tempfile.mkdtemp()) / "zoo.safetensors"
        >>> options = VariedOptions(per_architecture=2, depth=(2, 3), epochs=(0.1, 0.2))
        >>> zoo = build_varied_zoo(load_images("digits"), path, count=4, options=options, score_images=50)
        >>> len(zoo), len(VariedZoo.load(path)), path.with_suffix(".csv").exists()
        (4, 4, True)
    """
    for name, value in (("shard_size", shard_size), ("score_images", score_images)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
    options = options or VariedOptions()
    dealt = images.split({"train": 1 - test_fraction, "test": test_fraction}, seed=options.seed)
    data = ZooData.from_images(dealt["train"], dealt["test"])
    members = draw_varied_members(options, count, len(data.train))
    chunks = [
        sorted(chunk, key=lambda member: (-member.steps, member.number))
        for _, chunk in itertools.groupby(members, key=lambda member: member.architecture)
    ]
    record = {
        "kind": "varied-cnn",
        "options": dataclasses.asdict(options),
        "images": {"source": images.source, "sha256": checksum(data), "count": len(images)},
        "test_fraction": test_fraction,
        "score_images": score_images,
        "count": count,
        "shard_size": shard_size,
    }
    return build_in_shards(
        ZooShards(Path(path), chunks, record, VariedZoo),
        lambda chunk, done: train_varied(
            chunk, data, options, classes=len(images.class_names), score_images=score_images, done=done
        ),
        resume=resume,
        processes=processes,
        meta=meta,
        progress=progress,
    )
