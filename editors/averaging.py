r"""Several INRs as one: the mean of what they show, for editors that write several changes of an INR.

The mean of :math:`k` SIRENs of width :math:`n` is exactly one SIREN of width :math:`kn`: every layer but the last has
the layers of all in blocks that do not hear each other, and the last one reads all of them, divided by :math:`k`,

.. math::
    W_1 = \begin{pmatrix} W_1^1 \\ \vdots \\ W_1^k \end{pmatrix} \qquad
    W_l = \operatorname{diag}(W_l^1, \dots, W_l^k) \qquad
    W_L = \tfrac 1 k \begin{pmatrix} W_L^1 & \cdots & W_L^k \end{pmatrix}

It has :math:`k` times as many weights that are not zero, and between hidden layers :math:`k^2` times as many in all, so
that a batch of the :math:`k` INRs is a little cheaper to render. In such a batch those of one mean are neighbours.
(Editors that write several INRs for each: "output capacity expansion" of arXiv:2602.01083.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from editors.inr_set import InrSet
from editors.siren import SirenConfig, check_parameters

__all__ = [
    "average_sirens",
    "averaged_config",
    "averaged_set",
    "interleave",
    "mean_of_groups",
    "repeat_each",
]

AVERAGE_OF = "average_of"
"""Key of an averaged set's ``meta``: of how many INRs each is the mean."""


def averaged_config(config: SirenConfig, count: int) -> SirenConfig:
    """Architecture of the mean of `count` SIRENs.

    Example:
        >>> averaged_config(SirenConfig(), 2).layer_sizes
        (2, 64, 64, 1)
    """
    return dataclasses.replace(config, hidden_width=count * config.hidden_width)


def average_sirens(params: Mapping[str, Tensor], count: int, config: SirenConfig) -> dict[str, Tensor]:
    """Parameters of SIRENs that show the mean of each `count` neighbours of a batch; linear and differentiable.

    Args:
        params: ``{name: (B * count, *shape)}``.
        count: SIRENs of one mean.
        config: Architecture of each.

    Returns:
        ``{name: (B, *shape)}`` of the architecture ``averaged_config(config, count)``.

    Raises:
        ValueError: If the parameters are not those of the architecture, or not of so many SIRENs.

    Example:
        >>> from editors.siren import coordinates, initial_parameters, siren_apply
        >>> config, grid = SirenConfig(), coordinates(4, 4)
        >>> params = initial_parameters(config, 6, torch.Generator().manual_seed(0))
        >>> mean = siren_apply(params, grid, config).unflatten(0, (2, 3)).mean(1)
        >>> wide = siren_apply(average_sirens(params, 3, config), grid, averaged_config(config, 3))
        >>> torch.allclose(wide, mean, atol=1e-5)
        True
    """
    check_parameters(params, config)
    total, last = len(params["layers.0.bias"]), f"layers.{config.hidden_layers}"
    if count < 1 or total % count:
        raise ValueError(f"there are {total} SIRENs, expected a multiple of {count}, those of one mean")
    wide = {}
    for name, value in params.items():
        each = value.unflatten(0, (total // count, count))
        if name == f"{last}.bias":
            wide[name] = each.mean(1)
        elif name == f"{last}.weight":
            wide[name] = each.movedim(1, 2).flatten(2) / count
        elif name.endswith("bias") or name == "layers.0.weight":
            wide[name] = each.flatten(1, 2)
        else:
            blocks = torch.diag_embed(each.movedim(1, -1), dim1=1, dim2=3)
            wide[name] = blocks.flatten(3, 4).flatten(1, 2)
    return wide


def averaged_set(inrs: InrSet, params: Mapping[str, Tensor], count: int) -> InrSet:
    """A set in which each INR has become the mean of `count` INRs of the same architecture.

    Args:
        inrs: The set before.
        params: ``{name: (B * count, *shape)}``.
        count: INRs of one mean; ``meta["average_of"]`` of the new set.
    """
    return dataclasses.replace(
        inrs,
        params=average_sirens(params, count, inrs.config),
        config=averaged_config(inrs.config, count),
        psnr=torch.full_like(inrs.psnr, torch.nan),
        meta={**inrs.meta, AVERAGE_OF: count},
    )


def interleave(several: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Batches ``{name: (B, ...)}`` as one ``{name: (B * count, ...)}`` with the same member of all as neighbours."""
    if len(several) == 1:
        return dict(several[0])
    return {name: torch.stack([one[name] for one in several], 1).flatten(0, 1) for name in several[0]}


def repeat_each(params: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """A batch with `count` of each member, as neighbours."""
    if count == 1:
        return dict(params)
    return {name: value.repeat_interleave(count, 0) for name, value in params.items()}


def mean_of_groups(values: Tensor, groups: int) -> Tensor:
    """The mean of neighbours, (groups, ...), of values (groups * count, ...)."""
    return values if len(values) == groups else values.unflatten(0, (groups, -1)).mean(1)
