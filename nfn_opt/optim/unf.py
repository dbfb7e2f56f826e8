"""The rules of *Universal Neural Functionals*: momentum, corrected by a network whose last layer is structured."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nfn_opt.optim.accumulators import Accumulated
from nfn_opt.optim.deep_sets import DeepSetsLinear
from nfn_opt.optim.equivariant import HiddenNFLinear, Sharing
from nfn_opt.optim.feature_rule import FeatureRule, Reading, check_choice, check_reading
from nfn_opt.optim.first_layer import Preactivation
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import register_rule
from nfn_opt.optim.scalars import positive
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNFConfig:
    r"""Options of :class:`UNFRule`.

    Attributes:
        last: The last layer: ``"nf"``, an equivariant linear layer of the weight space; ``"deep_sets"``, a map of
            each weight and of the mean over its tensor; ``"pointwise"``, a map of each weight alone.
        sharing: Of the equivariant layer: ``"per_parameter"``, for one weight space, which is given when the
            rule is made, as published; or ``"by_relation"``, for all.
        lr: Initial :math:`\alpha`.
        correction: Initial :math:`\beta`.
        momentum: Initial :math:`\gamma_0`.
        hidden: Widths of the layers for each weight before the last.
        features: Names of the features; the published ones are the weight, its gradient and the momenta.
        momentum_decays: Decays :math:`\gamma_i` of the momenta that are features.
        use_time: Whether the time features are read, too.
        feature_clip: Features are cut to this absolute value before they are normalised.
        eps: Of the features' normalisation.
        gradient_clip: Entries of the gradient are first cut to this absolute value.
    """

    last: Literal["nf", "deep_sets", "pointwise"] = "nf"
    sharing: Sharing = "per_parameter"
    lr: float = 0.1
    correction: float = 1e-3
    momentum: float = 0.9
    hidden: tuple[int, ...] = (32, 32, 32)
    features: tuple[str, ...] = ("parameter", "gradient", "momentum")
    momentum_decays: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
    use_time: bool = True
    feature_clip: float = 1.0
    eps: float = 1e-5
    gradient_clip: float = 1000.0

    def __post_init__(self) -> None:
        for field in ("features", "hidden", "momentum_decays"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        check_choice("last", self.last, ("nf", "deep_sets", "pointwise"))
        check_choice("sharing", self.sharing, ("per_parameter", "by_relation"))
        check_reading(
            self.features,
            (self.momentum, *self.momentum_decays),
            self.hidden,
            lr=self.lr,
            correction=self.correction,
            feature_clip=self.feature_clip,
            eps=self.eps,
            gradient_clip=self.gradient_clip,
        )
        known = {"parameter", "gradient", "clipped_gradient", "momentum"}
        if not known.issuperset(self.features):
            raise ValueError(
                f"features are {self.features}, expected some of {sorted(known)}; this rule keeps momenta alone"
            )

    def reading(self) -> Reading:
        """What the rule reads: the momentum that it follows is kept before the others and is no feature."""
        return Reading(
            features=self.features,
            use_time=self.use_time,
            momentum_decays=(self.momentum, *self.momentum_decays),
            unread_momenta=1,
            gradient_clip=self.gradient_clip,
            feature_clip=self.feature_clip,
            eps=self.eps,
        )


@register_rule
class UNFRule(FeatureRule):
    r"""Momentum corrected by a neural functional (arXiv:2402.05232).

    .. math::
        u = -\alpha \bigl( m^{\gamma_0} + \beta f_\theta(p, g, m^{\gamma_1}, \dots, m^{\gamma_6}, t) \bigr) \qquad
        m^\gamma \leftarrow \gamma m^\gamma + (1 - \gamma) g

    with learned :math:`\alpha, \beta > 0` and :math:`\gamma_0`. The functional :math:`f` maps every weight on its own,
    linear maps and ReLU in turn; only its last map sees other weights. With ``last="deep_sets"`` those are of the
    same tensor, with ``last="nf"`` all that stand in a relation to it.

    As in the published code, features are cut to [-1, 1] and divided by their root mean square over the tensor; the
    hidden layers are for each weight there, too, so that ``last="pointwise"`` is what the paper calls Deep Sets (by
    its count of 2,788 outer parameters).

    Args:
        config: See :class:`UNFConfig`.
        generator: Source of the initial outer parameters; a fixed seed if ``None``.
        space: The one weight space of the rule, needed for ``last="nf"`` with ``sharing="per_parameter"``.

    Example:
        >>> p = {"w": torch.ones(2, 3), "b": torch.zeros(2)}
        >>> space = WeightSpace.independent(p)
        >>> rule = UNFRule(space=space)
        >>> updates, _ = rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
        >>> updates["w"].shape
        torch.Size([2, 3])
    """

    kind: ClassVar[str] = "unf"
    config_class: ClassVar[type[Any]] = UNFConfig
    config: UNFConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`UpdateRule`."""
        config = self.config
        self.coupled = config.last == "nf"
        self.build(config.reading(), config.hidden[0], generator)
        self.rest = PointwiseMLP(config.hidden, 1.0, generator)
        self.last = self._last(generator, space)
        self.log_lr = nn.Parameter(torch.zeros(()))
        self.log_correction = nn.Parameter(torch.zeros(()))
        self.momentum = nn.Parameter(torch.zeros(()))

    def _last(self, generator: torch.Generator, space: WeightSpace | None) -> nn.Module:
        config, width = self.config, self.config.hidden[-1]
        if config.last == "nf":
            return HiddenNFLinear(space, width, 1, sharing=config.sharing, generator=generator)
        return DeepSetsLinear(width, 1, mean=config.last == "deep_sets", generator=generator)

    @property
    def space_fingerprint(self) -> str | None:
        """See :class:`UpdateRule`."""
        return self.last.fingerprint if isinstance(self.last, HiddenNFLinear) else None

    def offsets(self) -> dict[str, Tensor]:
        """The decay of the momentum that is followed is learned, the others are not."""
        fixed = self.momentum.new_zeros(len(self.config.momentum_decays))
        return {"momentum": torch.cat([self.momentum.reshape(1), fixed])}

    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """See :class:`FeatureRule`."""
        hidden = [one.through(lambda x: torch.relu_(self.rest(x))) for one in first]
        return [x.squeeze(0) for x in self.last(first, hidden, space)]

    def finish(self, outputs: list[Tensor], means: Accumulated, time: Tensor) -> dict[str, Tensor]:
        """See :class:`FeatureRule`."""
        dtype, config = means.momentum.dtype, self.config
        alpha = positive(config.lr, self.log_lr).to(dtype)
        beta = positive(config.correction, self.log_correction).to(dtype)
        momentum = means.layout.split(means.momentum[0])
        return {
            segment.name: (-alpha * (m + beta * f)).reshape(segment.spec.shape)
            for segment, m, f in zip(means.layout.segments, momentum, outputs, strict=True)
        }
