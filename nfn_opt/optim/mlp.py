"""The per-parameter MLP rule."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nfn_opt.optim.features import time_features
from nfn_opt.optim.first_layer import Preactivation
from nfn_opt.optim.layout import Layout
from nfn_opt.optim.learned import LearnedConfig, LearnedRule
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import State, Tensors, register_rule
from nfn_opt.optim.vectors import VectorAdam
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig(LearnedConfig):
    """Options of :class:`MLPRule`: those of :class:`LearnedConfig`, and this.

    Attributes:
        vectors: What updates tensors with fewer than two axes: ``"learned"``, the MLP as for all others, or
            ``"adam"``, see :mod:`nfn_opt.optim.vectors`, with the first momentum's and the second moment's decay.
    """

    vectors: Literal["learned", "adam"] = "learned"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors not in ("learned", "adam"):
            raise ValueError(f"vectors is {self.vectors!r}, expected 'learned' or 'adam'")

    @classmethod
    def celo2_base(cls, lr: float = 1e-3) -> MLPConfig:
        """The released form of Celo2-base (arXiv:2602.19142): no base direction, no time, normalised output.

        It has one output channel in place of three: the released form multiplies the second by zero and never
        reads the third. The step size is the user's, not an outer parameter.
        """
        return cls(
            lr=lr,
            base="none",
            correction=1.0,
            output_scale=1.0,
            use_time=False,
            normalise_output=True,
            normalise_over="matrix",
            learn_lr=False,
            schedule=False,
            by_kind=False,
            hidden=(8, 8),
        )

    @classmethod
    def celo2(cls, lr: float = 1e-3) -> MLPConfig:
        """The released form of Celo2: Celo2-base with orthogonal updates of matrices, and Adam for vectors.

        The matrices of a convolution are those of each kernel position, as released; ``orthogonal="flat"`` takes
        (outputs, inputs * positions) instead, as Muon does. Adam's step size is 20 times that of the matrices.
        """
        return dataclasses.replace(
            cls.celo2_base(lr), orthogonal="positions", vectors="adam", vector_factor=20.0
        )


@register_rule
class MLPRule(LearnedRule):
    r"""The same small MLP for every weight, on its features; see :class:`LearnedRule` for the formula.

    Before any meta-training it is close to Adam with a constant step size. It commutes with every permutation
    of every axis, its outer parameters fit every network, and it treats each tensor on its own.

    Example:
        >>> rule, p = MLPRule(), {"w": torch.ones(2, 3)}
        >>> space = WeightSpace.independent(p)
        >>> updates, state = rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
        >>> updates["w"].shape, state["tensors"]["w"]["momentum"].shape
        (torch.Size([2, 3]), torch.Size([3, 2, 3]))
    """

    kind: ClassVar[str] = "mlp"
    config_class: ClassVar[type[Any]] = MLPConfig
    config: MLPConfig

    def reset_body(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`LearnedRule`."""
        config = self.config
        self.rest = PointwiseMLP((*config.hidden, 1), config.output_scale, generator)
        self.vector_adam = VectorAdam(config.momentum_decays[0], config.second_moment_decay)

    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """See :class:`LearnedRule`."""
        return [one.through(self.rest).squeeze(0) for one in first]

    def init(self, space: WeightSpace, params: Tensors) -> State:
        """Running means of zero."""
        learned, vectors = self._divided(space, params)
        state = super().init(space, {name: params[name] for name in learned})
        if vectors:
            state["tensors"].update(self.vector_adam.init(Layout.of(space, vectors), params))
        return state

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
        learned, vectors = self._divided(space, params)
        updates: dict[str, Tensor] = {}
        after: State = {"tensors": {}, "shared": {}}
        if learned:
            given = {name: params[name] for name in learned}
            updates, after = super().update(given, grads, state, space=space, step=step, loss=loss)
        if vectors:
            layout, tensors = Layout.of(space, vectors), state["tensors"]
            directions, states = self.vector_adam.directions(layout, params, grads, tensors)
            scale = -self.step_size(time_features(step, next(iter(directions.values())).dtype))[1]
            updates.update({name: scale * direction for name, direction in directions.items()})
            after["tensors"].update(states)
        return updates, after

    def _divided(self, space: WeightSpace, params: Tensors) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the tensors that the MLP updates, and of those that Adam does."""
        if self.config.vectors == "learned":
            return tuple(params), ()
        segments = Layout.of(space, tuple(params)).segments
        learned, vectors = (tuple(s.name for s in segments if s.kind == kind) for kind in (0, 1))
        return learned, vectors
