"""Weights of the layers of the ``nfn`` package (0.1.2) as weights of our linear layer, and features both ways.

The package's HNP layer has more weights than maps: it reads the means over inputs and outputs besides the inputs and
outputs themselves, and every sub-layer has a bias. These are added up here. It also lacks one map, from the last
hidden bias to the last weight, which becomes zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
from nfn.layers import HNPLinear, NPLinear
from torch import Tensor, nn

from nfn_opt.layers import PerParameterLinear
from nfn_opt.weight_space import Features, WeightSpace
from tests.layers.blocks import Block, load_blocks


class Part(NamedTuple):
    """A part of the inputs of one of nfn's sub-layers.

    Attributes:
        source: Index of the parameter in the space.
        read: Axes that are kept and run over neurons.
        each: Whether inputs or outputs, where the source has them fixed, are told apart (else averaged).
    """

    source: int
    read: tuple[int, ...]
    each: bool = False


class SubLayer(NamedTuple):
    """One of nfn's sub-layers: what it writes, and the parts of its inputs in order."""

    name: str
    target: int
    written: tuple[int, ...]
    parts: list[Part]


@dataclass(frozen=True)
class Converter:
    """Rows and columns of nfn's matrices, which run over ``(C, *kernel, end)``, in our order ``(end, *kernel, C)``.

    Attributes:
        space: The weight space: weight and bias of every layer.
        in_channels: C of the rows.
        out_channels: C of the columns.
    """

    space: WeightSpace
    in_channels: int
    out_channels: int

    def end(self, index: int) -> int:
        """Number of inputs or outputs that a parameter tells apart; 1 for those that hidden neurons surround."""
        spec = self.space.parameters[index]
        return prod(axis.size for axis in spec.axes[:2] if not axis.permutable)

    def kernel(self, index: int) -> int:
        """Number of kernel positions."""
        return prod(self.space.parameters[index].view_shape[2:])

    def rows(self, matrix: Tensor, part: Part) -> Tensor:
        """The rows of one part, spread over the inputs or outputs where nfn averages them."""
        end, columns = self.end(part.source), matrix.shape[1]
        kept = end if part.each else 1
        matrix = matrix.reshape(self.in_channels, self.kernel(part.source), kept, columns)
        matrix = matrix.expand(-1, -1, end, -1) * (kept / end)
        return matrix.permute(2, 1, 0, 3).reshape(-1, columns)

    def columns(self, matrix: Tensor, target: int) -> Tensor:
        """The columns of a sub-layer."""
        shape = (matrix.shape[0], self.out_channels, self.kernel(target), self.end(target))
        return matrix.reshape(shape).permute(0, 3, 2, 1).reshape(matrix.shape)


def sub_layers_np(layers: int) -> Iterator[SubLayer]:
    """The sub-layers of ``nfn.layers.NPLinear``, weight ``i`` being parameter ``2 * i`` and its bias the next."""
    means = [Part(2 * s, ()) for s in range(layers)] + [Part(2 * s + 1, ()) for s in range(layers)]
    for i in range(layers):
        weight, bias = 2 * i, 2 * i + 1
        row = [Part(weight, (1,))] + ([Part(weight - 2, (0,)), Part(bias - 2, (0,))] if i > 0 else [])
        column = [Part(weight, (0,)), Part(bias, (0,))] + ([Part(weight + 2, (1,))] if i < layers - 1 else [])
        yield SubLayer(f"layer_{i}", weight, (0, 1), [Part(weight, (0, 1))])
        yield SubLayer(f"layer_{i}_rc", weight, (), means)
        yield SubLayer(f"layer_{i}_r", weight, (1,), row)
        yield SubLayer(f"layer_{i}_c", weight, (0,), column)
        yield SubLayer(f"bias_{i}", bias, (0,), column)
        yield SubLayer(f"bias_{i}_rc", bias, (), means)


def sub_layers_hnp(layers: int) -> Iterator[SubLayer]:
    """The sub-layers of ``nfn.layers.HNPLinear``."""
    last = 2 * (layers - 1)
    means = [Part(2 * s, ()) for s in range(layers)] + [Part(2 * s + 1, ()) for s in range(layers)]
    means += [Part(0, (), each=True), Part(last, (), each=True), Part(last + 1, (), each=True)]
    from_first, from_last = Part(0, (0,), each=True), Part(last, (1,), each=True)
    two = layers == 2
    first = [from_first, Part(2, (1,)), Part(1, (0,))] + ([from_last] if two else [])
    yield SubLayer("w0_rpt", 0, (0,), first)
    yield SubLayer("w0_rbdcst", 0, (), means)
    yield SubLayer("bias_0", 1, (0,), first)
    yield SubLayer("bias_0_rc", 1, (), means)
    for i in range(1, layers - 1):
        weight, bias = 2 * i, 2 * i + 1
        row = [Part(weight, (1,)), Part(weight - 2, (0,)), Part(bias - 2, (0,))]
        column = [Part(weight, (0,)), Part(bias, (0,)), Part(weight + 2, (1,))]
        row += [from_first] if i == 1 else []
        column += [from_last] if i == layers - 2 else []
        yield SubLayer(f"layer_{i}", weight, (0, 1), [Part(weight, (0, 1))])
        yield SubLayer(f"layer_{i}_rc", weight, (), means)
        yield SubLayer(f"layer_{i}_r", weight, (1,), row)
        yield SubLayer(f"layer_{i}_c", weight, (0,), column)
        yield SubLayer(f"bias_{i}", bias, (0,), column)
        yield SubLayer(f"bias_{i}_rc", bias, (), means)
    yield SubLayer("wfin_cpt", last, (1,), [from_last, Part(last - 2, (0,))] + ([from_first] if two else []))
    yield SubLayer("wfin_cbdcst", last, (), means)
    yield SubLayer("bias_fin_rc", last + 1, (), means)


def from_nfn(
    theirs: nn.Module, space: WeightSpace, in_channels: int, out_channels: int
) -> PerParameterLinear:
    """Our layer with the weights of one of nfn's, in its dtype."""
    names, convert = space.names, Converter(space, in_channels, out_channels)
    blocks: dict[Block, Tensor] = {}
    constants: dict[str, Tensor] = {}
    layers = len(names) // 2
    hidden = isinstance(theirs, HNPLinear)
    for sub in sub_layers_hnp(layers) if hidden else sub_layers_np(layers):
        module: Any = getattr(theirs, sub.name)
        matrix = convert.columns(module.weight.detach().flatten(1).T, sub.target)
        sizes = [
            in_channels * convert.kernel(p.source) * (convert.end(p.source) if p.each else 1)
            for p in sub.parts
        ]
        for part, rows in zip(sub.parts, matrix.split(sizes), strict=True):
            key = Block(names[sub.target], sub.written, names[part.source], part.read)
            block = convert.rows(rows, part)
            blocks[key] = blocks[key] + block if key in blocks else block
        constant = convert.columns(module.bias.detach()[None], sub.target)[0]
        target = names[sub.target]
        constants[target] = constants[target] + constant if target in constants else constant
    if hidden:
        size = out_channels * convert.kernel(len(names) - 2) * convert.end(len(names) - 2)
        blocks[Block(names[-2], (1,), names[-3], (0,))] = torch.zeros(in_channels, size)
    dtype = next(theirs.parameters()).dtype
    layer = PerParameterLinear(space, in_channels, out_channels).to(dtype)
    return load_blocks(layer, blocks, constants)


def make_nfn(space: WeightSpace, features: Features, out_channels: int) -> nn.Module:
    """The package's layer for a space: NP or HNP by its symmetry."""
    example = to_nfn(features)
    kind = NPLinear if space.symmetry == "all" else HNPLinear
    channels = example.weights[0].shape[1]
    return kind(network_spec_from_wsfeat(example), channels, out_channels)


def to_nfn(features: Features) -> WeightSpaceFeatures:
    """Channels last to channels second; features of weights and biases by turns."""
    tensors = [tensor.movedim(-1, 1) for tensor in features.values()]
    return WeightSpaceFeatures(tensors[::2], tensors[1::2])


def to_ours(theirs: WeightSpaceFeatures, space: WeightSpace) -> Features:
    """Channels second to channels last."""
    tensors = [tensor.movedim(1, -1) for pair in theirs for tensor in pair]
    return dict(zip(space.names, tensors, strict=True))
