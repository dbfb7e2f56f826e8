"""The per-parameter rule of Metz et al., whose network gives a direction and a magnitude."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from nfn_opt.optim.accumulators import Accumulated
from nfn_opt.optim.feature_rule import FeatureRule, Reading, check_features_and_factors
from nfn_opt.optim.features import FEATURES
from nfn_opt.optim.first_layer import Preactivation
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import register_rule
from nfn_opt.weight_space import WeightSpace

_DECAYS = (0.9, 0.99, 0.999)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallFCConfig:
    """Options of :class:`SmallFCRule`.

    Attributes:
        lr: Factor of the step; not learned.
        magnitude: Factor of the exponent.
        hidden: Widths of the hidden layers.
        features: Names of the features, see :mod:`nfn_opt.optim.features`.
        use_time: Whether the network also sees the time features.
        momentum_decays: Decays of the momenta.
        second_moment_decay: Decay of the second moment.
        factor_decays: Decays of the factored second moments.
        learn_decays: Whether the decays are outer parameters, too.
        gradient_clip: Entries of the gradient are first cut to this absolute value.
    """

    lr: float = 1e-3
    magnitude: float = 1e-3
    hidden: tuple[int, ...] = (4, 4)
    features: tuple[str, ...] = tuple(f for f in FEATURES if f not in ("clipped_gradient", "scaled_gradient"))
    use_time: bool = True
    momentum_decays: tuple[float, ...] = _DECAYS
    second_moment_decay: float = 0.999
    factor_decays: tuple[float, ...] = _DECAYS
    learn_decays: bool = True
    gradient_clip: float = 1000.0

    def __post_init__(self) -> None:
        check_features_and_factors(
            self,
            lr=self.lr,
            magnitude=self.magnitude,
            gradient_clip=self.gradient_clip,
        )

    def reading(self) -> Reading:
        """What the rule reads; its constants are those of the published code."""
        return Reading(
            features=self.features,
            use_time=self.use_time,
            momentum_decays=self.momentum_decays,
            second_moment_decay=self.second_moment_decay,
            factor_decays=self.factor_decays,
            gradient_clip=self.gradient_clip,
            eps=1e-5,
            root_eps=1e-6,
            repeat=True,
            learn_decays=self.learn_decays,
        )


@register_rule
class SmallFCRule(FeatureRule):
    r"""A small MLP for every weight, with two outputs (arXiv:2203.11860; Celo's first phase is much the same).

    .. math:: u = -\alpha \, d \, e^{\lambda q}, \qquad (d, q) = f_\theta(x), \quad \alpha = \lambda = 10^{-3}

    The features :math:`x` are those of Celo2 but for the cut and the scaled gradient; :math:`10^{-5}` is added to
    their mean squares, :math:`10^{-6}` to the second moment, and vectors repeat the features of matrices. The
    decays of the running means are learned. Two departures from the published code: gradients are cut to
    [-1000, 1000], as Celo does, and the learned decays are moved by :func:`nfn_opt.optim.scalars.decay`, which
    keeps them in (0, 1).

    Example:
        >>> rule, p = SmallFCRule(), {"w": torch.ones(2, 3)}
        >>> space = WeightSpace.independent(p)
        >>> updates, _ = rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
        >>> updates["w"].shape, rule.first.in_features
        (torch.Size([2, 3]), 39)
    """

    kind: ClassVar[str] = "small_fc"
    config_class: ClassVar[type[Any]] = SmallFCConfig
    config: SmallFCConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`UpdateRule`."""
        config = self.config
        self.build(config.reading(), config.hidden[0], generator)
        self.rest = PointwiseMLP((*config.hidden, 2), 1.0, generator)

    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """See :class:`FeatureRule`."""
        return [one.through(self.rest) for one in first]

    def finish(self, outputs: list[Tensor], means: Accumulated, time: Tensor) -> dict[str, Tensor]:
        """See :class:`FeatureRule`."""
        config = self.config
        return {
            segment.name: (-config.lr * x[0] * torch.exp(config.magnitude * x[1])).reshape(segment.spec.shape)
            for segment, x in zip(means.layout.segments, outputs, strict=True)
        }
