"""The neural functional rule: a per-weight network whose last layers see the whole weight space."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nfn_opt.layers import NFLinear, RelationLinear
from nfn_opt.optim.first_layer import Preactivation
from nfn_opt.optim.learned import LearnedConfig, LearnedRule
from nfn_opt.optim.pointwise import PointwiseMLP
from nfn_opt.optim.rule import register_rule
from nfn_opt.weight_space import Axis, TensorSpec, WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFNConfig(LearnedConfig):
    """Options of :class:`NFNRule`: those of :class:`LearnedConfig`, and these.

    Attributes:
        channels: Channels of the equivariant layer.
        sharing: ``"by_relation"``: outer parameters that fit every architecture. ``"per_parameter"``: outer
            parameters of one weight space, which is given when the rule is made.
    """

    channels: int = 8
    sharing: Literal["by_relation", "per_parameter"] = "by_relation"

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
    coupled: ClassVar[bool] = True
    config: NFNConfig

    def reset_body(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """See :class:`LearnedRule`."""
        config = self.config
        shared = config.sharing == "by_relation"
        if not shared and space is None:
            raise ValueError(
                "sharing='per_parameter' makes outer parameters for one weight space, and none was given; pass "
                "space=WeightSpace.from_module(model, inputs), or take sharing='by_relation'"
            )
        self._space = None if shared else space
        self.rest = PointwiseMLP(config.hidden, 1.0, generator)
        self.equivariant = NFLinear(
            representative_space() if space is None else space,
            config.hidden[-1],
            config.channels,
            sharing=config.sharing,
            generator=generator,
        )
        self.readout = PointwiseMLP((config.channels, 1), config.output_scale, generator)

    @property
    def space_fingerprint(self) -> str | None:
        """See :class:`UpdateRule`."""
        return None if self._space is None else self._space.fingerprint

    def body(self, first: list[Preactivation], space: WeightSpace) -> list[Tensor]:
        """See :class:`LearnedRule`."""
        features = {one.segment.name: self._features(one) for one in first}
        if isinstance(self.equivariant, RelationLinear):
            mixed = self.equivariant(features, space)
        else:
            self._check_space(space)
            mixed = self.equivariant(features)
        channels = self.config.channels
        return [self.readout(mixed[one.segment.name].reshape(-1, channels).t()).squeeze(0) for one in first]

    def _features(self, first: Preactivation) -> Tensor:
        """What the equivariant layer sees of one tensor, ``(1, *axes, hidden[-1])``."""
        hidden = torch.cat([torch.relu_(self.rest(block)) for block in first.blocks()], dim=1)
        return hidden.t().reshape(1, *first.segment.spec.view_shape, len(hidden))

    def _check_space(self, space: WeightSpace) -> None:
        assert self._space is not None
        if space.parameters != self._space.parameters:
            raise ValueError(
                f"the rule's outer parameters belong to the weight space {self._space.fingerprint}, got "
                f"{space.fingerprint}; use the space that it was made for, or a rule with sharing='by_relation'"
            )


def representative_space() -> WeightSpace:
    """A small multilayer perceptron, in which tensors stand in all common relations to one another.

    Example:
        >>> print(representative_space().parameters[2])
        1.weight (h2:3, h1:3)
    """
    axes = [Axis("inputs", 3, False), *(Axis(f"h{i}", 3) for i in (1, 2, 3)), Axis("outputs", 3, False)]
    specs: list[TensorSpec] = []
    for i in range(4):
        out, into = axes[i + 1], dataclasses.replace(axes[i], role="in")
        specs += [TensorSpec(f"{i}.weight", (3, 3), (out, into)), TensorSpec(f"{i}.bias", (3,), (out,))]
    return WeightSpace(tuple(specs))
