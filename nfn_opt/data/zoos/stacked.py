"""Many CNNs of one architecture, in step on the same images: outputs and gradients.

Images are channels last, ``(image, row, column, network, channel)``, so that a convolution of all networks is one
grouped convolution. All networks see the same images: the first layer is one matrix product of the images' windows,
gathered once, with the kernels of all networks side by side.

Pixels that no output depends on are not computed. With stride 2 and no padding they are many: of the 28 x 28 pixels of
an image, the Small CNN Zoo's networks see the first 23 x 23, and of the 13 x 13 and 6 x 6 pixels after the first two
layers 11 x 11 and 5 x 5 count.

Dropout has one rate and one draw of noise for all networks: the same units are dropped in all of them, so that what is
kept is worked out once. The factor ``1 / (1 - rate)`` is moved into the weights of the next layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.data.zoos.architecture import Activation, CnnArchitecture

__all__ = ["Layered", "StackedCnn", "pack", "unpack"]


class Layered(Protocol):
    """An architecture with the names of `SmallCnn`: ``layers.0``, ``layers.1`` and so on, and ``fc``."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each layer before ``fc``."""

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight and bias."""


def pack(params: Mapping[str, Tensor], architecture: Layered) -> Tensor:
    """Parameters of N networks as one matrix: layer after layer, for each output its weights and then its bias.

    Args:
        params: For each name of ``architecture.parameter_shapes`` a tensor of shape (N, *shape).
        architecture: What they are.

    Returns:
        Shape (N, P).
    """
    layers = [*(f"layers.{number}" for number in range(len(architecture.widths))), "fc"]
    blocks = [
        torch.cat([params[f"{name}.weight"].flatten(2), params[f"{name}.bias"].unsqueeze(2)], 2).flatten(1)
        for name in layers
    ]
    return torch.cat(blocks, 1)


def unpack(packed: Tensor, architecture: Layered) -> dict[str, Tensor]:
    """The inverse of `pack`.

    Example:
        >>> packed = torch.rand(3, 4970)
        >>> bool((pack(unpack(packed, CnnArchitecture()), CnnArchitecture()) == packed).all())
        True
    """
    params: dict[str, Tensor] = {}
    start = 0
    for name, shape in architecture.parameter_shapes.items():
        if name.endswith(".bias"):
            continue
        rows, columns = shape[0], torch.Size(shape[1:]).numel() + 1
        block = packed[:, start : start + rows * columns].unflatten(1, (rows, columns))
        params[name] = block[:, :, :-1].reshape(-1, *shape)
        params[f"{name.removesuffix('.weight')}.bias"] = block[:, :, -1].clone()
        start += rows * columns
    return params


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Images as the networks take them, with the noise of dropout.

    Attributes:
        windows: What the first layer's kernels see, and a last column of ones, shape (B * pixels, in * k * k + 1).
        size: B.
        dropout: Rate of dropout.
        kept: For each unit of a network, layer after layer, shape (B * units,); None without dropout. 0 where it is
            dropped, else 1 (tanh), or the largest value that ReLU may give, which no unit reaches.
    """

    windows: Tensor
    size: int
    dropout: float
    kept: Tensor | None


class StackedCnn:
    """Outputs and gradients of networks of one architecture, on the same images.

    Args:
        architecture: Of all networks.
        side: Height and width of the images.
        activation: Of all networks.
    """

    def __init__(self, architecture: CnnArchitecture, side: int, activation: Activation) -> None:
        self.architecture, self.activation = architecture, activation
        used = [architecture.sizes(side)[-1]]
        for _ in architecture.widths:
            used.insert(0, (used[0] - 1) * architecture.stride + architecture.kernel_size)
        self.used = used
        """Side of what counts of the input and of each layer's output."""
        self.units = [width * size**2 for width, size in zip(architecture.widths, used[1:], strict=True)]
        """Units after each convolution that count; each needs a number of noise for each image."""
        self._kept: dict[str, Tensor] = {}

    def batch(self, images: Tensor, dropout: float = 0.0, noise: Tensor | None = None) -> _Batch:
        """Prepare images.

        Args:
            images: Shape (B, channels, H, W).
            dropout: Rate of dropout, in [0, 1).
            noise: Uniform in [0, 1], shape (B * sum(units),); a unit is dropped where it is at most the rate. Not
                needed if that is 0.
        """
        size, kernel, stride = self.used[0], self.architecture.kernel_size, self.architecture.stride
        some = images[:, :, :size, :size].unfold(2, kernel, stride).unfold(3, kernel, stride)
        # (B, C, row, column, k, k) to (B, row, column, C, k, k)
        windows = some.permute(0, 2, 3, 1, 4, 5).reshape(len(images) * self.used[1] ** 2, -1)
        kept = None
        if noise is not None and dropout > 0:
            kept = torch.sub(noise, dropout)  # masked_fill_ and where take ten times as long
            if self.activation == "relu":
                kept.clamp_min_(0).mul_(torch.finfo(kept.dtype).max)
            else:
                kept.ceil_()
        windows = F.pad(windows, (0, 1), value=1.0)
        return _Batch(windows, len(images), dropout if kept is not None else 0.0, kept)

    def logits(self, packed: Tensor, batch: _Batch) -> Tensor:
        """Logits of N networks.

        Args:
            packed: Parameters, shape (N, P).
            batch: Images.

        Returns:
            Shape (N, B, classes).
        """
        weights = self._weights(packed, batch.dropout)
        return self._outputs(weights, self._hidden(weights, batch)[-1])

    def gradient(self, packed: Tensor, batch: _Batch, target: Tensor, out: Tensor) -> None:
        """Gradient of each network's mean cross-entropy.

        Args:
            packed: Parameters, shape (N, P).
            batch: Images.
            target: Classes, one-hot, shape (B, classes).
            out: Where to write it, shape (N, P).
        """
        count, last = len(packed), len(self.units)
        weights, results = self._weights(packed, batch.dropout), self._blocks(out)
        hidden = self._hidden(weights, batch)
        slope = F.softmax(self._outputs(weights, hidden[-1]), 2).sub_(target).div_(batch.size)
        pooled = self._pooled(hidden[-1], count)
        torch.bmm(slope.transpose(1, 2), pooled, out=results[last][:, :, :-1])
        torch.sum(slope, 1, out=results[last][:, :, -1])
        spread = torch.bmm(slope, weights[last][:, :, :-1]).div_(self.used[-1] ** 2)
        spread = spread.transpose(0, 1).flatten(1)[:, :, None, None].expand_as(hidden[-1])
        for number in reversed(range(last)):
            inner = self._through_activation(spread, hidden[number], self._kept_units(number, batch))
            if number == 0:
                by_kernel = torch.mm(batch.windows.t(), self._rows(inner))
                results[0].copy_(by_kernel.unflatten(1, (count, -1)).permute(1, 2, 0))
                break
            kernels = self._kernels(number, weights[number])
            spread, kernel_slopes, bias_slopes = torch.ops.aten.convolution_backward(
                inner,
                hidden[number - 1],
                kernels,
                [len(kernels)],
                [self.architecture.stride] * 2,
                [0, 0],
                [1, 1],
                False,
                [0, 0],
                count,
                [True, True, True],
            )
            results[number][:, :, :-1].copy_(kernel_slopes.reshape(count, kernels.shape[0] // count, -1))
            results[number][:, :, -1].copy_(bias_slopes.view(count, -1))
        if batch.dropout:
            for result in results[1:]:
                result[:, :, :-1].div_(1 - batch.dropout)

    def _hidden(self, weights: list[Tensor], batch: _Batch) -> list[Tensor]:
        """What comes after each convolution, activation and dropout, each of shape (B, N * C, H, W), channels last.

        The first lies in memory that the next call uses again.
        """
        count = len(weights[0])
        hidden: list[Tensor] = []
        for number, size in enumerate(self.used[1:]):
            if number == 0:
                kernels = weights[0].reshape(-1, batch.windows.shape[1]).t()
                rows = self._buffer("first", (len(batch.windows), kernels.shape[1]), kernels)
                torch.mm(batch.windows, kernels, out=rows)
                value = rows.view(batch.size, size, size, -1).permute(0, 3, 1, 2)
            else:
                kernels, bias = self._kernels(number, weights[number]), weights[number][:, :, -1].flatten()
                value = F.conv2d(hidden[-1], kernels, bias, self.architecture.stride, groups=count)
                value = value.contiguous(memory_format=torch.channels_last)
            self._activate(value, self._kept_units(number, batch))
            hidden.append(value)
        return hidden

    def _outputs(self, weights: list[Tensor], hidden: Tensor) -> Tensor:
        head = weights[-1]
        pooled = self._pooled(hidden, len(head))
        return torch.baddbmm(head[:, None, :, -1], pooled, head[:, :, :-1].transpose(1, 2))

    def _pooled(self, hidden: Tensor, count: int) -> Tensor:
        """Mean over the pixels, shape (N, B, C)."""
        return hidden.mean((2, 3)).unflatten(1, (count, -1)).transpose(0, 1)

    def _blocks(self, packed: Tensor) -> list[Tensor]:
        """The matrix of each layer, shape (N, out, in + 1), as views."""
        blocks, start = [], 0
        for name, shape in self.architecture.parameter_shapes.items():
            if name.endswith("weight"):
                height, width = shape[0], torch.Size(shape[1:]).numel() + 1
                blocks.append(packed[:, start : start + height * width].unflatten(1, (height, width)))
                start += height * width
        return blocks

    def _weights(self, packed: Tensor, dropout: float) -> list[Tensor]:
        """The matrix of each layer, with the factor of the dropout before it."""
        blocks = self._blocks(packed)
        if not dropout:
            return blocks
        scaled = [block.clone() for block in blocks[1:]]
        for block in scaled:
            block[:, :, :-1].div_(1 - dropout)
        return [blocks[0], *scaled]

    def _kernels(self, number: int, block: Tensor) -> Tensor:
        """Kernels of all networks one after the other, shape (N * out, in, k, k)."""
        kernel = self.architecture.kernel_size
        kernels = block[:, :, :-1].reshape(-1, self.architecture.widths[number - 1], kernel, kernel)
        return kernels.contiguous(memory_format=torch.channels_last)

    def _rows(self, value: Tensor) -> Tensor:
        """Shape (B * H * W, N * C), as a view of channels-last values."""
        return value.permute(0, 2, 3, 1).flatten(0, 2)

    def _kept_units(self, number: int, batch: _Batch) -> Tensor | None:
        """What dropout keeps of a layer, shape (B * H * W, 1, C), as `_Batch.kept`."""
        if batch.kept is None:
            return None
        start = sum(self.units[:number]) * batch.size
        kept = batch.kept[start : start + self.units[number] * batch.size]
        return kept.view(-1, 1, self.architecture.widths[number])

    def _activate(self, value: Tensor, kept: Tensor | None) -> None:
        """Activation and dropout, in place."""
        if kept is None:
            value.relu_() if self.activation == "relu" else value.tanh_()
            return
        rows = self._rows(value)
        units = rows.view(len(rows), -1, kept.shape[2])
        if self.activation == "relu":
            torch.clamp(units, kept.new_zeros(()), kept, out=units)
        else:
            units.tanh_().mul_(kept)

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory that is used again in each step: the system gives large new blocks only page by page, slowly."""
        size = torch.Size(shape).numel()
        if name not in self._kept or self._kept[name].numel() < size or self._kept[name].dtype != like.dtype:
            self._kept[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._kept[name][:size].view(shape)

    def _through_activation(self, spread: Tensor, value: Tensor, kept: Tensor | None) -> Tensor:
        """Slope before the activation, from that after dropout, in whose place it comes."""
        slope = spread.contiguous(memory_format=torch.channels_last)
        if self.activation == "relu":  # what was dropped is zero like what was negative
            torch.ops.aten.threshold_backward.grad_input(slope, value, 0, grad_input=slope)
            return slope
        torch.ops.aten.tanh_backward.grad_input(slope, value, grad_input=slope)
        if kept is not None:
            rows = self._rows(slope)
            rows.view(len(rows), -1, kept.shape[2]).mul_(kept)
        return slope
