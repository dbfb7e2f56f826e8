"""Weights of the linear layer by what they mean: which reading of which tensor they multiply, and what they write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nfn_opt.layers import PerParameterLinear
from nfn_opt.layers.patterns import Pattern
from nfn_opt.layers.plan import plan_per_parameter


class Block(NamedTuple):
    """A linear map: axes of ``source`` that are kept while the others are averaged, and where they go in ``target``.

    For spaces in which no tensor has one group twice, so that the axes that are kept say all.
    """

    target: str
    written: tuple[int, ...]
    source: str
    read: tuple[int, ...]


def _kept(pattern: Pattern) -> tuple[int, ...]:
    assert not pattern.diagonal
    return tuple(sorted(block[0] for block in pattern.connected))


def load_blocks(
    layer: PerParameterLinear, blocks: Mapping[Block, Tensor], constants: Mapping[str, Tensor]
) -> PerParameterLinear:
    """Copy weights into a layer; every block of the layer must be given, and nothing else.

    Args:
        layer: The layer, in the dtype of the weights.
        blocks: For each map its matrix: rows are ``(*fixed axes of source, C_in)`` flattened, columns
            ``(*fixed axes of target, C_out)``.
        constants: For each parameter the constants, ``(*fixed axes, C_out)`` flattened.
    """
    used = set()
    assert layer.bias is not None
    with torch.no_grad():
        for step, weight in zip(plan_per_parameter(layer.space), layer.weights.values(), strict=True):
            rows = []
            for reading in step.readings:
                keys = [Block(w.name, _kept(w), reading.name, _kept(reading)) for w in step.writings]
                rows.append(torch.cat([blocks[key] for key in keys], dim=1))
                used.update(keys)
            weight.copy_(torch.cat(rows))
            if not step.signature:
                layer.bias.copy_(torch.cat([constants[w.name] for w in step.writings]))
    assert used == set(blocks), f"the layer has no block for {set(blocks) - used}"
    return layer
