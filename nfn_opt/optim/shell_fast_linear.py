"""The spectral rule whose direction is linear in gradient and momenta, in place, for an optimizer's step.

There are no features to write: the norms that they are normalised with give two factors for each tensor. The clipped
gradient is written to where the direction is made, and a step needs four bytes of memory for each weight of the largest
tensor, beside what making matrices orthogonal needs. Small tensors are worked on together, large ones in sections that
fit a cache.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nfn_opt.optim.layout import Layout, Segment
from nfn_opt.optim.rule import UpdateRule
from nfn_opt.optim.shell_fast_chunks import Scratch, Where, chunk_size, filled
from nfn_opt.optim.shell_fast_forms import BOUND, LARGEST_FEATURE
from nfn_opt.optim.shell_fast_spectral import REPLACED, steps_are_bounded
from nfn_opt.optim.shell_fast_stack import together
from nfn_opt.optim.shell_parameters import Entry
from nfn_opt.optim.spectral import REMEMBERED, SpectralRule, normalised
from nfn_opt.optim.spectral_step import Sums, depth
from nfn_opt.weight_space import WeightSpace

READ = ("gradient", "momentum")

TOGETHER = 2**20
"""Tensors are worked on together up to so many weights; a larger one by itself."""


@dataclasses.dataclass(frozen=True)
class Part:
    """T tensors, those of one shape next to each other, and their states.

    Attributes:
        entries: The parameters.
        segments: What they are in the weight space.
        states: Their states.
        direction: Where their directions are made, one after the other, flat.
    """

    entries: Sequence[Entry]
    segments: Sequence[Segment]
    states: Sequence[Mapping[str, Tensor]]
    direction: Tensor

    @functools.cached_property
    def numels(self) -> list[int]:
        """How many weights each has."""
        return [segment.spec.numel for segment in self.segments]

    @functools.cached_property
    def directions(self) -> Sequence[Tensor]:
        """Of each, flat."""
        return self.direction.split(self.numels)

    @functools.cached_property
    def momenta(self) -> list[Tensor]:
        """Of each, ``(M, n)``."""
        return [state["momentum"].view(len(state["momentum"]), -1) for state in self.states]

    def sections(self, limit: int) -> Iterator[tuple[slice, slice]]:
        """Consecutive tensors of about ``limit`` weights in all, and the section of each: all, or of one so much."""
        for places in filled(range(len(self.numels)), self.numels, limit):
            tensors, longest = slice(places[0], places[-1] + 1), max(self.numels[i] for i in places)
            for start in range(0, longest, limit):
                yield tensors, slice(start, start + limit)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Tensors of one shape, and their directions, ``(tensors, *shape)``."""
        shapes, start = [tuple(segment.spec.shape) for segment in self.segments], 0
        for shape, group in itertools.groupby(range(len(shapes)), shapes.__getitem__):
            places = list(group)
            stop = start + len(places) * math.prod(shape)
            yield slice(places[0], places[-1] + 1), self.direction[start:stop].view(len(places), *shape)
            start = stop


class LinearStep:
    """Applies such a rule to parameters, in place.

    Args:
        rule: A rule that :meth:`supports` accepts, on the device and in the dtype of the arithmetic.
        where: That device and dtype.
        scratch: Buffers, shared between all.
    """

    least = 0
    """From how many weights on it takes fewer operations than the rule itself."""

    def __init__(self, rule: UpdateRule, where: Where, scratch: Scratch) -> None:
        assert isinstance(rule, SpectralRule)
        self.rule, self.where, self.scratch = rule, where, scratch
        self.rates = [1 - decay for decay in rule.config.momentum_decays]
        columns = rule.first.columns
        self.weight = rule.first.weight[0, [columns["gradient"][0], *columns["momentum"]]]
        self.read = [k for k, weight in enumerate(self.weight[1:].tolist()) if weight != 0]
        """Momenta that the direction is made of."""
        self.bias = float(rule.first.bias)

    @staticmethod
    def supports(rule: UpdateRule) -> bool:
        """Whether this computes what the rule does, with a result that is finite for finite gradients."""
        if (
            not isinstance(rule, SpectralRule)
            or rule.rest is not None
            or set(rule.config.features) != set(READ)
        ):
            return False
        if any(getattr(type(rule), name) is not getattr(SpectralRule, name) for name in REPLACED):
            return False
        with torch.no_grad():
            weight, bias = rule.first.weight.double().abs().sum(), rule.first.bias.double().abs().sum()
            return bool(LARGEST_FEATURE * weight + bias < BOUND) and steps_are_bounded(rule)

    def takes(self, space: WeightSpace, key: str) -> bool:
        """Whether a tensor is worked on here; others are left to the rule itself."""
        return space[key].numel > 0

    def updates(
        self,
        found: Sequence[Entry],
        grads: Mapping[str, Tensor],
        states: Mapping[str, dict[str, Tensor]],
        *,
        space: WeightSpace,
        step: Tensor,
        total_steps: Tensor | None = None,
    ) -> Iterator[tuple[Entry, Tensor]]:
        """Update running means in place, and give the update of each parameter; see :class:`FastStep`."""
        step = step.to(self.where[0])
        total = None if total_steps is None else total_steps.to(self.where[0])
        torch._foreach_add_([states[entry.key]["step"] for entry in found], 1)
        for part in self._parts(found, states, space):
            sums = self._accumulate(part, [grads[entry.key] for entry in part.entries])
            memory = {key: torch.stack([state[key] for state in part.states]) for key in REMEMBERED}
            size = memory["size"]
            steps, memory = self.rule.step_sizes(part.segments, sums, memory, step, total, depth(space))
            for key, values in memory.items():
                torch._foreach_copy_([state[key] for state in part.states], list(values))
            self._combine(part, sums)
            for block, direction in part.blocks():
                updates = self._finish(part.entries[block], direction, size[block], steps[block])
                yield from zip(part.entries[block], updates, strict=True)
        self.scratch.trim()

    def _parts(
        self, found: Sequence[Entry], states: Mapping[str, dict[str, Tensor]], space: WeightSpace
    ) -> Iterator[Part]:
        segments = Layout.of(space, tuple(entry.key for entry in found)).segments
        numels = [segment.spec.numel for segment in segments]
        order = sorted(range(len(found)), key=lambda i: tuple(segments[i].spec.shape))
        for places in filled(order, numels, TOGETHER):
            direction = self.scratch.take("direction", self.where, sum(numels[i] for i in places))
            entries = [found[i] for i in places]
            yield Part(
                entries, [segments[i] for i in places], [states[entry.key] for entry in entries], direction
            )

    def _accumulate(self, part: Part, grads: Sequence[Tensor]) -> Sums:
        """Write clipped gradients to where directions will be, take them into the momenta, and sum."""
        clip, M = self.rule.config.gradient_clip, len(self.rates)
        params = [entry.param.detach().reshape(-1) for entry in part.entries]
        flat = [grad.reshape(-1) for grad in grads]
        squares, products = (part.direction.new_zeros(len(grads), width) for width in (M + 2, M))
        for tensors, section in part.sections(chunk_size(self.where[0])):
            g, grad, p = ([x[section] for x in some[tensors]] for some in (part.directions, flat, params))
            torch._foreach_copy_(g, grad)
            torch._foreach_clamp_max_(g, clip)
            torch._foreach_clamp_min_(g, -clip)
            momenta = [[x[k, section] for x in part.momenta[tensors]] for k in range(M)]
            for k, m in enumerate(momenta):
                torch._foreach_lerp_(m, g, self.rates[k])
                products[tensors, k] += torch.stack([torch.dot(*pair) for pair in zip(m, g, strict=True)])
            for k, values in enumerate((g, *momenta, p)):
                squares[tensors, k] += torch.stack(torch._foreach_norm(values, dtype=self.where[1])).square()
        count = squares.new_tensor(part.numels)
        return Sums(squares[:, :1], squares[:, 1:-1], products, torch.sqrt(squares[:, -1] / count))

    def _combine(self, part: Part, sums: Sums) -> None:
        """Make directions of clipped gradients and momenta."""
        count = sums.gradient.new_tensor(part.numels).unsqueeze(1)
        mean = torch.cat([sums.gradient, sums.momentum], dim=1) / count
        factors = (self.weight * torch.rsqrt(mean + self.rule.first.eps)).unbind(1)
        for tensors, section in part.sections(chunk_size(self.where[0])):
            direction = [x[section] for x in part.directions[tensors]]
            torch._foreach_mul_(direction, list(factors[0][tensors]))
            for k in self.read:
                m = [x[k, section] for x in part.momenta[tensors]]
                torch._foreach_addcmul_(direction, m, list(factors[1 + k][tensors]))
            if self.bias:
                torch._foreach_add_(direction, self.bias)

    def _finish(
        self, entries: Sequence[Entry], direction: Tensor, size: Tensor, steps: Tensor
    ) -> Sequence[Tensor]:
        """Updates of parameters of one shape from their directions: orthogonal where they are matrices."""
        size, steps = size.reshape(-1, 1, 1), steps.reshape(-1, *[1] * (direction.dim() - 1))
        direction.copy_(normalised(direction))
        if direction.dim() > 2:
            parameter = together([entry.param.detach().reshape(1, 1, -1) for entry in entries])
            length = max(1, chunk_size(self.where[0]) // len(entries))
            for d, p in zip(
                direction.flatten(1).unsqueeze(1).split(length, 2), parameter.split(length, 2), strict=True
            ):
                d.copy_(self.rule.decayed(d, p.to(d), size))
        return direction.mul_(-steps).unbind()
