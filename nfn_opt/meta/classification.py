"""Classifying images with small networks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.data.images import ImageData
from nfn_opt.meta.initialization import default_init
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.weight_space import WeightSpace

Activation = Literal["relu", "tanh", "gelu", "silu", "sigmoid"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}

_CHUNK = 1024
"""Images of the full training loss that are computed at once."""


class ClassificationTask(Task):
    """Classifying given images with any network, by mean cross-entropy.

    Images and labels are moved to ``device`` once. Minibatches are drawn with replacement.

    Args:
        network: The architecture, from a batch of inputs to logits ``(B, classes)``; without buffers that
            training changes. Its parameters are not read.
        inputs: All training inputs in the form that the network takes, ``(N, ...)``.
        labels: Class of each, integers from 0, shape (N,).
        batch_size: Size of a minibatch.
        device: Where to compute.
        dtype: Floating-point type of parameters and inputs.

    Raises:
        ValueError: If inputs and labels do not match, or the batch size is not positive.

    Example:
        >>> network = nn.Linear(4, 3)
        >>> task = ClassificationTask(network, torch.rand(20, 4), torch.arange(20) % 3, batch_size=5)
        >>> generator = torch.Generator().manual_seed(0)
        >>> params = task.init(generator, 7)
        >>> task.losses(params, task.batch(generator, 7)).shape
        torch.Size([7])
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        *,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise ValueError(
                f"got {len(inputs)} inputs and {len(labels)} labels, expected equally many, at least one"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.network = network
        self.inputs = inputs.to(device, dtype).contiguous()
        self.labels = labels.to(device, torch.int64)
        self.batch_size = batch_size
        where = next(iter(network.parameters())).device
        self._space = WeightSpace.from_module(network, self.inputs[:1].to(where, torch.get_default_dtype()))

    @property
    def space(self) -> WeightSpace:
        """See :class:`Task`."""
        return self._space

    def init(self, generator: torch.Generator, n: int) -> Params:
        """PyTorch's default initial parameters, see :func:`default_init`."""
        return default_init(self.network, generator, n, dtype=self.inputs.dtype, device=self.inputs.device)

    def batch(self, generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        """Inputs ``(n, batch_size, ...)`` and labels ``(n, batch_size)``."""
        shape = (n, self.batch_size)
        chosen = torch.randint(len(self.labels), shape, generator=generator, device=generator.device)
        chosen = chosen.to(self.labels.device)
        return self.inputs[chosen], self.labels[chosen]

    def loss(self, params: Mapping[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy, in nats."""
        inputs, labels = batch
        return F.cross_entropy(torch.func.functional_call(self.network, dict(params), (inputs,)), labels)

    @torch.no_grad()
    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over all training images, in nats."""
        n = len(next(iter(params.values())))
        total = torch.zeros(n, dtype=self.inputs.dtype, device=self.inputs.device)
        for start in range(0, len(self.labels), _CHUNK):
            inputs, labels = self.inputs[start : start + _CHUNK], self.labels[start : start + _CHUNK]
            batch = (inputs.expand(n, *inputs.shape), labels.expand(n, -1))
            total += len(labels) * self.losses(params, batch)
        return total / len(self.labels)


class MLPClassification(ClassificationTask):
    """Classifying images with a fully connected network, in batched matrix products over all networks.

    Args:
        data: Images of one size, with labels.
        hidden: Widths of the hidden layers.
        activation: Activation of the hidden layers.
        batch_size: Size of a minibatch.
        device: Where to compute.
        dtype: Floating-point type.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        hidden: Sequence[int] = (32,),
        activation: Activation = "relu",
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        inputs = data.images.flatten(1)
        network = mlp(inputs.shape[1], hidden, len(data.class_names), activation)
        super().__init__(network, inputs, data.labels, batch_size=batch_size, device=device, dtype=dtype)
        self._activation = _activation(activation)
        names = list(parameter_names(network))
        self._layers = list(zip(names[::2], names[1::2], strict=True))

    def losses(self, params: Mapping[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        """See :class:`Task`."""
        x, labels = batch
        for depth, (weight, bias) in enumerate(self._layers):
            if depth > 0:
                x = self._activation(x)
            x = torch.baddbmm(params[bias].unsqueeze(1), x, params[weight].transpose(1, 2))
        each = F.cross_entropy(x.flatten(0, 1), labels.flatten(), reduction="none")
        return each.view(labels.shape).mean(1)


class CNNClassification(ClassificationTask):
    """Classifying images with 3x3 convolutions of stride 2, a global mean over positions and a linear layer.

    Args:
        data: Images of one size, with labels.
        channels: Channels of the convolutions.
        activation: Activation after each convolution.
        batch_size: Size of a minibatch.
        device: Where to compute.
        dtype: Floating-point type.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        channels: Sequence[int] = (8, 16),
        activation: Activation = "relu",
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        inputs = data.images.movedim(-1, 1)
        network = cnn(inputs.shape[1], channels, len(data.class_names), activation)
        super().__init__(network, inputs, data.labels, batch_size=batch_size, device=device, dtype=dtype)


def mlp(inputs: int, hidden: Sequence[int], classes: int, activation: Activation = "relu") -> nn.Sequential:
    """A fully connected classifier on the meta device: shapes without memory or random numbers.

    Example:
        >>> [tuple(p.shape) for p in mlp(64, (32,), 10).parameters()]
        [(32, 64), (32,), (10, 32), (10,)]
    """
    widths = (inputs, *_positive("hidden", hidden), classes)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out, device="meta"), _activation(activation)]
    return nn.Sequential(*layers[:-1])


def cnn(inputs: int, channels: Sequence[int], classes: int, activation: Activation = "relu") -> nn.Sequential:
    """A convolutional classifier on the meta device: shapes without memory or random numbers.

    Example:
        >>> [tuple(p.shape) for p in cnn(1, (8,), 10).parameters()]
        [(8, 1, 3, 3), (8,), (10, 8), (10,)]
    """
    widths = (inputs, *_positive("channels", channels))
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, device="meta"), _activation(activation)]
    head = nn.Linear(widths[-1], classes, device="meta")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def parameter_names(network: nn.Module) -> tuple[str, ...]:
    """The names of a network's parameters in order."""
    return tuple(name for name, _ in network.named_parameters())


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation is {name!r}, expected one of {', '.join(get_args(Activation))}")
    return _ACTIVATIONS[name]()


def _positive(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    if any(width < 1 for width in widths):
        raise ValueError(f"{name} must be widths of at least 1, got {tuple(widths)}")
    return tuple(widths)
