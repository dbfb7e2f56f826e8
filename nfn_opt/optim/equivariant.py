"""NF-Layers in a rule: on the hidden channels of all tensors, channels first as the rules have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nfn_opt.layers import NFLinear, RelationLinear
from nfn_opt.optim.first_layer import Preactivation
from nfn_opt.weight_space import Axis, TensorSpec, WeightSpace

Sharing = Literal["per_parameter", "by_relation"]


class HiddenNFLinear(nn.Module):
    """An equivariant linear layer, from one list of ``(channels, n)`` to another.

    Args:
        space: The weight space; only needed with ``sharing="per_parameter"``.
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        sharing: ``"by_relation"``: outer parameters that fit every architecture. ``"per_parameter"``: outer
            parameters of the one space, which is then the only one that :meth:`forward` takes.
        generator: Source of the initial weights.

    Raises:
        ValueError: If the outer parameters belong to a space and none is given.
    """

    def __init__(
        self,
        space: WeightSpace | None,
        in_channels: int,
        out_channels: int,
        *,
        sharing: Sharing,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if sharing == "per_parameter" and space is None:
            raise ValueError(
                "sharing='per_parameter' makes outer parameters for one weight space, and none was given; pass "
                "space=WeightSpace.from_module(model, inputs), or take sharing='by_relation'"
            )
        self.space = space if sharing == "per_parameter" else None
        # By relation the parameters are the same for all spaces, but a relation that the space of construction
        # does not have starts at zero; so it is one that has all common ones.
        built = representative_space() if self.space is None else self.space
        self.layer = NFLinear(built, in_channels, out_channels, sharing=sharing, generator=generator)

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the one space, ``None`` if the layer serves all."""
        return None if self.space is None else self.space.fingerprint

    def forward(
        self, first: Sequence[Preactivation], hidden: Sequence[Tensor], space: WeightSpace
    ) -> list[Tensor]:
        """Mix the hidden channels of all tensors.

        Args:
            first: Says which tensor is which.
            hidden: For each ``(in_channels, n)``.
            space: Their weight space.

        Raises:
            ValueError: If the layer was made for another space, or not all its tensors are there.
        """
        if self.space is not None and space.parameters != self.space.parameters:
            raise ValueError(
                f"the rule's outer parameters belong to the weight space {self.space.fingerprint}, got "
                f"{space.fingerprint}; use the space that it was made for, or a rule with sharing='by_relation'"
            )
        return apply_layer(self.layer, first, hidden, space)


def apply_layer(
    layer: nn.Module, first: Sequence[Preactivation], hidden: Sequence[Tensor], space: WeightSpace
) -> list[Tensor]:
    """Apply a layer on weight features to hidden channels ``(C, n)``, whose first axis becomes the last."""
    features = {
        one.segment.name: h.t().reshape(1, *one.segment.spec.view_shape, len(h))
        for one, h in zip(first, hidden, strict=True)
    }
    mixed = layer(features, space) if isinstance(layer, RelationLinear) else layer(features)
    outputs = (mixed[one.segment.name] for one in first)
    return [x.reshape(-1, x.shape[-1]).t() for x in outputs]


def neighbours_layer(channels: int, scale: float, generator: torch.Generator) -> RelationLinear:
    """A layer by which a weight hears all others that stand in a relation to it, and not itself.

    Args:
        channels: Channels that come in and go out.
        scale: Factor of its initial weights.
        generator: Source of these.
    """
    layer = RelationLinear(
        representative_space(), channels, channels, bias=False, generator=generator, own=False
    )
    layer.weight.data.mul_(scale)
    return layer


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
