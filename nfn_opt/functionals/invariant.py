"""Invariant functionals: weight features in, one vector a network out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nfn_opt.functionals.body import BodyConfig, body, check_at_least, check_space
from nfn_opt.functionals.head import check_dropout, mlp
from nfn_opt.layers import AttentionPool, Chain, InvariantPool, SharedPool, StatisticsFeatures
from nfn_opt.layers.checks import check_input
from nfn_opt.weight_space import WeightSpace

PoolKind = Literal["mean", "sum", "max", "attention"]


@dataclass(frozen=True, kw_only=True)
class InvariantConfig(BodyConfig):
    """Shape of an :class:`InvariantFunctional`: the options of :class:`BodyConfig`, and these.

    Attributes:
        out_features: Length of the vector that comes out.
        pool: How every parameter is reduced over its neurons. ``"attention"`` has weights for each parameter, and so
            does not go with ``sharing="by_relation"``.
        pool_heads: Heads of the attention.
        head_width: Neurons of every hidden layer of the MLP behind the pooling.
        head_layers: Number of these.
        head_dropout: Probability that one of them is dropped in training.
    """

    hidden_channels: int = 16
    out_features: int = 1
    pool: PoolKind = "mean"
    pool_heads: int = 1
    head_width: int = 256
    head_layers: int = 2
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "out_features", "pool_heads", "head_width")
        check_at_least(self, 0, "head_layers")
        check_dropout("head_dropout", self.head_dropout)
        if self.pool not in get_args(PoolKind):
            raise ValueError(f"pool is {self.pool!r}, expected one of {', '.join(get_args(PoolKind))}")
        if self.pool == "attention" and self.sharing == "by_relation":
            raise ValueError(
                "pool is 'attention', which has weights for each parameter, expected 'mean', 'sum' or 'max' with "
                "sharing='by_relation'"
            )


class InvariantFunctional(nn.Module):
    """Encodings, hidden NF-Layers with ReLU, invariant pooling, an MLP: predicts a property of a network.

    The classifier and predictor networks of arXiv:2302.14040 (Sec. 4.1, 4.2) for any weight space. With
    ``sharing="by_relation"`` it has no weights of a particular space, and runs on all of them.

    Args:
        space: The weight space; the one that is meant when ``forward`` is not given another.
        config: Sizes and options.
        generator: Source of the initial weights.

    Shapes:
        in: ``{name: (B, *axes, in_channels)}``; out: ``(B, out_features)``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> predictor = InvariantFunctional(space, InvariantConfig(out_features=3))
        >>> predictor(space.features([model, model])).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        space: WeightSpace,
        config: InvariantConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = config or InvariantConfig()
        self.space, self.config = space, config
        layers, channels = body(space, config, generator)
        pool = _pool(space, config, channels, generator)
        sizes = [pool.out_features(channels), *config.head_layers * [config.head_width], config.out_features]
        self.layers = Chain(*layers, pool)
        self.head = mlp(sizes, config.head_dropout, generator)

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """Map ``{name: (B, *axes, in_channels)}`` to ``(B, out_features)``.

        Args:
            features: Weight features of ``space``.
            space: Their weight space, by default the functional's own.

        Raises:
            ValueError: If the features do not fit, or the functional cannot run on that space.
        """
        if space is not None:
            check_space(self.space, space, self.config.sharing)
        shared = self.config.sharing == "by_relation"
        return self.head(self.layers(features, space if shared else None))


def _pool(
    space: WeightSpace, config: InvariantConfig, channels: int, generator: torch.Generator | None
) -> InvariantPool | AttentionPool | SharedPool:
    if config.pool == "attention":
        return AttentionPool(space, channels, config.pool_heads, generator=generator)
    if config.sharing == "by_relation":
        return SharedPool(space, config.pool)
    return InvariantPool(space, config.pool)


@dataclass(frozen=True, kw_only=True)
class StatNNConfig:
    """Shape of a :class:`StatNN`.

    Attributes:
        in_channels: Channels that come in.
        out_features: Length of the vector that comes out.
        keep_fixed: Whether each input, output and kernel position has statistics of its own.
        width: Neurons of every hidden layer.
        hidden_layers: Number of hidden layers.
        dropout: Probability that a hidden neuron is dropped in training.
    """

    in_channels: int = 1
    out_features: int = 1
    keep_fixed: bool = False
    width: int = 600
    hidden_layers: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "in_channels", "out_features", "width")
        check_at_least(self, 0, "hidden_layers")
        check_dropout("dropout", self.dropout)


class StatNN(nn.Module):
    """Statistics of every parameter, then an MLP: the baseline of arXiv:2002.11448 for predicting properties.

    Args:
        space: The weight space.
        config: Sizes and options.
        generator: Source of the initial weights.

    Shapes:
        in: ``{name: (B, *axes, in_channels)}``; out: ``(B, out_features)``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> StatNN(space, StatNNConfig(out_features=3))(space.features([model, model])).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        space: WeightSpace,
        config: StatNNConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space, self.config = space, config or StatNNConfig()
        config = self.config
        self.statistics = StatisticsFeatures(space, keep_fixed=config.keep_fixed)
        inputs = self.statistics.out_features(config.in_channels)
        sizes = [inputs, *config.hidden_layers * [config.width], config.out_features]
        self.head = mlp(sizes, config.dropout, generator)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map ``{name: (B, *axes, in_channels)}`` to ``(B, out_features)``."""
        check_input(self.space, features, self.config.in_channels)
        return self.head(self.statistics(features))
