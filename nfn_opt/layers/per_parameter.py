"""The equivariant linear layer with a weight of its own for every map."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.layers.base import LinearBase, normal, orthogonal, variance_shares
from nfn_opt.layers.movement import Target, gather, mix, scatter
from nfn_opt.layers.patterns import Pattern
from nfn_opt.layers.plan import Step, identity_map, plan_per_parameter
from nfn_opt.layers.pool import pool_of
from nfn_opt.layers.readings import Readings, concatenate
from nfn_opt.weight_space import Features, WeightSpace


class PerParameterLinear(LinearBase):
    r"""Every equivariant linear map between the parameters of one architecture, each with its own weight.

    For parameters :math:`p, q` of the space the output is

    .. math:: Y_q = \sum_p \sum_{\pi} \mathrm{write}_\pi\bigl(A_{pq\pi}\, \mathrm{read}_\pi(X_p)\bigr) + b_q

    over the partitions :math:`\pi` of the axes of both that respect the groups (Thm. 1 of arXiv:2402.05232; for
    MLPs and CNNs Eqs. (3) and (18) of arXiv:2302.14040). Fixed axes (kernel positions; under ``symmetry="hidden"``
    also inputs and outputs) count as channels. Reading averages, so weights do not depend on widths in scale.
    Partitions with more blocks over a group than it has entries are left out, since their maps are sums of others:
    there are exactly as many weights as independent maps.

    The number of weights does not depend on the sizes of groups, but grows with the square of the number of
    parameters, of kernel positions and of fixed inputs and outputs: every mean is sent to every tensor. For the 62
    tensors of a ResNet-18 it is 82,000 maps under ``symmetry="all"``, but 6.6 million with the 1000 outputs fixed,
    each with ``in_channels * out_channels`` weights. Take ``sharing="by_relation"`` or ``symmetry="all"`` where it
    is too many.

    Args:
        space: The weight space.
        in_channels: Channels of the features that come in.
        out_channels: Channels of the features that go out.
        bias: Whether to add equivariant constants.
        generator: Source of the initial weights.
        compile: Whether to run under ``torch.compile``; see :func:`nfn_opt.layers.NFLinear`.
        checkpoint: Whether to form intermediate results again in the backward pass; see there.

    Shapes:
        in: ``{name: (B, *axes, in_channels)}``; out: ``{name: (B, *axes, out_channels)}``.
    """

    def __init__(
        self,
        space: WeightSpace,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
        compile: bool = False,  # noqa: A002  (torch's own word)
        checkpoint: bool = False,
    ) -> None:
        super().__init__(space, in_channels, out_channels, compile=compile, checkpoint=checkpoint)
        self._cells = space.cells
        self._steps = plan_per_parameter(self._cells.space)
        self._readings = _readings(self._cells.space, self._steps)
        self._targets = _targets(self._cells.space, self._steps, out_channels)
        initial = self._initial(generator)
        self.weights = nn.ParameterDict([(s.name, w) for s, w in zip(self._steps, initial, strict=True)])
        columns = sum(step.columns for step in self._steps if not step.signature)
        self.bias = nn.Parameter(torch.zeros(columns * out_channels)) if bias else None

    def _initial(self, generator: torch.Generator | None) -> list[Tensor]:
        """The weights of every step; see :func:`nfn_opt.layers.base.variance_shares`."""
        written: dict[str, list[Pattern]] = {name: [] for name in self._cells.space.names}
        for pattern in chain.from_iterable(step.writings for step in self._steps):
            written[pattern.name].append(pattern)
        own = {pattern: n for patterns in written.values() for pattern, n in identity_map(patterns).items()}
        turned = {
            pattern.name: orthogonal(
                pattern.fold * self.in_channels, pattern.fold * self.out_channels, generator
            )
            for pattern in own
        }
        others = Counter(
            writing.name
            for step in self._steps
            for writing in step.writings
            if len(step.readings) > (writing in own)
        )
        return [self._initial_step(step, own, turned, others, generator) for step in self._steps]

    def _initial_step(
        self,
        step: Step,
        own: Mapping[Pattern, int],
        turned: Mapping[str, Tensor],
        others: Mapping[str, int],
        generator: torch.Generator | None,
    ) -> Tensor:
        heights = [reading.fold * self.in_channels for reading in step.readings]
        columns = []
        for writing in step.writings:
            own_share, other_share = variance_shares(others[writing.name])
            place = step.readings.index(writing) if writing in own else None
            rows = sum(heights) - (0 if place is None else heights[place])
            column = normal((sum(heights), writing.fold * self.out_channels), generator)
            column *= math.sqrt(other_share / max(rows, 1))
            if place is not None:
                column.split(heights)[place].copy_(
                    turned[writing.name] * (own[writing] * math.sqrt(own_share))
                )
            columns.append(column)
        return torch.cat(columns, dim=1)

    @property
    def _weight(self) -> Tensor:
        return next(iter(self.weights.values()))

    def _map(self, features: Mapping[str, Tensor], program: Any) -> Features:
        cells = self._cells.split(features)
        names = self._cells.space.names
        found = gather(self._readings.sources, [cells[name] for name in names])
        terms: dict[str, list[Tensor]] = {name: [] for name in names}
        products: dict[str, list[Tensor]] = {name: [] for name in names}
        biases = self._biases()
        for step, weight in zip(self._steps, self.weights.values(), strict=True):
            if step.direct:
                self._multiply_whole(step, weight, found, products)
                continue
            read = self._read(step, found)
            if not step.signature and self.bias is not None:
                mixed = torch.addmm(biases[step.part], read, weight)
            else:
                mixed = mix(read, weight)
            parts = mixed.split([p.fold * self.out_channels for p in step.writings], dim=-1)
            for pattern, part in zip(step.writings, parts, strict=True):
                terms[pattern.name].append(pattern.place(part))
        written = scatter(self._targets, [t for name in names for t in (*terms[name], *products[name])])
        return self._cells.join(dict(zip(names, written, strict=True)))

    def _biases(self) -> tuple[Tensor, ...]:
        """The constants of every step without indices."""
        if self.bias is None:
            return ()
        steps = [step for step in self._steps if not step.signature]
        if len(steps) == 1:
            return (self.bias,)
        return self.bias.split([step.columns * self.out_channels for step in steps])

    def _read(self, step: Step, found: list[Tensor]) -> Tensor:
        """Everything that a step reads, side by side."""
        if not step.readings:
            return found[0].new_zeros(found[0].shape[0], 0)
        return concatenate([r.gather(found[self._readings.place(r)]) for r in step.readings])

    def _multiply_whole(
        self, step: Step, weight: Tensor, found: list[Tensor], products: dict[str, list[Tensor]]
    ) -> None:
        """Hand whole tensors and their weights to the parameters that they are mixed into."""
        read = [r.gather(found[self._readings.place_whole(r)]) for r in step.readings]
        row_ends = list(accumulate(r.fold * self.in_channels for r in step.readings))
        column_ends = list(accumulate(w.fold * self.out_channels for w in step.writings))
        for pattern, left, right in zip(step.writings, [0, *column_ends], column_ends, strict=False):
            for source, top, bottom in zip(read, [0, *row_ends], row_ends, strict=False):
                block = weight if len(read) == len(column_ends) == 1 else weight[top:bottom, left:right]
                products[pattern.name] += [source, block]

    def extra_repr(self) -> str:
        """Channels and symmetry."""
        return f"{self.in_channels} -> {self.out_channels}, per_parameter, symmetry={self.space.symmetry!r}"


def _readings(space: WeightSpace, steps: tuple[Step, ...]) -> Readings:
    small = chain.from_iterable(step.readings for step in steps if not step.direct)
    return Readings(space, small, chain.from_iterable(step.readings for step in steps if step.direct))


def _targets(space: WeightSpace, steps: tuple[Step, ...], channels: int) -> tuple[Target, ...]:
    terms: dict[str, list[Pattern]] = {name: [] for name in space.names}
    products: dict[str, list[Pattern]] = {name: [] for name in space.names}
    for step in steps:
        for pattern in step.writings:
            if step.direct:
                products[pattern.name] += [pattern] * len(step.readings)
            else:
                terms[pattern.name].append(pattern)
    return tuple(
        Target((*spec.view_shape, channels), pool_of(tuple(terms[spec.name])), tuple(products[spec.name]))
        for spec in space.parameters
    )
