"""Many MLPs of one architecture, in step on the same images: outputs and gradients.

The counterpart of `nfn_opt.data.zoos.stacked.StackedCnn`, with the same methods and the same packed parameters.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.data.tickets.architecture import MlpArchitecture

__all__ = ["StackedMlp"]


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Flattened images, shape (B, inputs)."""

    images: Tensor

    @property
    def size(self) -> int:
        """B."""
        return len(self.images)


class StackedMlp:
    """Outputs and gradients of networks of one architecture, on the same images.

    Args:
        architecture: Of all networks.

    Example:
        >>> architecture = MlpArchitecture(side=4, widths=(3,))
        >>> mlp = StackedMlp(architecture)
        >>> mlp.logits(torch.zeros(2, architecture.parameters), mlp.batch(torch.zeros(5, 1, 4, 4))).shape
        torch.Size([2, 5, 10])
    """

    def __init__(self, architecture: MlpArchitecture) -> None:
        self.architecture = architecture

    def batch(self, images: Tensor) -> _Batch:
        """Prepare images, shape (B, channels, side, side)."""
        return _Batch(images.flatten(1))

    def logits(self, packed: Tensor, batch: _Batch) -> Tensor:
        """Logits of N networks with packed parameters of shape (N, P): shape (N, B, classes)."""
        return self._forward(self._blocks(packed), batch)[-1]

    def gradient(self, packed: Tensor, batch: _Batch, target: Tensor, out: Tensor) -> None:
        """Gradient of each network's mean cross-entropy.

        Args:
            packed: Parameters, shape (N, P).
            batch: Images.
            target: Classes, one-hot, shape (B, classes).
            out: Where to write it, shape (N, P).
        """
        blocks, results = self._blocks(packed), self._blocks(out)
        values = self._forward(blocks, batch)
        slope = F.softmax(values[-1], 2).sub_(target).div_(batch.size)
        for number in reversed(range(len(blocks))):
            results[number][:, :, :-1].copy_(torch.bmm(slope.mT, values[number]))
            torch.sum(slope, 1, out=results[number][:, :, -1])
            if number:
                slope = torch.bmm(slope, blocks[number][:, :, :-1])
                torch.ops.aten.threshold_backward.grad_input(slope, values[number], 0, grad_input=slope)

    def _forward(self, blocks: list[Tensor], batch: _Batch) -> list[Tensor]:
        """The images, what comes after each hidden layer, and the logits, each of shape (N, B, width)."""
        values = [batch.images.expand(len(blocks[0]), -1, -1)]
        for number, block in enumerate(blocks):
            value = torch.baddbmm(block[:, None, :, -1], values[-1], block[:, :, :-1].mT)
            values.append(value.relu_() if number < len(blocks) - 1 else value)
        return values

    def _blocks(self, packed: Tensor) -> list[Tensor]:
        """The matrix of each layer, shape (N, out, in + 1), as views."""
        blocks, start = [], 0
        for name, shape in self.architecture.parameter_shapes.items():
            if name.endswith("weight"):
                height, width = shape[0], shape[1] + 1
                blocks.append(packed[:, start : start + height * width].unflatten(1, (height, width)))
                start += height * width
        return blocks
