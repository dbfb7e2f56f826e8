"""The neural functional rule: a per-weight network whose last layers see the whole weight space."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from nfn_opt.optim.equivariant import HiddenNFLinear, Sharing
from nfn_opt.optim.first_layer import Preactivation
from nfn_opt.optim.learned import LearnedConfig, LearnedRule
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import register_rule
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFNConfig(LearnedConfig):
    """Options of :class:`NFNRule`: those of :class:`LearnedConfig`, and these.

    Attributes:
        channels: Channels of the equivariant layer.
        sharing: ``"by_relation"``: outer parameters that fit every architecture. ``"per_parameter"``: outer
            parameters of one weight space, which is given when the rule is made.
    """

    channels: int = 8
    sharing: Sharing = "by_relation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels!r}, expected a positive number")
        if self.sharing not in ("by_relation", "per_parameter"):
            raise ValueError(f"sharing is {self.sharing!r}, expected 'by_relation' or 'per_parameter'")


@register_rule
class NFNRule(LearnedRule):
    r"""Adam's direction, corrected by a neural functional of the features of all weights (arXiv:2402.05232).

    The functional :math:`f` of :class:`LearnedRule` is an MLP for every weight, then the equivariant linear layer
    of the weight space, then a ReLU and a linear map to one channel. The update commutes with every
    permutation of the space, so that neurons that the network cannot tell apart are updated alike, and a weight
    sees the tensors that its own is connected to. Before any meta-training it is close to Adam.

    Args:
        config: See :class:`NFNConfig`.
        generator: Source of the initial outer parameters; a fixed seed if ``None``.
        space: The one weight space of the rule, needed with ``sharing="per_parameter"`` only.

    Example:
        >>> rule, p = NFNRule(), {"w": torch.ones(2, 3), "b": torch.zeros(2)}
        >>> space = WeightSpace.independent(p)
        >>> updates, _ = rule.update(p, p, rule.init(space, p), space=space, step=torch.tensor(0))
        >>> updates["w"].shape
        torch.Size([2, 3])
    """

    kind: ClassVar[str] = "nfn"
    config_class: ClassVar[type[Any]] = NFNConfig
    coupled = True
    config: NFNConfig

    def reset_body(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`LearnedRule`."""
        config = self.config
        self.rest = PointwiseMLP(config.hidden, 1.0, generator)
        self.equivariant = HiddenNFLinear(
            space, config.hidden[-1], config.channels, sharing=config.sharing, generator=generator
        )
        self.readout = PointwiseMLP((config.channels, 1), config.output_scale, generator)

    @property
    def space_fingerprint(self) -> str | None:
        """See :class:`UpdateRule`."""
        return self.equivariant.fingerprint

    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """See :class:`LearnedRule`."""
        hidden = [one.through(lambda x: torch.relu_(self.rest(x))) for one in first]
        return [self.readout(x.contiguous()).squeeze(0) for x in self.equivariant(first, hidden, space)]
