"""Convolutional classifiers of all shapes: depths, widths, kernels, activations, residual connections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VARIED_ACTIVATIONS", "VariedActivation", "VariedArchitecture", "VariedCnn"]

VariedActivation = Literal["relu", "gelu", "tanh", "sigmoid", "leaky_relu", "none"]

VARIED_ACTIVATIONS: tuple[VariedActivation, ...] = get_args(VariedActivation)

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "none": lambda x: x,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariedArchitecture:
    """Convolutions, each with its own options, the mean over all pixels, a linear layer: as in the CNN Wild Park.

    A layer with a residual connection adds to its output, before the activation, what came after the activation of
    an earlier layer; of both only the channels that both have.

    Attributes:
        in_channels: Channels of the images.
        widths: Channels after each convolution.
        kernel_sizes: Odd height and width of each layer's kernels.
        strides: Of each layer.
        paddings: Of each layer; half the kernel if not given.
        residuals: Number of the layer, from 0, whose output is added to each layer, or -1.
        activations: After each layer, of `VARIED_ACTIVATIONS`.
        classes: Number of classes.

    Raises:
        ValueError: If the lists differ in length, or a value is out of bounds.

    Example:
        >>> architecture = VariedArchitecture(
        ...     widths=(4, 8, 8), kernel_sizes=(3, 5, 3), strides=(2, 1, 1), residuals=(-1, -1, 0),
        ...     activations=("relu", "tanh", "gelu"),
        ... )
        >>> architecture.parameters, architecture.summary
        (1594, 'CNN 3-4-8-8-10, residual')
    """

    in_channels: int = 3
    widths: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    residuals: tuple[int, ...]
    activations: tuple[VariedActivation, ...]
    paddings: tuple[int, ...] = ()
    classes: int = 10

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        if not self.paddings:
            object.__setattr__(self, "paddings", tuple(size // 2 for size in self.kernel_sizes))
        lists = (
            self.widths,
            self.kernel_sizes,
            self.strides,
            self.residuals,
            self.activations,
            self.paddings,
        )
        if not self.widths or {len(each) for each in lists} != {len(self.widths)}:
            raise ValueError(f"an architecture needs one value a layer in each of its lists, got {self}")
        if min(self.in_channels, *self.widths, *self.kernel_sizes, *self.strides, self.classes) < 1:
            raise ValueError(f"no number of an architecture may be below 1, got {self}")
        if min(self.paddings) < 0 or not set(self.activations) <= set(VARIED_ACTIVATIONS):
            raise ValueError(
                f"paddings must be >= 0 and activations some of {', '.join(VARIED_ACTIVATIONS)}, got {self}"
            )
        for number, source in enumerate(self.residuals):
            if not -1 <= source < number:
                raise ValueError(
                    f"residuals[{number}] must be -1 or an earlier layer (0 to {number - 1}), got {source}"
                )

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by the names of `VariedCnn`."""
        shapes: dict[str, tuple[int, ...]] = {}
        before = self.in_channels
        for number, (width, size) in enumerate(zip(self.widths, self.kernel_sizes, strict=True)):
            shapes[f"layers.{number}.weight"] = (width, before, size, size)
            shapes[f"layers.{number}.bias"] = (width,)
            before = width
        return shapes | {"fc.weight": (self.classes, before), "fc.bias": (self.classes,)}

    @property
    def parameters(self) -> int:
        """How many numbers a network has."""
        return sum(torch.Size(shape).numel() for shape in self.parameter_shapes.values())

    @property
    def summary(self) -> str:
        """The channels, and whether there are residual connections."""
        text = "CNN " + "-".join(map(str, (self.in_channels, *self.widths, self.classes)))
        return text + (", residual" if max(self.residuals) >= 0 else "")

    def example_inputs(self, side: int = 32) -> tuple[Tensor, ...]:
        """One image of a given side, zeros, shape (1, channels, side, side)."""
        return (torch.zeros(1, self.in_channels, side, side),)

    def sizes(self, side: int) -> list[int]:
        """Side of the input and of each layer's output, for square images of a given side.

        Raises:
            ValueError: If nothing would be left of the image, or a residual connection joins different sizes.
        """
        sizes = [side]
        for size, stride, padding in zip(self.kernel_sizes, self.strides, self.paddings, strict=True):
            sizes.append((sizes[-1] + 2 * padding - size) // stride + 1)
        if min(sizes) < 1:
            raise ValueError(
                f"images of {side} x {side} pixels are too small for {self}: sides would be {sizes}"
            )
        for number, source in enumerate(self.residuals):
            if source >= 0 and sizes[source + 1] != sizes[number + 1]:
                raise ValueError(
                    f"residuals[{number}] joins {sizes[source + 1]} x {sizes[source + 1]} pixels with "
                    f"{sizes[number + 1]} x {sizes[number + 1]}; take a layer after the same strides"
                )
        return sizes


class VariedCnn(nn.Module):
    """A network of a varied zoo as an ordinary module.

    Args:
        architecture: What it is.

    Example:
        >>> one = VariedArchitecture(
        ...     widths=(4,), kernel_sizes=(3,), strides=(1,), residuals=(-1,), activations=("relu",)
        ... )
        >>> VariedCnn(one)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(self, architecture: VariedArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        before = (architecture.in_channels, *architecture.widths)
        options = zip(
            before,
            architecture.widths,
            architecture.kernel_sizes,
            architecture.strides,
            architecture.paddings,
            strict=False,
        )
        self.layers = nn.ModuleList(nn.Conv2d(*each) for each in options)
        self.fc = nn.Linear(architecture.widths[-1], architecture.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (B, classes) of images of shape (B, channels, H, W)."""
        outputs: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            value = layer(images if number == 0 else outputs[-1])
            source = self.architecture.residuals[number]
            if source >= 0:
                value = _added(value, outputs[source])
            outputs.append(_FUNCTIONS[self.architecture.activations[number]](value))
        return self.fc(outputs[-1].mean((2, 3)))


def _added(value: Tensor, residual: Tensor) -> Tensor:
    """The sum in the channels that both have."""
    shared = min(value.shape[1], residual.shape[1])
    if shared == value.shape[1]:
        return value + residual[:, :shared]
    return torch.cat([value[:, :shared] + residual, value[:, shared:]], 1)
