r"""The NF-Layers of arXiv:2302.14040 written out entry by entry, with loops, as the oracle of the fast layer.

For a network with weights :math:`W^{(i)}` of shape :math:`n_i \times n_{i-1}` and biases :math:`v^{(i)}`, where
kernel positions count as channels and a star is a mean over the index, the NP layer (Eq. (3) with its bias terms) is

.. math::
    H(W)^{(i)}_{jk} &= \sum_s \bigl(a^{i,s}_1 W^{(s)}_{\star\star} + a^{i,s}_2 v^{(s)}_\star\bigr)
        + b^i_1 W^{(i)}_{\star k} + b^i_2 W^{(i-1)}_{k \star} + b^i_3 v^{(i-1)}_k \\
        &+ c^i_1 W^{(i)}_{j \star} + c^i_2 W^{(i+1)}_{\star j} + c^i_3 v^{(i)}_j + d^i W^{(i)}_{jk} + e^i, \\
    H(v)^{(i)}_j &= \sum_s \bigl(a'^{i,s}_1 W^{(s)}_{\star\star} + a'^{i,s}_2 v^{(s)}_\star\bigr)
        + c'^i_1 W^{(i)}_{j \star} + c'^i_2 W^{(i+1)}_{\star j} + c'^i_3 v^{(i)}_j + e'^i.

In the HNP layer (its appendix) inputs and outputs are told apart: the column index of the first weight and the row
index of the last weight and bias are never averaged, and every coefficient carries them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tests.layers.blocks import Block


class Place(NamedTuple):
    """What a coefficient reads or writes: a tensor, the axes kept, and the input or output it stands at (HNP)."""

    name: str
    kept: tuple[int, ...]
    fixed: int | None = None


class Term(NamedTuple):
    """A value ``(B, kernel positions * C)`` that is read."""

    place: Place
    value: Tensor


@dataclass
class Coefficients:
    """Random matrices, drawn when the equation asks for them.

    Attributes:
        columns: Channels written for each parameter: kernel positions times output channels.
        generator: Source of the numbers.
    """

    columns: dict[str, int]
    generator: torch.Generator
    drawn: dict[tuple[Place, Place], Tensor] = field(default_factory=dict)
    constants: dict[Place, Tensor] = field(default_factory=dict)

    def apply(self, target: Place, term: Term) -> Tensor:
        """One coefficient times one value."""
        key = (target, term.place)
        if key not in self.drawn:
            self.drawn[key] = self._random(term.value.shape[1], self.columns[target.name])
        return term.value @ self.drawn[key]

    def constant(self, target: Place) -> Tensor:
        """The coefficient that multiplies nothing."""
        if target not in self.constants:
            self.constants[target] = self._random(self.columns[target.name])
        return self.constants[target]

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def blocks(self) -> dict[Block, Tensor]:
        """All matrices, those of several inputs or outputs put together."""
        grouped: dict[Block, dict[tuple[int, int], Tensor]] = {}
        for (target, source), matrix in self.drawn.items():
            key = Block(target.name, target.kept, source.name, source.kept)
            grouped.setdefault(key, {})[source.fixed or 0, target.fixed or 0] = matrix
        blocks = {}
        for key, parts in grouped.items():
            rows, columns = (1 + max(indices) for indices in zip(*parts, strict=True))
            blocks[key] = torch.cat(
                [torch.cat([parts[r, c] for c in range(columns)], 1) for r in range(rows)]
            )
        return blocks

    def joined_constants(self) -> dict[str, Tensor]:
        """All constants by parameter."""
        names = dict.fromkeys(place.name for place in self.constants)
        ordered = sorted(self.constants, key=lambda place: place.fixed or 0)
        return {n: torch.cat([self.constants[p] for p in ordered if p.name == n]) for n in names}


@dataclass
class Literal:
    """The equations for one network.

    Attributes:
        names: Names of weight and bias of every layer.
        W: Weights, each ``(B, n_out, n_in, kernel positions * C)``.
        v: Biases, each ``(B, n_out, C)``.
        coefficients: The layer's weights.
    """

    names: list[tuple[str, str]]
    W: list[Tensor]
    v: list[Tensor]
    coefficients: Coefficients

    def weight(self, i: int, *kept: int, fixed: int | None = None) -> Place:
        return Place(self.names[i][0], kept, fixed)

    def bias(self, i: int, *kept: int, fixed: int | None = None) -> Place:
        return Place(self.names[i][1], kept, fixed)

    def evaluate(self) -> dict[str, Tensor]:
        """The outputs: weights ``(B, n_out, n_in, kernel positions * C_out)``, biases ``(B, n_out, C_out)``."""
        out = {}
        for i, (weight, bias) in enumerate(self.names):
            rows, columns = self.W[i].shape[1:3]
            out[weight] = torch.stack(
                [
                    torch.stack([self._sum(self.weight_terms(i, j, k)) for k in range(columns)], 1)
                    for j in range(rows)
                ],
                1,
            )
            out[bias] = torch.stack([self._sum(self.bias_terms(i, j)) for j in range(rows)], 1)
        return out

    def _sum(self, terms: Iterator[tuple[Place, Term]]) -> Tensor:
        everything = list(terms)
        constant = next(target for target, _ in everything if not target.kept)
        total = self.coefficients.constant(constant).expand(self.W[0].shape[0], -1)
        for target, term in everything:
            total = total + self.coefficients.apply(target, term)
        return total

    def weight_terms(self, i: int, j: int, k: int) -> Iterator[tuple[Place, Term]]:
        """What is summed in entry (j, k) of weight i, each with the pattern that it is written by."""
        raise NotImplementedError

    def bias_terms(self, i: int, j: int) -> Iterator[tuple[Place, Term]]:
        """What is summed in entry j of bias i."""
        raise NotImplementedError


class LiteralNP(Literal):
    """Permutations of all neurons."""

    def means(self) -> Iterator[Term]:
        for s in range(len(self.W)):
            yield Term(self.weight(s), self.W[s].mean((1, 2)))
            yield Term(self.bias(s), self.v[s].mean(1))

    def weight_terms(self, i: int, j: int, k: int) -> Iterator[tuple[Place, Term]]:
        for term in self.means():
            yield self.weight(i), term
        yield self.weight(i, 1), Term(self.weight(i, 1), self.W[i][:, :, k].mean(1))
        if i > 0:
            yield self.weight(i, 1), Term(self.weight(i - 1, 0), self.W[i - 1][:, k].mean(1))
            yield self.weight(i, 1), Term(self.bias(i - 1, 0), self.v[i - 1][:, k])
        yield self.weight(i, 0), Term(self.weight(i, 0), self.W[i][:, j].mean(1))
        if i < len(self.W) - 1:
            yield self.weight(i, 0), Term(self.weight(i + 1, 1), self.W[i + 1][:, :, j].mean(1))
        yield self.weight(i, 0), Term(self.bias(i, 0), self.v[i][:, j])
        yield self.weight(i, 0, 1), Term(self.weight(i, 0, 1), self.W[i][:, j, k])

    def bias_terms(self, i: int, j: int) -> Iterator[tuple[Place, Term]]:
        for term in self.means():
            yield self.bias(i), term
        yield self.bias(i, 0), Term(self.weight(i, 0), self.W[i][:, j].mean(1))
        if i < len(self.W) - 1:
            yield self.bias(i, 0), Term(self.weight(i + 1, 1), self.W[i + 1][:, :, j].mean(1))
        yield self.bias(i, 0), Term(self.bias(i, 0), self.v[i][:, j])


class LiteralHNP(Literal):
    """Permutations of hidden neurons, for networks of two layers or more."""

    def means(self) -> Iterator[Term]:
        last = len(self.W) - 1
        for k in range(self.W[0].shape[2]):
            yield Term(self.weight(0, fixed=k), self.W[0][:, :, k].mean(1))
        for s in range(1, last):
            yield Term(self.weight(s), self.W[s].mean((1, 2)))
        for j in range(self.W[last].shape[1]):
            yield Term(self.weight(last, fixed=j), self.W[last][:, j].mean(1))
        for s in range(last):
            yield Term(self.bias(s), self.v[s].mean(1))
        for j in range(self.v[last].shape[1]):
            yield Term(self.bias(last, fixed=j), self.v[last][:, j])

    def neuron(self, i: int, j: int) -> Iterator[Term]:
        """What belongs to neuron j of hidden layer i: its bias, incoming and outgoing weights."""
        yield Term(self.bias(i, 0), self.v[i][:, j])
        if i == 0:
            for k in range(self.W[0].shape[2]):
                yield Term(self.weight(0, 0, fixed=k), self.W[0][:, j, k])
        else:
            yield Term(self.weight(i, 0), self.W[i][:, j].mean(1))
        if i + 1 == len(self.W) - 1:
            for output in range(self.W[i + 1].shape[1]):
                yield Term(self.weight(i + 1, 1, fixed=output), self.W[i + 1][:, output, j])
        else:
            yield Term(self.weight(i + 1, 1), self.W[i + 1][:, :, j].mean(1))

    def weight_terms(self, i: int, j: int, k: int) -> Iterator[tuple[Place, Term]]:
        last = len(self.W) - 1
        fixed = k if i == 0 else j if i == last else None
        for term in self.means():
            yield self.weight(i, fixed=fixed), term
        if i < last:
            for term in self.neuron(i, j):
                yield self.weight(i, 0, fixed=fixed), term
        if i > 0:
            for term in self.neuron(i - 1, k):
                yield self.weight(i, 1, fixed=fixed), term
        if 0 < i < last:
            yield self.weight(i, 0, 1), Term(self.weight(i, 0, 1), self.W[i][:, j, k])

    def bias_terms(self, i: int, j: int) -> Iterator[tuple[Place, Term]]:
        last = len(self.W) - 1
        fixed = j if i == last else None
        for term in self.means():
            yield self.bias(i, fixed=fixed), term
        if i < last:
            for term in self.neuron(i, j):
                yield self.bias(i, 0), term
