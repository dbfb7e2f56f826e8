"""What the learned rules share: configuration, state, features, the Adam direction, step size and output."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nfn_opt.optim.accumulators import Accumulated, Accumulators
from nfn_opt.optim.features import EPS, FEATURES, USES_FACTORS, Inputs, time_features
from nfn_opt.optim.first_layer import FeatureLinear, Preactivation
from nfn_opt.optim.layout import Layout, Segment
from nfn_opt.optim.matrices import Matrices, orthogonal_update
from nfn_opt.optim.normalise import Over, inverse_rms
from nfn_opt.optim.rule import State, Tensors, UpdateRule, closest
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
        for field in ("features", "hidden", "momentum_decays", "factor_decays"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        _check_choice("base", self.base, ("adam", "none"))
        _check_choice("orthogonal", self.orthogonal, ("none", "positions", "flat"))
        _check_choice("normalise_over", self.normalise_over, ("tensor", "matrix"))
        check_features(self.features)
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected one or more positive widths, such as (8, 8)")
        if not self.momentum_decays:
            raise ValueError("momentum_decays is empty, expected at least one decay, such as (0.9,)")
        if self.needs_factors and len(self.factor_decays) != len(self.momentum_decays):
            raise ValueError(
                f"factor_decays has {len(self.factor_decays)} values, expected "
                f"{len(self.momentum_decays)} as in momentum_decays; their products are features"
            )
        for value in (*self.momentum_decays, self.second_moment_decay, *self.factor_decays):
            if not 0 <= value < 1:
                raise ValueError(f"a decay is {value!r}, expected a number in [0, 1)")
        for field in ("lr", "gradient_clip", "eps", "output_scale", "vector_factor"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)!r}, expected a positive number")

    @property
    def needs_factors(self) -> bool:
        """Whether a feature reads the factored second moments; if none does, they are not kept."""
        return not USES_FACTORS.isdisjoint(self.features)


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} is {value!r}, expected {' or '.join(map(repr, choices))}")


def check_features(features: Sequence[str]) -> None:
    """Refuse names that are no features, duplicates, and an empty list."""
    for i, feature in enumerate(features):
        if feature not in FEATURES:
            raise ValueError(
                f"there is no feature {feature!r}{closest(feature, list(FEATURES))}; expected {FEATURES}"
            )
        if feature in features[:i]:
            raise ValueError(f"the feature {feature!r} is listed twice; name each once")
    if all(feature in ("row", "column", "inverse_root_row", "inverse_root_column") for feature in features):
        raise ValueError(
            f"features are {tuple(features)}, expected at least one with a value for each weight"
        )


class LearnedRule(UpdateRule, abc.ABC):
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
        factors = config.factor_decays if config.needs_factors else ()
        self.accumulators = Accumulators(
            momentum_decays=config.momentum_decays,
            second_moment_decay=config.second_moment_decay,
            factor_decays=factors,
        )
        self.first = FeatureLinear(
            config.features,
            config.hidden[0],
            len(config.momentum_decays),
            len(factors),
            config.use_time,
            generator,
            over=config.normalise_over,
        )
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

    @abc.abstractmethod
    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """The layers after the first.

        Args:
            first: The first layer's output for each tensor, ``(hidden[0], n)``, before the activation.
            space: Their weight space.

        Returns:
            For each tensor ``(n,)``.
        """

    def init(self, space: WeightSpace, params: Tensors) -> State:
        """Running means of zero."""
        return {"tensors": self.accumulators.init(Layout.of(space, tuple(params)), params), "shared": {}}

    def update(
        self,
        params: Tensors,
        grads: Tensors,
        state: State,
        *,
        space: WeightSpace,
        step: Tensor,
        loss: Tensor | None = None,
        total_steps: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], State]:
        """See :class:`UpdateRule`."""
        layout = Layout.of(space, tuple(params))
        clip = self.config.gradient_clip
        gradient = torch.clamp(layout.flatten(grads), -clip, clip)
        means = self.accumulators.update(layout, gradient, state["tensors"])
        time = time_features(step, gradient.dtype)
        inputs = Inputs(layout.flatten(params), gradient, means)
        corrections = self.body(self.first(inputs, time), space)
        updates = self._finish(corrections, means, self.step_size(time))
        return updates, {"tensors": means.state(), "shared": {}}

    def _finish(self, corrections: list[Tensor], means: Accumulated, step_sizes: Tensor) -> dict[str, Tensor]:
        """Updates in stored shapes: minus the step size times the direction."""
        layout, updates, scales = means.layout, {}, (-step_sizes).unbind()
        bases = self._adam(means) if self.config.base == "adam" else [None] * len(corrections)
        for segment, correction, base in zip(layout.segments, corrections, bases, strict=True):
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
