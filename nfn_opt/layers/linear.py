"""The equivariant linear layer on weight features."""

from __future__ import annotations

from typing import Literal

import torch

from nfn_opt.layers.by_relation import RelationLinear
from nfn_opt.layers.per_parameter import PerParameterLinear
from nfn_opt.weight_space import WeightSpace

__all__ = ["NFLinear", "PerParameterLinear", "RelationLinear", "Sharing"]

Sharing = Literal["per_parameter", "by_relation"]


def NFLinear(  # noqa: N802  (reads as the layer that it makes)
    space: WeightSpace,
    in_channels: int,
    out_channels: int,
    *,
    sharing: Sharing = "per_parameter",
    bias: bool = True,
    generator: torch.Generator | None = None,
    compile: bool = False,  # noqa: A002  (torch's own word)
    checkpoint: bool = False,
) -> PerParameterLinear | RelationLinear:
    """The equivariant linear layer of a weight space, with the chosen sharing of its weights.

    Args:
        space: The weight space of the features. For an HNP layer take ``symmetry="hidden"``, for NP ``"all"``.
        in_channels: Channels of the features that come in.
        out_channels: Channels of the features that go out.
        sharing: ``"per_parameter"``: every equivariant map has its own weight (NFN, UNF).
            ``"by_relation"``: one set of weights for all architectures; see :mod:`nfn_opt.layers.relations`.
        bias: Whether to add equivariant constants.
        generator: Source of the initial weights.
        compile: Whether to run under ``torch.compile``. The first call takes seconds to minutes. Where no compiler
            is found the layer warns once and runs as it is. Names in the ``state_dict`` stay the same.
        checkpoint: Whether to keep no intermediate results for the backward pass but form them again
            (:func:`torch.utils.checkpoint.checkpoint`): less memory, the same gradients.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> layer = NFLinear(space, 1, 8)
        >>> layer(space.features([model]))["0.weight"].shape
        torch.Size([1, 4, 2, 8])
    """
    if sharing not in ("per_parameter", "by_relation"):
        raise ValueError(f"sharing is {sharing!r}, expected 'per_parameter' or 'by_relation'; see NFLinear")
    kind: type[PerParameterLinear] | type[RelationLinear] = (
        PerParameterLinear if sharing == "per_parameter" else RelationLinear
    )
    return kind(
        space,
        in_channels,
        out_channels,
        bias=bias,
        generator=generator,
        compile=compile,
        checkpoint=checkpoint,
    )
