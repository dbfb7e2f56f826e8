"""Features of neurons from messages along the weights: a cheap body for chains of dense and convolutional layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from nfn_opt.functionals.body import check_at_least
from nfn_opt.functionals.head import linear
from nfn_opt.layers.checks import check_input
from nfn_opt.weight_space import Features, TensorSpec, WeightSpace

BIAS_FREQUENCY = 0.25
"""Size of the frequencies of a bias beside those of the weights that come in with it."""


@dataclass(frozen=True, kw_only=True)
class NeuronMessagesConfig:
    """Shape of :class:`NeuronMessages`.

    Attributes:
        channels: Channels of every neuron.
        fourier_frequencies: Random Fourier frequencies of what comes into a neuron of the first layer.
        fourier_scale: Standard deviation of these, in cycles per unit.
        expansion: Hidden channels of every MLP for each channel.
    """

    channels: int = 128
    fourier_frequencies: int = 64
    fourier_scale: float = 0.8
    expansion: int = 2

    def __post_init__(self) -> None:
        check_at_least(self, 1, "channels", "fourier_frequencies", "expansion")
        if not 0 < self.fourier_scale < math.inf:
            raise ValueError(f"fourier_scale is {self.fourier_scale}, expected a positive number")


class NeuronMessages(nn.Module):
    r"""Messages from layer to layer and back, multiplied with the weights that they pass.

    A graph network on the neurons (after arXiv:2312.04501 and arXiv:2403.12143). With the weights :math:`W_l, b_l`
    of layer :math:`l`, a network's neurons are read from the inputs to the outputs and back,

    .. math::
        h_1 &= f_1(\text{Fourier}(W_1, b_1)), \qquad
        h_l = f_l\bigl(A_l \tfrac{1}{\sqrt{n}} W_l h_{l-1} + b_l a_l\bigr), \\
        r_L &= h_L + e_L, \qquad
        r_l = h_l + g_l\bigl(h_l \odot B_l \tfrac{1}{\sqrt{n}} W_{l+1}^\top r_{l+1}\bigr)

    where :math:`f_l, g_l` are small MLPs applied to every neuron. In a convolution the neurons are channels, each
    entry of the kernel has maps :math:`A_l, B_l` of its own, and messages are summed over the entries. There is one
    feature for a neuron, not for a weight, which makes it far cheaper than NF-Layers of as many channels. It does not
    evaluate the network at any input: inputs and outputs are told apart by weights of their own.

    Args:
        space: The weight space: pairs of a weight and a bias, one dense or convolutional layer after the other,
            ``symmetry="hidden"``.
        config: Sizes.
        generator: Source of the initial weights.

    Shapes:
        in: ``{name: (B, *axes, 1)}``; out: for every bias ``{name: (B, n, channels)}``, that is features of
        ``neurons``.

    Raises:
        ValueError: If the space is of another kind.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> messages = NeuronMessages(space, NeuronMessagesConfig(channels=8))
        >>> {name: tuple(tensor.shape) for name, tensor in messages(space.features([model])).items()}
        {'0.bias': (1, 4, 8), '2.bias': (1, 1, 8)}
    """

    frequencies: Tensor

    def __init__(
        self,
        space: WeightSpace,
        config: NeuronMessagesConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space, self.config = space, config or NeuronMessagesConfig()
        self.layers = _layers_in_a_row(space)
        self.neurons = WeightSpace(tuple(bias for _, bias in self.layers))
        channels, sizes = self.config.channels, [bias.numel for _, bias in self.layers]
        kernels = [math.prod(weight.view_shape[2:]) for weight, _ in self.layers]
        inputs = self.layers[0][0].view_shape[1] * kernels[0]
        drawn = torch.randn(inputs + 1, self.config.fourier_frequencies, generator=generator)
        drawn[-1] *= BIAS_FREQUENCY
        self.register_buffer("frequencies", 2 * math.pi * self.config.fourier_scale * drawn)

        def mlp(width: int) -> nn.Sequential:
            hidden = self.config.expansion * channels
            return nn.Sequential(
                linear(width, hidden, "relu", generator),
                nn.GELU(),
                linear(hidden, channels, "linear", generator),
                nn.LayerNorm(channels),
            )

        later = range(len(sizes) - 1)
        self.updates = nn.ModuleList(
            [mlp(2 * self.config.fourier_frequencies), *(mlp(channels) for _ in later)]
        )
        self.forth = nn.ModuleList(linear(channels, k * channels, "linear", generator) for k in kernels[1:])
        self.back = nn.ModuleList(linear(channels, k * channels, "linear", generator) for k in kernels[1:])
        self.returns = nn.ModuleList(mlp(channels) for _ in later)
        self.bias_channels = nn.ParameterList(torch.randn(channels, generator=generator) for _ in later)
        self.outputs = nn.Parameter(torch.randn(sizes[-1], channels, generator=generator))

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map weight features of one channel to features of neurons."""
        check_input(self.space, features, 1, self.outputs)
        weights = [features[weight.name].flatten(3) for weight, _ in self.layers]  # (B, out, in, kernel)
        biases = [features[bias.name] for _, bias in self.layers]
        phase = torch.cat([weights[0].flatten(2), biases[0]], -1) @ self.frequencies
        neurons = [self.updates[0](torch.cat([phase.sin(), phase.cos()], -1))]
        for weight, bias, send, update, direction in zip(
            weights[1:], biases[1:], self.forth, self.updates[1:], self.bias_channels, strict=True
        ):
            heard = _heard(weight, send(neurons[-1]))
            neurons.append(update(heard + bias * direction))
        told = [neurons[-1] + self.outputs]
        for weight, own, send, update in zip(
            reversed(weights[1:]),
            reversed(neurons[:-1]),
            reversed(self.back),
            reversed(self.returns),
            strict=True,
        ):
            heard = _heard(weight.transpose(1, 2), send(told[-1]))
            told.append(own + update(own * heard))
        return dict(zip(self.neurons.names, reversed(told), strict=True))


def _heard(weight: Tensor, sent: Tensor) -> Tensor:
    """Sums of what is sent, times the weights that it passes.

    Args:
        weight: Shape (B, to, from, K).
        sent: Shape (B, from, K * channels).

    Returns:
        Shape (B, to, channels), divided by the square root of the number of summands.
    """
    kernel = weight.shape[3]
    flat = weight.flatten(2)
    return torch.bmm(flat, sent.unflatten(2, (kernel, -1)).flatten(1, 2)) / math.sqrt(flat.shape[2])


def _layers_in_a_row(space: WeightSpace) -> list[tuple[TensorSpec, TensorSpec]]:
    """(weight, bias) of each layer, checked to follow one another."""
    specs = space.parameters
    layers = list(zip(specs[::2], specs[1::2], strict=False))
    pairs = all(len(weight.axes) >= 2 and len(bias.axes) == 1 for weight, bias in layers)
    if not layers or len(specs) % 2 or not pairs or not _follow(layers):
        raise ValueError(
            "the weight space is not that of dense or convolutional layers one after the other, each a weight and a "
            f"bias, with symmetry='hidden', which NeuronMessages needs: it has {', '.join(map(str, specs))}; take a "
            "body of NF-Layers (BodyConfig) for it"
        )
    return layers


def _follow(layers: list[tuple[TensorSpec, TensorSpec]]) -> bool:
    """Whether all neurons of a layer, and no inputs or outputs, are permuted with the columns of the next."""
    hidden = [
        (weight.axes[0], bias.axes[0], after.axes[1]) for (weight, bias), (after, _) in pairwise(layers)
    ]
    ends = (layers[0][0].axes[1], layers[-1][0].axes[0], layers[-1][1].axes[0])
    kernels = [axis for weight, _ in layers for axis in weight.axes[2:]]
    return (
        all(axis.permutable and axis.name == axes[0].name for axes in hidden for axis in axes)
        and not any(axis.permutable for axis in (*ends, *kernels))
        and ends[1].size == ends[2].size
    )
