"""Masks of exactly the sparsity that is asked for: of the largest scores, of the largest weights, at random.

A mask is bool, True where a weight is kept; masks of N networks are a dict of tensors of shape (N, *shape), for
weights, not for biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = [
    "Masks",
    "Scope",
    "apply_masks",
    "kept_counts",
    "kept_share",
    "magnitude_masks",
    "overlap",
    "random_masks",
    "random_masks_like",
    "top_masks",
]

Masks = dict[str, Tensor]
"""For each prunable weight a bool tensor of shape (N, *shape)."""

Scope = Literal["global", "layer"]
"""Whether the weights of all layers compete with each other, or each layer is pruned on its own."""


def kept_counts(shapes: Mapping[str, tuple[int, ...]], sparsity: float, scope: Scope) -> dict[str, int] | int:
    """How many weights a mask keeps: of all layers together (global), or of each (layer); at least one.

    Raises:
        ValueError: If the sparsity is not in [0, 1), or there is no such scope.

    Example:
        >>> kept_counts({"a": (10, 20), "b": (2, 10)}, 0.9, "global")
        22
        >>> kept_counts({"a": (10, 20), "b": (2, 10)}, 0.9, "layer")
        {'a': 20, 'b': 2}
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}, expected at least 0 and less than 1; 0.95 keeps 5 %")
    if scope not in get_args(Scope):
        raise ValueError(f"scope is {scope!r}, expected one of {', '.join(get_args(Scope))}")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if scope == "global":
        return max(1, round((1 - sparsity) * sum(sizes.values())))
    return {name: max(1, round((1 - sparsity) * size)) for name, size in sizes.items()}


def top_masks(scores: Mapping[str, Tensor], sparsity: float, *, scope: Scope = "global") -> Masks:
    """Keep the weights with the largest scores.

    Args:
        scores: For each weight a number, tensors of shape (N, *shape).
        sparsity: Share of the weights that is pruned, in [0, 1).
        scope: "global": the largest scores of the whole network; "layer": of each layer.

    Raises:
        ValueError: If a score is NaN, or the sparsity or scope is out of range.

    Example:
        >>> masks = top_masks({"a": torch.tensor([[3.0, 1.0]]), "b": torch.tensor([[2.0, 0.0]])}, 0.5)
        >>> masks["a"].tolist(), masks["b"].tolist()
        ([[True, False]], [[True, False]])
    """
    for name, value in scores.items():
        if value.isnan().any():
            raise ValueError(
                f"scores[{name!r}] has NaN, expected numbers; the network or generator has diverged"
            )
    counts = kept_counts({name: tuple(value.shape[1:]) for name, value in scores.items()}, sparsity, scope)
    if isinstance(counts, int):
        flat = torch.cat([value.flatten(1) for value in scores.values()], 1)
        parts = _top(flat, counts).split([value[0].numel() for value in scores.values()], 1)
    else:
        parts = tuple(_top(value.flatten(1), counts[name]) for name, value in scores.items())
    return {
        name: part.reshape(value.shape) for (name, value), part in zip(scores.items(), parts, strict=True)
    }


def magnitude_masks(params: Mapping[str, Tensor], sparsity: float, *, scope: Scope = "global") -> Masks:
    """Keep the weights of largest magnitude; parameters whose name does not end in "weight" have no mask.

    Args:
        params: Parameters of N networks, tensors of shape (N, *shape).
        sparsity: Share of the weights that is pruned.
        scope: As in `top_masks`.
    """
    magnitudes = {name: value.abs() for name, value in params.items() if name.endswith("weight")}
    return top_masks(magnitudes, sparsity, scope=scope)


def random_masks(
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    sparsity: float,
    generator: torch.Generator,
    *,
    scope: Scope = "global",
) -> Masks:
    """Masks drawn uniformly among all of that sparsity.

    Args:
        shapes: Shape of each weight.
        count: Number of networks.
        sparsity: Share of the weights that is pruned.
        generator: Source of the masks.
        scope: "global": only the number of all weights that are kept is given; "layer": that of each layer.
    """
    noise = {name: torch.rand(count, *shape, generator=generator) for name, shape in shapes.items()}
    return top_masks(noise, sparsity, scope=scope)


def random_masks_like(
    masks: Mapping[str, Tensor], generator: torch.Generator, *, axes: Literal["layer", "inputs"] = "layer"
) -> Masks:
    """Shuffle masks: the same number of weights is kept in each layer, or even of each input of a layer.

    Args:
        masks: Masks of N networks.
        generator: Source of the order.
        axes: "layer": all weights of a layer are shuffled. "inputs": those of each input (of each kernel position of
            it) over the outputs, so that each input keeps its number of weights; a random mask that knows
            which pixels matter.

    Example:
        >>> masks = {"a": torch.tensor([[[True, False], [True, False], [False, False]]])}
        >>> shuffled = random_masks_like(masks, torch.Generator().manual_seed(0), axes="inputs")
        >>> shuffled["a"].sum(1).tolist()
        [[2, 0]]
    """
    shuffled: Masks = {}
    for name, mask in masks.items():
        rows = mask.flatten(1) if axes == "layer" else mask.flatten(2).transpose(1, 2).flatten(0, 1)
        noise = torch.rand(rows.shape, generator=generator)
        moved = rows.gather(1, noise.argsort(1))
        if axes == "inputs":
            moved = moved.unflatten(0, (len(mask), -1)).transpose(1, 2)
        shuffled[name] = moved.reshape(mask.shape)
    return shuffled


def apply_masks(params: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters with pruned weights set to zero; those without mask, biases, as they are."""
    return {name: value * masks[name] if name in masks else value.clone() for name, value in params.items()}


def kept_share(masks: Mapping[str, Tensor]) -> Tensor:
    """Share of the weights that each network keeps, shape (N,)."""
    kept = sum(mask.flatten(1).sum(1) for mask in masks.values())
    assert isinstance(kept, Tensor)
    return kept / sum(mask[0].numel() for mask in masks.values())


def overlap(masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Tensor:
    """Share of the weights that `others` keep that `masks` keep too, for each network, shape (N,).

    Example:
        >>> one, other = {"a": torch.tensor([[True, True, False]])}, {"a": torch.tensor([[False, True, True]])}
        >>> overlap(one, other).tolist()
        [0.5]
    """
    both = torch.stack([(masks[name] & other).flatten(1).sum(1) for name, other in others.items()]).sum(0)
    return both / torch.stack([other.flatten(1).sum(1) for other in others.values()]).sum(0)


def _top(rows: Tensor, count: int) -> Tensor:
    """True at the `count` largest of each row; ties go to one of them."""
    mask = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    return mask.scatter_(1, rows.topk(count, 1, sorted=False).indices, True)
