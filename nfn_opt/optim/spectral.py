"""The spectral rule: a learned direction for every weight, made orthogonal, with step sizes that need no tuning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nfn_opt.layers import RelationLinear
from nfn_opt.optim.accumulators import Accumulators
from nfn_opt.optim.equivariant import apply_layer, neighbours_layer
from nfn_opt.optim.feature_rule import check_features_and_factors
from nfn_opt.optim.features import FEATURES, USES_FACTORS, USES_SECOND_MOMENT, Inputs, time_features
from nfn_opt.optim.first_layer import FeatureLinear, Preactivation
from nfn_opt.optim.layout import Layout, Segment
from nfn_opt.optim.normalise import inverse_rms
from nfn_opt.optim.orthogonal import orthogonalise
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import State, Tensors, UpdateRule, register_rule
from nfn_opt.optim.scalars import positive
from nfn_opt.optim.spectral_step import (
    GAIN,
    TINY,
    Agreement,
    StepControl,
    Sums,
    agreement,
    depth,
    initial_size,
)
from nfn_opt.weight_space import WeightSpace

AGREEMENT_RATE = 0.1
"""Rate of the running mean of cosines."""

LARGEST_GROWTH = 1e4
"""Weights count as at most this many times the initial size of their tensor, so that updates stay finite."""

REMEMBERED = ("agreement", "size", "moved")
"""What is kept of each tensor for its step size: mean cosines (M,), initial size (), and its logarithm's way ()."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralConfig:
    """Options of :class:`SpectralRule`: what it is before any meta-training.

    Attributes:
        lr: Root mean square of one update of a matrix whose entries have a root mean square of 0.06 at the start,
            at the peak of the schedule.
        vector_lr: The same for tensors with fewer than two axes.
        rate: How fast the step size of a tensor grows while gradients agree, and falls while they oppose.
        target: Cosine between gradient and momentum at which it stays as it is.
        warmup: Share of the training over which the step size rises, where its length is known.
        width_exponent: Power of the fan-in that the step size falls with.
        size_exponent: Power of the root mean square of the tensor at its start that it grows with.
        depth_exponent: Power of the number of tensors with two or more axes that it falls with.
        excess_exponent: Power of how much larger the tensor is at its start than PyTorch would make it, that it
            falls with.
        weight_decay: How strongly matrices decay: at 1, one whose entries have the root mean square they started
            with, by one update. 0 for no decay, and no outer parameter for it.
        features: Names of the features, see :mod:`nfn_opt.optim.features`.
        hidden: Widths of the hidden layers that every weight goes through on its own; none for a direction that is
            linear in the features, for which only those running means are kept that features read.
        control: Width of a network that adds to the step size of each tensor; 0 for none. What it learns on small
            fully connected networks makes others worse.
        correction: Scale of the initial weights of the last layer, beside the momentum that the rule starts as: 0
            for nothing else before it is trained.
        neighbours: Whether the hidden channels of a weight also hear those of others, by an equivariant layer whose
            weights are shared by relation.
        neighbour_scale: Scale of that layer's initial weights.
        momentum_decays: Decays of the momenta.
        second_moment_decay: Decay of the second moment.
        factor_decays: Decays of the factored second moments.
        gradient_clip: Entries of the gradient are first cut to this absolute value.
    """

    lr: float = 4e-3
    vector_lr: float = 2e-3
    rate: float = 0.01
    target: float = -0.02
    warmup: float = 0.05
    width_exponent: float = 0.0
    size_exponent: float = 1.0
    depth_exponent: float = 0.5
    excess_exponent: float = 0.5
    weight_decay: float = 0.005
    features: tuple[str, ...] = FEATURES
    hidden: tuple[int, ...] = (8, 8)
    control: int = 0
    correction: float = 0.0
    neighbours: bool = False
    neighbour_scale: float = 0.1
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    second_moment_decay: float = 0.95
    factor_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    gradient_clip: float = 1000.0

    def __post_init__(self) -> None:
        check_features_and_factors(
            self,
            linear=True,
            lr=self.lr,
            vector_lr=self.vector_lr,
            gradient_clip=self.gradient_clip,
        )
        for feature in ("gradient", "momentum"):
            if feature not in self.features:
                raise ValueError(f"features are {self.features}, expected {feature!r} among them")
        for name in ("weight_decay", "correction"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}, expected 0 or a positive number")
        if self.neighbours and not self.hidden:
            raise ValueError(
                "neighbours is True and hidden is (), expected hidden layers for them to be heard in"
            )
        if not 0 < self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup!r}, expected a share between 0 and 1")


@register_rule
class SpectralRule(UpdateRule):
    r"""A learned direction of every weight, orthogonal for matrices, times a learned step size of every tensor.

    .. math::
        d = w \cdot \hat x + f_\theta(\hat x) \qquad
        u = -\alpha_i(t) \, (o + \lambda \, [o \, p > 0] \, p / s_i) \qquad
        o = \begin{cases}
            \sqrt{\max(m, n)} \, \mathrm{orthogonalise}(d) & \text{matrices, } m \times n \\
            d / \mathrm{rms}(d) & \text{vectors} \end{cases}

    Here :math:`\hat x` are the normalised features of the weight (:mod:`nfn_opt.optim.features`), :math:`f` the
    small MLP of Celo2 (arXiv:2602.19142), :math:`w` a linear map beside it, and :math:`\alpha_i` the step size
    (:class:`~nfn_opt.optim.spectral_step.StepControl`), which is about the root mean square of the update. A tensor of
    more than two axes is a matrix of its first axis and all others. Weights of matrices :math:`p` decay where the
    update makes them smaller anyway (cautious weight decay, arXiv:2510.12402), relative to the size :math:`s_i` that
    the tensor had at its start: noise does not make the network grow, and what gradients ask for is not held back.

    Unlike Celo2 it sets its own step size: relative to the size of each tensor, by the share of the training done,
    and by how gradients agree. It needs no learning rate and reads no loss. Before any meta-training it is close
    to Muon with a linear schedule. It commutes with every permutation of every axis, its outer parameters fit every
    network, and it treats each tensor on its own (of the others it reads how many there are), unless its
    ``neighbours`` are heard: then weights hear the means of their rows, columns and tensor, and the tensors that
    share neurons with theirs, as in :class:`~nfn_opt.optim.relational.RelationalRule`, and updates commute with
    permutations of neurons.

    Example:
        >>> rule, p = SpectralRule(), {"w": torch.ones(2, 3)}
        >>> space = WeightSpace.independent(p)
        >>> updates, _ = rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
        >>> updates["w"].shape
        torch.Size([2, 3])
    """

    kind: ClassVar[str] = "spectral"
    config_class: ClassVar[type[Any]] = SpectralConfig
    config: SpectralConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`UpdateRule`."""
        config, self.accumulators = self.config, self._running_means()
        momenta, factors = len(config.momentum_decays), len(self.accumulators.factor_decays)
        # The last output is the linear map w beside the MLP, or all there is.
        channels = sum(config.hidden[:1]) + 1
        self.first = FeatureLinear(config.features, channels, momenta, factors, False, generator, eps=TINY)
        with torch.no_grad():
            self.first.weight[-1] = 0.0
            self.first.weight[-1, self.first.columns["gradient"][0]] = 0.6
            self.first.weight[-1, self.first.columns["momentum"][0]] = 1.0
        self.rest: PointwiseMLP | None = None
        if config.hidden:
            self.rest = PointwiseMLP((*config.hidden, 1), config.correction, generator)
        self.coupled = config.neighbours
        self.neighbours: RelationLinear | None = None
        if config.neighbours:
            self.neighbours = neighbours_layer(config.hidden[-1], config.neighbour_scale, generator)
        self.control = StepControl(
            start=(config.lr, config.vector_lr),
            rate=config.rate,
            target=config.target,
            warmup=config.warmup,
            width_exponent=config.width_exponent,
            size_exponent=config.size_exponent,
            depth_exponent=config.depth_exponent,
            excess_exponent=config.excess_exponent,
            momenta=momenta,
            hidden=config.control,
            generator=generator,
        )
        self.shrinking = nn.Parameter(torch.zeros(())) if config.weight_decay else None

    def _running_means(self) -> Accumulators:
        config = self.config
        reads = [
            bool(config.hidden) or not uses.isdisjoint(config.features)
            for uses in (USES_SECOND_MOMENT, USES_FACTORS)
        ]
        return Accumulators(
            momentum_decays=config.momentum_decays,
            second_moment_decay=config.second_moment_decay if reads[0] else None,
            factor_decays=config.factor_decays if reads[1] else (),
        )

    def adopt(self, other: UpdateRule) -> None:
        """See :class:`UpdateRule`; one that is linear in gradient and momenta may get hidden layers and features."""
        if self.rest is None or not isinstance(other, SpectralRule) or other.rest is not None:
            super().adopt(other)
            return
        places, found = self._columns_of(other), other.state_dict()
        with torch.no_grad():
            self.first.weight[-1] = 0.0
            self.first.weight[-1, places] = found.pop("first.weight")[0]
            self.first.bias[-1] = found.pop("first.bias")[0]
        self.load_state_dict({key: found.get(key, tensor) for key, tensor in self.state_dict().items()})

    def _columns_of(self, other: SpectralRule) -> list[int]:
        """Where the first layer has what each column of another rule's reads."""
        own, theirs = self.config, other.config
        known = [decay for decay in theirs.momentum_decays if decay in own.momentum_decays]
        if not set(theirs.features) <= {"gradient", "momentum"} or len(known) < len(theirs.momentum_decays):
            raise ValueError(
                f"a direction that is linear in {', '.join(theirs.features)}, with decays {theirs.momentum_decays}, "
                f"is to get hidden layers and momenta with decays {own.momentum_decays}; expected one of gradient and "
                "momenta alone, whose decays are kept; make a new rule"
            )
        momenta = [self.first.columns["momentum"][own.momentum_decays.index(decay)] for decay in known]
        columns = {"gradient": list(self.first.columns["gradient"]), "momentum": momenta}
        return [column for feature in theirs.features for column in columns[feature]]

    def init(self, space: WeightSpace, params: Tensors) -> State:
        """Running means of zero, and the size of each tensor."""
        states = self.accumulators.init(Layout.of(space, tuple(params)), params)
        for name, p in params.items():
            states[name]["agreement"] = p.new_zeros(len(self.config.momentum_decays))
            states[name] |= {"size": initial_size(p), "moved": p.new_zeros(())}
        return {"tensors": states, "shared": {}}

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
        """See :class:`UpdateRule`; the loss is not read."""
        layout, old = Layout.of(space, tuple(params)), state["tensors"]
        clip = self.config.gradient_clip
        parameter, gradient = layout.flatten(params), torch.clamp(layout.flatten(grads), -clip, clip)
        means = self.accumulators.update(layout, gradient, old)
        memory = {key: torch.stack([old[name][key] for name in params]) for key in REMEMBERED}
        sums = Sums.of(means, gradient, parameter)
        steps, memory = self.step_sizes(layout.segments, sums, memory, step, total_steps, depth(space))
        first = self.first(Inputs(parameter, gradient, means), time_features(step, gradient.dtype))
        updates, states = {}, means.state()
        for i, (one, values) in enumerate(zip(first, self._values(first, space), strict=True)):
            name = one.segment.name
            direction = normalised(values.reshape(1, *one.segment.spec.shape))
            direction = self.decayed(direction, params[name].unsqueeze(0), memory["size"][i])
            updates[name] = -steps[i] * direction.squeeze(0)
            states[name] |= {key: value[i] for key, value in memory.items()}
        return updates, {"tensors": states, "shared": {}}

    def step_sizes(
        self,
        segments: Sequence[Segment],
        sums: Sums,
        memory: Mapping[str, Tensor],
        step: Tensor,
        total_steps: Tensor | None,
        layers: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The root mean square of the update of each tensor.

        Args:
            segments: T tensors.
            sums: What is read of them.
            memory: Their states of the keys :data:`REMEMBERED`, shape (T, ...) each.
            step: Number of updates made, shape ().
            total_steps: Number of updates of the training, shape (), where known.
            layers: Number of parameters of the network with two or more axes.

        Returns:
            Shape (T,), 0 for tensors that have never had a gradient, and the new states.
        """
        found, size = agreement(sums, self.config.momentum_decays), memory["size"]
        cosine = torch.lerp(memory["agreement"], found.cosine, AGREEMENT_RATE)
        agreed = Agreement(cosine, found.ratio)
        steps, moved = self.control(
            segments, sums.size, size, agreed, memory["moved"], step, total_steps, layers
        )
        signal = sums.gradient.squeeze(1) + sums.momentum.sum(1) > 0
        return torch.where(signal, steps, 0.0), {"agreement": cosine, "size": size, "moved": moved}

    def decayed(self, direction: Tensor, parameter: Tensor, size: Tensor) -> Tensor:
        """Directions with the weight decay of matrices, where they make weights smaller anyway.

        Args:
            direction: Directions of tensors of one shape, ``(T, *shape)``; those of vectors are left as they are.
            parameter: The tensors, likewise.
            size: Their root mean squares at their start, of a shape that spreads to theirs.

        Returns:
            The same shape; ``direction`` itself where nothing decays.
        """
        if self.shrinking is None or direction.dim() < 3:
            return direction
        decay = positive(self.config.weight_decay, GAIN * self.shrinking)
        relative = (parameter / size).clamp(-LARGEST_GROWTH, LARGEST_GROWTH)
        return direction + torch.where(direction * parameter > 0, decay * relative, 0.0)

    def _values(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """The direction of each tensor before it is normalised, ``(n,)``."""
        rest = self.rest
        if rest is None:
            return [one.through(lambda x: x)[0] for one in first]
        if self.neighbours is None:
            return [one.through(lambda x: rest(x[:-1]) + x[-1:])[0] for one in first]
        linear = [one.through(lambda x: x[-1:]) for one in first]
        hidden = [one.through(lambda x: rest.before_last(x[:-1])) for one in first]
        heard = apply_layer(self.neighbours, first, [torch.relu(z) for z in hidden], space)
        own = (rest.readout(z + other) for z, other in zip(hidden, heard, strict=True))
        return [(one + beside)[0] for one, beside in zip(own, linear, strict=True)]


def normalised(values: Tensor) -> Tensor:
    """Tensors with root mean squares of about 1; orthogonal if they are matrices, or more.

    Args:
        values: Tensors of one shape, ``(T, *shape)``.

    Returns:
        The same shape.
    """
    direction = values * inverse_rms(values, TINY)
    if direction.dim() < 3:
        return direction
    matrices = direction.flatten(2)
    return math.sqrt(max(matrices.shape[1:])) * orthogonalise(matrices).reshape(values.shape)
