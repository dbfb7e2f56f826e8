"""What the rules that read features share: running means, first layer, and the course of an update."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.optim.accumulators import Accumulated, Accumulators
from nfn_opt.optim.features import (
    EPS,
    FACTOR,
    FEATURES,
    ROOT_EPS,
    USES_FACTORS,
    USES_SECOND_MOMENT,
    Inputs,
    time_features,
)
from nfn_opt.optim.first_layer import FeatureLinear, Preactivation
from nfn_opt.optim.layout import Layout
from nfn_opt.optim.normalise import Over
from nfn_opt.optim.rule import State, Tensors, UpdateRule, closest
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What a rule reads of the weights, and how.

    Attributes:
        features: Names of the features, see :mod:`nfn_opt.optim.features`.
        use_time: Whether the time features are read, too.
        momentum_decays: Decays of the momenta.
        second_moment_decay: Decay of the second moment.
        factor_decays: Decays of the factored second moments.
        unread_momenta: How many of the first momenta are kept for other use and are no features.
        keep_second_moment: Whether the second moment is kept though no feature reads it.
        gradient_clip: Entries of the gradient are first cut to this absolute value.
        feature_clip: Features are cut to this absolute value before they are normalised, if given.
        over: What the means of normalisation are over, see :mod:`nfn_opt.optim.normalise`.
        eps: Of the normalisation.
        root_eps: Added to the second moment under the root.
        repeat: Whether features of matrices are repeated for vectors; otherwise they are zero.
        learn_decays: Whether the decays are outer parameters.
    """

    features: tuple[str, ...]
    use_time: bool
    momentum_decays: tuple[float, ...]
    second_moment_decay: float = 0.999
    factor_decays: tuple[float, ...] = ()
    unread_momenta: int = 0
    keep_second_moment: bool = False
    gradient_clip: float = 1000.0
    feature_clip: float | None = None
    over: Over = "tensor"
    eps: float = EPS
    root_eps: float = ROOT_EPS
    repeat: bool = False
    learn_decays: bool = False

    def accumulators(self) -> Accumulators:
        """The running means that are kept: those that are read."""
        second = self.keep_second_moment or not USES_SECOND_MOMENT.isdisjoint(self.features)
        factored = not USES_FACTORS.isdisjoint(self.features)
        return Accumulators(
            momentum_decays=self.momentum_decays,
            second_moment_decay=self.second_moment_decay if second else None,
            factor_decays=self.factor_decays if factored else (),
        )


class FeatureRule(UpdateRule, abc.ABC):
    """A rule in which a network reads features of each weight.

    A subclass gives the :class:`Reading`, the layers after the first, and what its outputs mean.
    """

    def build(self, reading: Reading, channels: int, generator: torch.Generator) -> None:
        """Make the running means and the first layer, with so many output channels."""
        self.reading, self.accumulators = reading, reading.accumulators()
        self.first = FeatureLinear(
            reading.features,
            channels,
            len(reading.momentum_decays) - reading.unread_momenta,
            len(self.accumulators.factor_decays),
            reading.use_time,
            generator,
            over=reading.over,
            eps=reading.eps,
            clip=reading.feature_clip,
            repeat=reading.repeat,
        )
        self.decay_offsets = nn.ParameterDict(self._offsets() if reading.learn_decays else {})

    def _offsets(self) -> dict[str, nn.Parameter]:
        means = self.accumulators
        offsets = {"momentum": nn.Parameter(torch.zeros(len(means.momentum_decays)))}
        if means.second_moment_decay is not None:
            offsets["second_moment"] = nn.Parameter(torch.zeros(()))
        if means.factor_decays:
            offsets["factor"] = nn.Parameter(torch.zeros(len(means.factor_decays)))
        return offsets

    @abc.abstractmethod
    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """The layers after the first.

        Args:
            first: The first layer's output for each tensor, ``(channels, n)``, before the activation.
            space: Their weight space.

        Returns:
            For each tensor ``(n,)``, or ``(outputs, n)``.
        """

    @abc.abstractmethod
    def finish(self, outputs: list[Tensor], means: Accumulated, time: Tensor) -> dict[str, Tensor]:
        """Updates in stored shapes.

        Args:
            outputs: What :meth:`body` gave.
            means: The running means after this gradient.
            time: The time features, ``(11,)``.
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
        layout, reading = Layout.of(space, tuple(params)), self.reading
        gradient = torch.clamp(layout.flatten(grads), -reading.gradient_clip, reading.gradient_clip)
        means = self.accumulators.update(layout, gradient, state["tensors"], self.offsets())
        time = time_features(step, gradient.dtype)
        read = means
        if reading.unread_momenta:
            read = dataclasses.replace(means, momentum=means.momentum[reading.unread_momenta :])
        inputs = Inputs(layout.flatten(params), gradient, read, reading.root_eps)
        updates = self.finish(self.body(self.first(inputs, time), space), means, time)
        return updates, {"tensors": means.state(), "shared": {}}

    def offsets(self) -> dict[str, Tensor]:
        """What moves the decays, where they are learned; see :meth:`Accumulators.update`."""
        return dict(self.decay_offsets.items())


def check_reading(
    features: Sequence[str], decays: Sequence[float], hidden: Sequence[int], **positive: float
) -> None:
    """Refuse features that there are not, decays outside [0, 1), no hidden layer, and numbers not above zero."""
    check_features(features)
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden is {hidden}, expected one or more positive widths, such as (8, 8)")
    for value in decays:
        if not 0 <= value < 1:
            raise ValueError(f"a decay is {value!r}, expected a number in [0, 1)")
    for field, value in positive.items():
        if not value > 0:
            raise ValueError(f"{field} is {value!r}, expected a positive number")


def check_features_and_factors(config: Any, *, linear: bool = False, **positive: float) -> None:
    """Make tuples of a configuration's features, widths and decays, and check them and the numbers given.

    Args:
        config: The configuration.
        linear: Whether there may be no hidden layers.
        positive: Numbers that have to be above zero, by name.
    """
    for field in ("features", "hidden", "momentum_decays", "factor_decays"):
        value = getattr(config, field)
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(
                f"{field} is {value!r}, expected a list, such as {list(getattr(type(config)(), field))}"
            )
        object.__setattr__(config, field, tuple(value))
    check_factors(config.features, config.momentum_decays, config.factor_decays)
    decays = (*config.momentum_decays, config.second_moment_decay, *config.factor_decays)
    no_hidden = linear and not config.hidden
    check_reading(config.features, decays, (1,) if no_hidden else config.hidden, **positive)


def check_factors(features: Sequence[str], momenta: Sequence[float], factors: Sequence[float]) -> None:
    """Refuse momenta and factored second moments whose products are features but whose numbers differ."""
    if not momenta:
        raise ValueError("momentum_decays is empty, expected at least one decay, such as (0.9,)")
    if not USES_FACTORS.isdisjoint(features) and len(factors) != len(momenta):
        raise ValueError(
            f"factor_decays has {len(factors)} values, expected {len(momenta)} as in momentum_decays; their "
            "products are features"
        )


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
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
    if all(feature in FACTOR for feature in features):
        raise ValueError(
            f"features are {tuple(features)}, expected at least one with a value for each weight"
        )
