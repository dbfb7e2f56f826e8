"""What turns weight features into one vector a network: functionals and baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.functionals import InvariantConfig, InvariantFunctional, NeuronMessages, NeuronMessagesConfig
from nfn_opt.layers import SpectrumFeatures, StatisticsFeatures
from nfn_opt.layers.checks import check_input
from nfn_opt.predictors.config import PredictorConfig
from nfn_opt.weight_space import WeightSpace

__all__ = [
    "FixedReader",
    "FlatReader",
    "FunctionalReader",
    "PooledReader",
    "ProbeReader",
    "make_reader",
]

Evaluate = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""Outputs (B, P, outputs) of B networks for P inputs, from weights, inputs and the numbers given beside (B, I)."""


def _linear(n_in: int, n_out: int, generator: torch.Generator | None) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Standardize(nn.Module):
    """Subtract a mean from every number of a vector, and divide by a standard deviation, as fitted.

    Args:
        features: Length of the vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Take mean and deviation from vectors of shape (N, features); what never varies keeps its size."""
        self.mean.copy_(vectors.mean(0))
        std = vectors.std(0, correction=0)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (B, features) to the same shape."""
        return (vectors - self.mean) / self.std


class PooledReader(nn.Module):
    """Invariant features of a network, standardised, and a linear map of them.

    Means over neurons differ little from network to network: next to what all networks have in common, what makes them
    different is small, and an MLP behind it learns slowly. So the pooled features are standardised once, as they are
    before the training.

    Args:
        linear: The linear map, of as many inputs as there are features.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.standardize = Standardize(linear.in_features)
        self.linear = linear

    def pooled(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """The invariant features, shape (B, number of features)."""
        raise NotImplementedError

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """Map ``{name: (B, *axes, 1)}`` of ``space`` to (B, out_features)."""
        return self.linear(self.standardize(self.pooled(features, space)))


class FixedReader(PooledReader):
    """Invariant features that nothing is learned in: the statistics of every tensor, or its singular values.

    Args:
        features: What maps weight features to them.
        out_features: Length of the vector that comes out.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        features: StatisticsFeatures | SpectrumFeatures,
        out_features: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(_linear(features.out_features(1), out_features, generator))
        self.features = features

    def pooled(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """The features, shape (B, features); ``space`` is not used."""
        return self.features(features)


class MessageReader(PooledReader):
    """Messages between neurons, and of every layer mean and standard deviation of their features over its neurons.

    Args:
        space: The weight space.
        config: Sizes of the messages.
        out_features: Length of the vector that comes out.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        space: WeightSpace,
        config: NeuronMessagesConfig,
        out_features: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        messages = NeuronMessages(space, config, generator=generator)
        pooled = 2 * config.channels * len(messages.layers)
        super().__init__(_linear(pooled, out_features, generator))
        self.messages = messages

    def pooled(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """The pooled features, shape (B, 2 * channels * layers); ``space`` is not used."""
        neurons = self.messages(features).values()
        means = [value.mean(1) for value in neurons]
        spreads = [value.var(1, correction=0).add(1e-6).sqrt() for value in neurons]
        return torch.cat([*means, *spreads], 1)


class FunctionalReader(PooledReader):
    """The equivariant layers and the pooling of an invariant functional.

    Args:
        space: The weight space.
        config: The functional; its head is not used but for the length of the vector.
        generator: Source of the initial weights.
    """

    def __init__(
        self, space: WeightSpace, config: InvariantConfig, *, generator: torch.Generator | None = None
    ) -> None:
        functional = InvariantFunctional(space, config, generator=generator)
        first = functional.head[0]
        assert isinstance(first, nn.Linear)
        super().__init__(first)
        self._shared = config.sharing == "by_relation"
        self.layers = functional.layers

    def pooled(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """What the pooling gives, shape (B, pooled features)."""
        return self.layers(features, space if self._shared else None)


class FlatReader(nn.Module):
    """A linear map of all weights in a row: the first layer of an MLP, which knows no symmetry.

    Args:
        space: The weight space.
        out_features: Length of the vector that comes out.
        generator: Source of the initial weights.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 3), "b": torch.zeros(2)})
        >>> FlatReader(space, 5)({"w": torch.zeros(4, 2, 3, 1), "b": torch.zeros(4, 2, 1)}).shape
        torch.Size([4, 5])
    """

    def __init__(
        self, space: WeightSpace, out_features: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.space = space
        self.linear = _linear(space.numel, out_features, generator)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, 1)}`` to (B, out_features)."""
        check_input(self.space, features, 1)
        return self.linear(torch.cat([features[name].flatten(1) for name in self.space.names], dim=1))


class ProbeReader(nn.Module):
    """What networks answer at learned inputs, and a linear map of it.

    Args:
        evaluate: Runs the networks.
        probes: The first inputs, shape (P, *input shape); they are trained.
        answers: How many numbers a network answers for one input.
        out_features: Length of the vector that comes out.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        probes: Tensor,
        answers: int,
        out_features: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._evaluate = evaluate
        self.probes = nn.Parameter(probes)
        self.linear = _linear(len(probes) * answers, out_features, generator)

    def forward(self, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Map weights ``{name: (B, *shape)}`` and the numbers beside them (B, I) to (B, out_features)."""
        # Answers may be of any size; their logarithm is about as large as 1.
        return self.linear(torch.asinh(self._evaluate(params, self.probes, inputs)).flatten(1))


def make_reader(
    space: WeightSpace, config: PredictorConfig, generator: torch.Generator | None
) -> PooledReader | FlatReader:
    """What reads the weights of a kind of predictor."""
    if config.kind == "statnn":
        return FixedReader(StatisticsFeatures(space), config.embedding, generator=generator)
    if config.kind in ("mlp", "mlp-augmented"):
        return FlatReader(space, config.embedding, generator=generator)
    if config.kind == "messages":
        return MessageReader(space, config.messages, config.embedding, generator=generator)
    return FunctionalReader(space, config.body, generator=generator)


def evaluate_module(network: nn.Module) -> Evaluate:
    """Run many networks that are like a module, each on all inputs; the numbers beside the weights are not used."""

    def one(params: Mapping[str, Tensor], probes: Tensor) -> Any:
        return torch.func.functional_call(network, dict(params), (probes,))

    def evaluate(params: Mapping[str, Tensor], probes: Tensor, inputs: Tensor) -> Tensor:
        return torch.func.vmap(one, in_dims=(0, None))(dict(params), probes).flatten(2)

    return evaluate


def evaluate_small_cnn(stride: int, tanh: int | None) -> Evaluate:
    """Run many small CNNs at once, with the activation of each.

    Args:
        stride: Of their convolutions.
        tanh: Which of the numbers beside the weights is 1 for tanh and 0 for ReLU; None if all have ReLU.
    """

    def activate(hidden: Tensor, inputs: Tensor) -> Tensor:
        if tanh is None:
            return hidden.relu()
        is_tanh = inputs[:, tanh, None, None, None, None] > 0.5
        return torch.where(is_tanh, hidden.tanh(), hidden.relu())

    def evaluate(params: Mapping[str, Tensor], probes: Tensor, inputs: Tensor) -> Tensor:
        networks, count = len(params["fc.bias"]), len(probes)
        hidden = probes.expand(networks, *probes.shape)
        for number in range(len(params) // 2 - 1):
            weight, bias = params[f"layers.{number}.weight"], params[f"layers.{number}.bias"]
            # All networks in one grouped convolution: (P, networks * channels, height, width).
            joined = hidden.transpose(0, 1).flatten(1, 2)
            joined = F.conv2d(joined, weight.flatten(0, 1), bias.flatten(), stride, groups=networks)
            split = joined.unflatten(1, (networks, -1)).transpose(0, 1)
            hidden = activate(split, inputs)
        pooled = hidden.mean((3, 4))
        assert pooled.shape[:2] == (networks, count)
        return torch.baddbmm(params["fc.bias"].unsqueeze(1), pooled, params["fc.weight"].mT)

    return evaluate
