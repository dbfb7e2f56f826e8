"""The normalised per-weight rule in which neurons hear one another: one set of weights for every architecture."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from nfn_opt.layers import RelationLinear
from nfn_opt.optim.equivariant import apply_layer, neighbours_layer
from nfn_opt.optim.first_layer import Preactivation, affine, initial_weight
from nfn_opt.optim.learned import LearnedConfig, LearnedRule
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import register_rule
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationalConfig(LearnedConfig):
    """Options of :class:`RelationalRule`: those of :class:`LearnedConfig` with the values of Celo2-base, and these.

    Attributes:
        neighbours: Whether there is the layer by which tensors see others and their own means.
        neighbour_scale: Scale of that layer's initial weights.
    """

    lr: float = 1e-3
    base: Any = "none"
    correction: float = 1.0
    output_scale: float = 1.0
    use_time: bool = False
    normalise_output: bool = True
    normalise_over: Any = "matrix"
    learn_lr: bool = False
    schedule: bool = False
    by_kind: bool = False
    neighbours: bool = True
    neighbour_scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.neighbour_scale >= 0:
            raise ValueError(f"neighbour_scale is {self.neighbour_scale!r}, expected a number not below zero")


@register_rule
class RelationalRule(LearnedRule):
    r"""Celo2's network for every weight, with one layer by which weights hear their neighbours.

    .. math::
        z = \text{MLP}(x), \qquad u = -\alpha \, \operatorname{normalised}\bigl(
        w \cdot \mathrm{ReLU}(z + N(\mathrm{ReLU}(z))) + b \bigr)

    Here :math:`z` are the hidden channels of a weight before its last activation, and :math:`N` is the equivariant
    linear layer whose weights are shared by relation (:mod:`nfn_opt.layers.relations`), without what a weight would
    send to itself: the means of its rows, columns and tensor, those of the tensors that share its neurons, weights
    of the same shape between the same neurons, and the mean of everything. So the same outer parameters serve
    every architecture, updates commute with all permutations of neurons, and the terms beyond the per-weight network
    are exactly those of neighbours: without them (``neighbours=False``) the rule is that network, with the same
    outer parameters for each weight. As the weights of :math:`N` start small, so does the rule.

    Args:
        config: See :class:`RelationalConfig`.
        generator: Source of the initial outer parameters; a fixed seed if ``None``.

    Example:
        >>> rule, p = RelationalRule(), {"w": torch.ones(2, 3), "b": torch.zeros(2)}
        >>> space = WeightSpace.independent(p)
        >>> updates, _ = rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
        >>> updates["w"].shape
        torch.Size([2, 3])
    """

    kind: ClassVar[str] = "relational"
    config_class: ClassVar[type[Any]] = RelationalConfig
    config: RelationalConfig

    def reset_body(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`LearnedRule`. The neighbours' layer comes last: the per-weight network is the same without."""
        config, width = self.config, self.config.hidden[-1]
        self.coupled = config.neighbours
        self.rest = PointwiseMLP(config.hidden, 1.0, generator)
        self.readout = initial_weight(1, width, generator, config.output_scale)
        self.readout_bias = torch.nn.Parameter(torch.zeros(1))
        self.neighbours: RelationLinear | None = None
        if config.neighbours:
            self.neighbours = neighbours_layer(width, config.neighbour_scale, generator)

    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """See :class:`LearnedRule`."""
        if self.neighbours is None:
            return [one.through(lambda x: self._read(self.rest(x)))[0] for one in first]
        hidden = [one.through(self.rest) for one in first]
        heard = apply_layer(self.neighbours, first, [torch.relu(z) for z in hidden], space)
        return [self._read(z + n)[0] for z, n in zip(hidden, heard, strict=True)]

    def _read(self, hidden: Tensor) -> Tensor:
        """The output ``(1, n)`` from the hidden channels; overwrites them."""
        return affine(self.readout, torch.relu_(hidden), self.readout_bias)
