"""Equivariant functionals: weight features in, weight features out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfn_opt.functionals.body import BodyConfig, body, check_at_least, check_space, scaled_linear
from nfn_opt.layers import Chain, LearnedScale, SharedScale
from nfn_opt.weight_space import Features, WeightSpace


@dataclass(frozen=True, kw_only=True)
class EquivariantConfig(BodyConfig):
    """Shape of an :class:`EquivariantFunctional`: the options of :class:`BodyConfig`, and these.

    Attributes:
        out_channels: Channels that go out.
        out_scale: Initial size of the learned scale of each parameter's output.
    """

    out_channels: int = 1
    out_scale: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "out_channels")


class EquivariantFunctional(nn.Module):
    """Encodings, hidden NF-Layers with ReLU, an NF-Layer to the output channels, a learned scale.

    The editor network of arXiv:2302.14040 (App. C.2) for any weight space. With ``sharing="per_parameter"`` its
    weights, and the scale of each parameter, belong to one space. With ``sharing="by_relation"`` it has no weights of
    a particular space, and one scale for vectors and one for matrices: what was trained on some architectures runs
    on all others, by ``forward(features, space=other)``.

    Args:
        space: The weight space; the one that is meant when ``forward`` is not given another.
        config: Sizes and options.
        generator: Source of the initial weights.

    Shapes:
        in: ``{name: (B, *axes, in_channels)}``; out: ``{name: (B, *axes, out_channels)}``.

    Example:
        >>> small, large = (
        ...     WeightSpace.from_module(nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 1)), torch.zeros(1, 2))
        ...     for n in (4, 9)
        ... )
        >>> network = EquivariantFunctional(small, EquivariantConfig(hidden_channels=8, sharing="by_relation"))
        >>> features = {spec.name: torch.zeros(1, *spec.view_shape, 1) for spec in large.parameters}
        >>> network(features, space=large)["0.weight"].shape
        torch.Size([1, 9, 2, 1])
    """

    def __init__(
        self,
        space: WeightSpace,
        config: EquivariantConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = config or EquivariantConfig()
        self.space, self.config = space, config
        layers, channels = body(space, config, generator)
        last = scaled_linear(space, channels, config.out_channels, config, generator)
        scale = SharedScale if config.sharing == "by_relation" else LearnedScale
        self.layers = Chain(*layers, last, scale(space, config.out_scale))

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map ``{name: (B, *axes, in_channels)}`` to ``{name: (B, *axes, out_channels)}``.

        Args:
            features: Weight features of ``space``.
            space: Their weight space, by default the functional's own.

        Raises:
            ValueError: If the features do not fit, or the functional cannot run on that space.
        """
        if space is not None:
            check_space(self.space, space, self.config.sharing)
        shared = self.config.sharing == "by_relation"
        return self.layers(features, space if shared else None)
