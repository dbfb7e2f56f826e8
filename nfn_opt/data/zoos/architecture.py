"""Small convolutional classifiers: one description, and an ordinary module of it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nfn_opt.data.zoos.table import Table

__all__ = ["ACTIVATIONS", "SCORES", "Activation", "CnnArchitecture", "SmallCnn", "ZooArchitecture"]

SCORES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
"""Columns that say how good a classifier is: mean cross-entropy, and the share of right answers."""

Activation = Literal["relu", "tanh"]

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZooArchitecture(abc.ABC):
    """What the networks of a zoo are: a frozen dataclass whose fields JSON can hold."""

    kind: ClassVar[str]
    """Its name in files."""

    scores: ClassVar[tuple[str, ...]]
    """Columns that say how good a network is; the last is the first to look at."""

    @property
    @abc.abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by the names of the module."""

    @property
    @abc.abstractmethod
    def summary(self) -> str:
        """A few words, for people."""

    @abc.abstractmethod
    def module(self, row: Mapping[str, Any]) -> nn.Module:
        """An ordinary module of it, with any parameters.

        Args:
            row: The network's line in the table.
        """

    @abc.abstractmethod
    def example_inputs(self) -> tuple[Tensor, ...]:
        """The smallest inputs that `module` takes, a batch of one, all zeros."""

    def check_table(self, table: Table) -> None:
        """Refuse a table that lacks what `module` needs.

        Raises:
            ValueError: It says which column.
        """
        del table

    def range_text(self, scores: Tensor) -> str:
        """From which to which value the last of `scores` goes, in words; shares as percentages."""
        name = self.scores[-1].replace("_", " ")
        return f"{name} {scores.min():.1%} to {scores.max():.1%}".replace("%", " %")

    @property
    def parameters(self) -> int:
        """How many numbers a network has."""
        return sum(torch.Size(shape).numel() for shape in self.parameter_shapes.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class CnnArchitecture(ZooArchitecture):
    """Convolutions without padding, each followed by an activation, the mean over all pixels, a linear layer.

    The default is that of the Small CNN Zoo (arXiv:2002.11448).

    Attributes:
        in_channels: Channels of the images.
        widths: Channels after each convolution.
        kernel_size: Height and width of the kernels.
        stride: Stride of the convolutions.
        classes: Number of classes.

    Raises:
        ValueError: If a number is below 1, or there is no convolution.

    Example:
        >>> CnnArchitecture().parameters
        4970
        >>> CnnArchitecture().parameter_shapes["layers.1.weight"]
        (16, 16, 3, 3)
    """

    kind: ClassVar[str] = "cnn"
    scores: ClassVar[tuple[str, ...]] = SCORES

    in_channels: int = 1
    widths: tuple[int, ...] = (16, 16, 16)
    kernel_size: int = 3
    stride: int = 2
    classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        numbers = (self.in_channels, *self.widths, self.kernel_size, self.stride, self.classes)
        if not self.widths or min(numbers) < 1:
            raise ValueError(
                f"an architecture needs at least one convolution, and no number below 1, got {self}"
            )

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by the names of `SmallCnn`."""
        shapes: dict[str, tuple[int, ...]] = {}
        before = self.in_channels
        for number, width in enumerate(self.widths):
            shapes[f"layers.{number}.weight"] = (width, before, self.kernel_size, self.kernel_size)
            shapes[f"layers.{number}.bias"] = (width,)
            before = width
        return shapes | {"fc.weight": (self.classes, before), "fc.bias": (self.classes,)}

    @property
    def summary(self) -> str:
        """The channels."""
        return "CNN " + "-".join(map(str, (self.in_channels, *self.widths, self.classes)))

    def module(self, row: Mapping[str, Any]) -> SmallCnn:
        """A `SmallCnn` with the row's "activation"."""
        return SmallCnn(self, str(row["activation"]))

    def example_inputs(self) -> tuple[Tensor, ...]:
        """The smallest images, shape (1, channels, side, side).

        Example:
            >>> CnnArchitecture().example_inputs()[0].shape
            torch.Size([1, 1, 15, 15])
        """
        side = 1
        for _ in self.widths:
            side = (side - 1) * self.stride + self.kernel_size
        return (torch.zeros(1, self.in_channels, side, side),)

    def check_table(self, table: Table) -> None:
        """Refuse a table without activations."""
        if isinstance(table.get("activation"), Tensor | None):
            raise ValueError(f"the table must have the column 'activation', of words; it has {list(table)}")

    def sizes(self, side: int) -> list[int]:
        """Side of the input and of each layer's output, for square images of a given side.

        Raises:
            ValueError: If nothing would be left of the image.

        Example:
            >>> CnnArchitecture().sizes(28)
            [28, 13, 6, 2]
        """
        sizes = [side]
        for _ in self.widths:
            sizes.append((sizes[-1] - self.kernel_size) // self.stride + 1)
            if sizes[-2] < self.kernel_size:
                raise ValueError(
                    f"images of {side} x {side} pixels are too small for {len(self.widths)} convolutions with stride "
                    f"{self.stride}; the sides would be {sizes[:-1]}. Resize the images (--size of the "
                    "scripts, size= of load_images)"
                )
        return sizes


class SmallCnn(nn.Module):
    """A network of a zoo as an ordinary module, without dropout.

    Args:
        architecture: What it is.
        activation: "relu" or "tanh".

    Raises:
        ValueError: If there is no such activation.

    Example:
        >>> SmallCnn(CnnArchitecture(), "relu")(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, architecture: CnnArchitecture, activation: str = "relu") -> None:
        super().__init__()
        if activation not in _FUNCTIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        before = (architecture.in_channels, *architecture.widths)
        kernel, stride = architecture.kernel_size, architecture.stride
        self.layers = nn.ModuleList(
            nn.Conv2d(source, target, kernel, stride)
            for source, target in zip(before, architecture.widths, strict=False)
        )
        self.fc = nn.Linear(architecture.widths[-1], architecture.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (B, classes) of images in [-1, 1], shape (B, channels, H, W)."""
        for layer in self.layers:
            images = _FUNCTIONS[self.activation](layer(images))
        return self.fc(images.mean((2, 3)))
