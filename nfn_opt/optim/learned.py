"""What the learned rules share: configuration, the Adam direction, step size and output."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nfn_opt.optim.accumulators import Accumulated
from nfn_opt.optim.feature_rule import FeatureRule, Reading, check_choice, check_features_and_factors
from nfn_opt.optim.features import EPS, FEATURES
from nfn_opt.optim.layout import Segment
from nfn_opt.optim.matrices import Matrices, orthogonal_update
from nfn_opt.optim.normalise import Over, inverse_rms
from nfn_opt.optim.step_size import StepSize
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """Options that all learned rules have.

    Attributes:
        lr: Initial step size.
        base: What the correction is added to: the direction of Adam, or nothing.
        correction: Initial factor of the correction, learned from there on if there is a base.
        output_scale: Scale of the last layer's initial weights; together with ``correction`` it makes the
            rule start close to its base.
        features: Names of the features, see :mod:`nfn_opt.optim.features`.
        hidden: Widths of the hidden layers that every weight goes through on its own.
        use_time: Whether the correction also sees the time features.
        momentum_decays: Decays of the momenta; the first is that of the Adam direction.
        second_moment_decay: Decay of the second moment.
        factor_decays: Decays of the factored second moments.
        gradient_clip: Entries of the gradient are first cut to this absolute value.
        eps: Of the Adam direction.
        orthogonal: Which matrices of the direction are made orthogonal, see :data:`nfn_opt.optim.matrices.Matrices`.
        normalise_output: Whether the direction of each tensor is divided by its root mean square.
        normalise_over: What the means of normalisation are over, see :mod:`nfn_opt.optim.normalise`.
        learn_lr: Whether the step size is an outer parameter.
        schedule: Whether the step size depends on time.
        by_kind: Whether matrices and vectors have their own step sizes.
        vector_factor: How much larger the step size of vectors is than that of matrices.
    """

    lr: float = 3e-3
    base: Literal["adam", "none"] = "adam"
    correction: float = 0.1
    output_scale: float = 0.1
    features: tuple[str, ...] = FEATURES
    hidden: tuple[int, ...] = (8, 8)
    use_time: bool = True
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    second_moment_decay: float = 0.95
    factor_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    gradient_clip: float = 1000.0
    eps: float = 1e-8
    orthogonal: Literal["none"] | Matrices = "none"
    normalise_output: bool = False
    normalise_over: Over = "tensor"
    learn_lr: bool = True
    schedule: bool = True
    by_kind: bool = True
    vector_factor: float = 1.0

    def __post_init__(self) -> None:
        check_choice("base", self.base, ("adam", "none"))
        check_choice("orthogonal", self.orthogonal, ("none", "positions", "flat"))
        check_choice("normalise_over", self.normalise_over, ("tensor", "matrix"))
        check_features_and_factors(
            self,
            lr=self.lr,
            gradient_clip=self.gradient_clip,
            eps=self.eps,
            output_scale=self.output_scale,
            vector_factor=self.vector_factor,
        )

    def reading(self) -> Reading:
        """What the rule reads."""
        return Reading(
            features=self.features,
            use_time=self.use_time,
            momentum_decays=self.momentum_decays,
            second_moment_decay=self.second_moment_decay,
            factor_decays=self.factor_decays,
            keep_second_moment=True,
            gradient_clip=self.gradient_clip,
            over=self.normalise_over,
        )


class LearnedRule(FeatureRule, abc.ABC):
    r"""A rule that corrects a base direction by a learned function of features.

    .. math::
        u = -\alpha_k(t) \, \bigl( a + \beta f_\theta(x) \bigr) \qquad a = \hat m / \sqrt{\hat v + \epsilon^2}

    Here :math:`x` are the features of each weight, :math:`\hat m, \hat v` the first momentum and the second
    moment, corrected for their start at zero, and :math:`\alpha_k(t)` the learned step size. Without a base the sum
    is :math:`\beta f_\theta(x)` with a constant :math:`\beta`. The sum may be made orthogonal and then be normalised.
    A subclass gives :math:`f`.
    """

    config_class: ClassVar[type[Any]] = LearnedConfig
    config: LearnedConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`UpdateRule`."""
        config = self.config
        self.build(config.reading(), config.hidden[0], generator)
        self.beta = nn.Parameter(torch.tensor(config.correction)) if config.base == "adam" else None
        self.step_size = StepSize(
            config.lr,
            schedule=config.schedule,
            by_kind=config.by_kind,
            learned=config.learn_lr,
            vector_factor=config.vector_factor,
        )
        self.reset_body(generator, space)

    @abc.abstractmethod
    def reset_body(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Make the layers after the first."""

    def finish(self, outputs: list[Tensor], means: Accumulated, time: Tensor) -> dict[str, Tensor]:
        """Updates in stored shapes: minus the step size times the direction."""
        layout, updates, scales = means.layout, {}, (-self.step_size(time)).unbind()
        bases = self._adam(means) if self.config.base == "adam" else [None] * len(outputs)
        for segment, correction, base in zip(layout.segments, outputs, bases, strict=True):
            if base is None or self.beta is None:
                direction = correction if self.config.correction == 1 else self.config.correction * correction
            else:
                direction = base + self.beta * correction
            updates[segment.name] = self._scaled(segment, direction, scales[segment.kind])
        return updates

    def _scaled(self, segment: Segment, direction: Tensor, scale: Tensor) -> Tensor:
        """The direction ``(n,)`` made orthogonal and normalised where asked, times the scale, as stored."""
        config = self.config
        if config.orthogonal != "none" and segment.factored is not None:
            direction = orthogonal_update(direction.reshape(segment.shape), config.orthogonal)
        if config.normalise_output:
            direction = direction.reshape(1, *segment.shape)
            scale = scale * inverse_rms(direction, EPS, config.normalise_over)
        return (scale * direction).reshape(segment.spec.shape)

    def _adam(self, means: Accumulated) -> list[Tensor]:
        config, count = self.config, torch.stack(means.step)
        momenta = means.layout.split(means.momentum[0])
        assert means.second_moment is not None
        squares = means.layout.split(means.second_moment)
        # m / m_weight * (v / v_weight + eps^2)^(-1/2), with fewer operations on long vectors
        m_weight = bias_correction(config.momentum_decays[0], count, means.momentum.dtype)
        v_weight = bias_correction(config.second_moment_decay, count, means.momentum.dtype)
        offsets = (config.eps**2 * v_weight).unbind()
        factors = (torch.sqrt(v_weight) / m_weight).unbind()
        return [
            m * torch.rsqrt(v + offset) * factor
            for m, v, offset, factor in zip(momenta, squares, offsets, factors, strict=True)
        ]


def bias_correction(decay: float, step: Tensor, dtype: torch.dtype) -> Tensor:
    """``1 - decay^step``, without cancellation where it is small."""
    if decay == 0:
        return torch.ones_like(step, dtype=dtype)
    return -torch.expm1(step.to(dtype) * math.log(decay))
