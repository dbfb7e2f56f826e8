"""Networks that are pruned: small MLPs, and the small CNNs of the zoos."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.data.zoos.architecture import CnnArchitecture, SmallCnn
from nfn_opt.meta.randomness import seeded_generator

__all__ = [
    "Architecture",
    "MlpArchitecture",
    "SmallMlp",
    "architecture_from",
    "architecture_record",
    "example_images",
    "initial_parameters",
    "make_module",
    "prunable",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpArchitecture:
    """Linear layers with ReLU between them, on flattened square images.

    Attributes:
        in_channels: Channels of the images.
        side: Height and width of the images, in pixels.
        widths: Hidden neurons, layer by layer.
        classes: Number of classes.

    Raises:
        ValueError: If a number is below 1, or there is no hidden layer.

    Example:
        >>> MlpArchitecture().parameters
        50890
        >>> MlpArchitecture().parameter_shapes["layers.0.weight"]
        (64, 784)
    """

    in_channels: int = 1
    side: int = 28
    widths: tuple[int, ...] = (64,)
    classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or min(self.in_channels, self.side, *self.widths, self.classes) < 1:
            raise ValueError(
                f"an architecture needs at least one hidden layer, and no number below 1, got {self}"
            )

    @property
    def inputs(self) -> int:
        """Length of a flattened image."""
        return self.in_channels * self.side**2

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by the names of `SmallMlp`."""
        shapes: dict[str, tuple[int, ...]] = {}
        before = self.inputs
        for number, width in enumerate(self.widths):
            shapes[f"layers.{number}.weight"] = (width, before)
            shapes[f"layers.{number}.bias"] = (width,)
            before = width
        return shapes | {"fc.weight": (self.classes, before), "fc.bias": (self.classes,)}

    @property
    def parameters(self) -> int:
        """How many numbers a network has."""
        return sum(torch.Size(shape).numel() for shape in self.parameter_shapes.values())


class SmallMlp(nn.Module):
    """A network of a `MlpArchitecture` as an ordinary module.

    Example:
        >>> SmallMlp(MlpArchitecture())(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, architecture: MlpArchitecture) -> None:
        super().__init__()
        before = (architecture.inputs, *architecture.widths)
        self.layers = nn.ModuleList(
            nn.Linear(source, target) for source, target in zip(before, architecture.widths, strict=False)
        )
        self.fc = nn.Linear(architecture.widths[-1], architecture.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (B, classes) of images in [0, 1], shape (B, channels, side, side) or flattened."""
        value = images.flatten(1)
        for layer in self.layers:
            value = torch.relu(layer(value))
        return self.fc(value)


Architecture = MlpArchitecture | CnnArchitecture
"""What can be pruned; CNNs have ReLU, and take images in [-1, 1], MLPs in [0, 1], so that empty pixels are 0."""


def make_module(architecture: Architecture) -> SmallMlp | SmallCnn:
    """An ordinary module of an architecture, with PyTorch's initial parameters."""
    return (
        SmallMlp(architecture)
        if isinstance(architecture, MlpArchitecture)
        else SmallCnn(architecture, "relu")
    )


def example_images(architecture: Architecture, side: int = 32) -> Tensor:
    """Zeros that the module takes, to trace it; of a CNN, which takes any, of the given side."""
    if isinstance(architecture, MlpArchitecture):
        return torch.zeros(1, architecture.inputs)
    return torch.zeros(1, architecture.in_channels, side, side)


def prunable(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that masks apply to: weights, not biases.

    Example:
        >>> prunable(MlpArchitecture())
        {'layers.0.weight': (64, 784), 'fc.weight': (10, 64)}
    """
    return {name: shape for name, shape in architecture.parameter_shapes.items() if name.endswith("weight")}


def initial_parameters(architecture: Architecture, numbers: range, seed: int) -> dict[str, Tensor]:
    """Initial parameters of networks: Glorot normal weights, biases zero.

    Args:
        architecture: What they are.
        numbers: Which networks; each has its own stream, so that network 7 is the same in a set of any size.
        seed: Seed of the set.

    Returns:
        For each parameter a tensor of shape (len(numbers), *shape).
    """
    shapes = architecture.parameter_shapes
    params = {name: torch.zeros(len(numbers), *shape) for name, shape in shapes.items()}
    for row, number in enumerate(numbers):
        generator = seeded_generator(seed, f"tickets/initialization/{number}")
        for name, shape in prunable(architecture).items():
            field = math.prod(shape[2:])
            std = math.sqrt(2 / ((shape[0] + shape[1]) * field))
            params[name][row] = std * torch.randn(shape, generator=generator)
    return params


def architecture_record(architecture: Architecture) -> dict[str, Any]:
    """The architecture as JSON."""
    kind = "mlp" if isinstance(architecture, MlpArchitecture) else "cnn"
    return {"kind": kind, **dataclasses.asdict(architecture)}


def architecture_from(record: Mapping[str, Any]) -> Architecture:
    """The inverse of `architecture_record`.

    Raises:
        ValueError: If the kind is unknown.

    Example:
        >>> architecture_from(architecture_record(MlpArchitecture())) == MlpArchitecture()
        True
    """
    fields = {name: value for name, value in record.items() if name != "kind"}
    if record.get("kind") == "mlp":
        return MlpArchitecture(**fields)
    if record.get("kind") == "cnn":
        return CnnArchitecture(**fields)
    raise ValueError(f"the kind of an architecture is {record.get('kind')!r}, expected 'mlp' or 'cnn'")
