"""Dimensions of spaces of equivariant maps, counted without the layers: null spaces, and averages over the group."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product

import torch
from torch import Tensor

from nfn_opt.layers import PerParameterLinear
from nfn_opt.weight_space import Features, Permutation, WeightSpace


def flatten(features: Features, space: WeightSpace) -> Tensor:
    """Features ``{name: (B, *axes, C)}`` as vectors ``(B, numel * C)``."""
    return torch.cat([features[name].flatten(1) for name in space.names], dim=1)


def unflatten(vectors: Tensor, space: WeightSpace) -> Features:
    """Vectors ``(B, numel)`` as features with one channel."""
    parts = vectors.split([spec.numel for spec in space.parameters], dim=1)
    return {
        spec.name: part.reshape(-1, *spec.view_shape, 1)
        for spec, part in zip(space.parameters, parts, strict=True)
    }


def images(space: WeightSpace, permutation: Permutation) -> Tensor:
    """Where a permutation takes each weight from: entry ``i`` of the permuted network is entry ``images[i]``."""
    places = torch.arange(space.numel, dtype=torch.float64)[None]
    return flatten(space.permute_features(unflatten(places, space), permutation), space)[0].long()


def identity(space: WeightSpace) -> dict[str, Tensor]:
    """The permutation that leaves all groups as they are."""
    return {name: torch.arange(size) for name, size in space.groups.items()}


def generators(space: WeightSpace) -> list[Permutation]:
    """The swaps of neighbours in every group; together they generate all permutations."""
    swaps = []
    for name, size in space.groups.items():
        for i in range(size - 1):
            index = torch.arange(size)
            index[[i, i + 1]] = index[[i + 1, i]]
            swaps.append(Permutation({**identity(space), name: index}))
    return swaps


def elements(space: WeightSpace) -> Iterator[Permutation]:
    """All elements of the group."""
    names = list(space.groups)
    for chosen in product(*(permutations(range(space.groups[name])) for name in names)):
        yield Permutation({name: torch.tensor(index) for name, index in zip(names, chosen, strict=True)})


def null_space_dimension(space: WeightSpace, *, tensors: int) -> int:
    """Dimension of the vectors (``tensors=1``) or matrices (``tensors=2``) that no swap of neighbours changes.

    For a matrix A this is P A = A P for every permutation matrix P of the weights. The constraints are stacked
    into one system M x = 0, whose null space is that of the Gram matrix of M.
    """
    size = space.numel**tensors
    gram = torch.zeros(size, size, dtype=torch.float64)
    unit = torch.eye(size, dtype=torch.float64)
    for permutation in generators(space):
        index = images(space, permutation)
        if tensors == 2:
            index = (index[:, None] * space.numel + index[None, :]).flatten()
        constraint = unit[index] - unit
        gram += constraint.T @ constraint
    return int((torch.linalg.eigvalsh(gram) < 1e-8).sum())


def average_of_fixed_points(space: WeightSpace, *, tensors: int) -> int:
    """The same dimension as the mean over the group of the trace, the number of entries left in place (Burnside)."""
    place = torch.arange(space.numel)
    traces = [int((images(space, g) == place).sum()) ** tensors for g in elements(space)]
    assert sum(traces) % len(traces) == 0, "a dimension is a whole number"
    return sum(traces) // len(traces)


def matrices(layer: PerParameterLinear) -> Tensor:
    """The map that each weight of a layer with one channel multiplies: ``(weights, numel, numel)``."""
    inputs = unflatten(torch.eye(layer.space.numel, dtype=torch.float64), layer.space)
    sizes = [weight.numel() for weight in layer.weights.values()]

    def apply(vector: Tensor) -> Tensor:
        parts = [p.view_as(w) for p, w in zip(vector.split(sizes), layer.weights.values(), strict=True)]
        state = {f"weights.{name}": part for name, part in zip(layer.weights, parts, strict=True)}
        return flatten(torch.func.functional_call(layer, state, (inputs,)), layer.space)

    units = torch.eye(sum(sizes), dtype=torch.float64)
    return torch.stack([apply(unit).T for unit in units])
