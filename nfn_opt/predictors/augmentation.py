"""Networks with their neurons permuted at random, each by a permutation of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nfn_opt.weight_space import WeightSpace

__all__ = ["permute_each"]


def permute_each(
    params: Mapping[str, Tensor], space: WeightSpace, generator: torch.Generator
) -> dict[str, Tensor]:
    """Permute the neurons of a batch of networks, of every network in another way.

    Args:
        params: Weights ``{name: (B, *shape)}``.
        space: Their weight space; what its groups leave unchanged, the networks compute, stays the same.
        generator: Source of the permutations, on the CPU.

    Returns:
        Weights of the same shapes.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(5)})
        >>> moved = permute_each({"w": torch.arange(5.0).repeat(2, 1)}, space, torch.Generator().manual_seed(0))
        >>> moved["w"].sort().values.tolist()
        [[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0, 4.0]]
    """
    batch = len(params[space.names[0]])
    orders = {
        name: torch.rand(batch, size, generator=generator).argsort(1) for name, size in space.groups.items()
    }
    cells = space.cells.split(space.as_features(params))
    for spec in space.cells.space.parameters:
        for position, axis in enumerate(spec.axes):
            if axis.permutable:
                cells[spec.name] = _reorder(cells[spec.name], orders[axis.name], 1 + position)
    return space.from_features(space.cells.join(cells))


def _reorder(tensor: Tensor, order: Tensor, dim: int) -> Tensor:
    """Row b of the result is row b of the tensor with the entries of an axis in the order of row b of the orders."""
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = order.shape
    return torch.take_along_dim(tensor, order.to(tensor.device).reshape(shape), dim)
