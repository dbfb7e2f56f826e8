"""The equivariant linear layer on weight features."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from nfn_opt.layers.checks import check_input
from nfn_opt.layers.patterns import Pattern
from nfn_opt.layers.plan import Reader, Step, Term, concatenate, plan_per_parameter, write
from nfn_opt.layers.relations import RELATIONS, plan_by_relation
from nfn_opt.weight_space import Features, WeightSpace

Sharing = Literal["per_parameter", "by_relation"]
_BIAS_KINDS = ("vector", "matrix")


def NFLinear(  # noqa: N802  (reads as the layer that it makes)
    space: WeightSpace,
    in_channels: int,
    out_channels: int,
    *,
    sharing: Sharing = "per_parameter",
    bias: bool = True,
    generator: torch.Generator | None = None,
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

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> layer = NFLinear(space, 1, 8)
        >>> layer(space.features([model]))["0.weight"].shape
        torch.Size([1, 4, 2, 8])
    """
    if sharing == "per_parameter":
        return PerParameterLinear(space, in_channels, out_channels, bias=bias, generator=generator)
    if sharing == "by_relation":
        return RelationLinear(space, in_channels, out_channels, bias=bias, generator=generator)
    raise ValueError(f"sharing is {sharing!r}, expected 'per_parameter' or 'by_relation'; see NFLinear")


def _check_channels(in_channels: int, out_channels: int) -> None:
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1; give the number of feature channels")


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator) * std


class PerParameterLinear(nn.Module):
    r"""Every equivariant linear map between the parameters of one architecture, each with its own weight.

    For parameters :math:`p, q` of the space the output is

    .. math:: Y_q = \sum_p \sum_{\pi} \mathrm{write}_\pi\bigl(A_{pq\pi}\, \mathrm{read}_\pi(X_p)\bigr) + b_q

    over the partitions :math:`\pi` of the axes of both that respect the groups (Thm. 1 of arXiv:2402.05232; for
    MLPs and CNNs Eqs. (3) and (18) of arXiv:2302.14040). Fixed axes (kernel positions; under ``symmetry="hidden"``
    also inputs and outputs) count as channels. Reading averages, so weights do not depend on widths in scale.
    For groups with fewer entries than a partition has blocks (sizes 2 and 3 on tensors that one group acts on
    twice) the maps are linearly dependent and the layer has more weights than it needs.

    Args:
        space: The weight space.
        in_channels: Channels of the features that come in.
        out_channels: Channels of the features that go out.
        bias: Whether to add equivariant constants.
        generator: Source of the initial weights.

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
    ) -> None:
        super().__init__()
        _check_channels(in_channels, out_channels)
        self.space, self.in_channels, self.out_channels = space, in_channels, out_channels
        self._steps = plan_per_parameter(space)
        self.weights = nn.ParameterDict([(step.name, self._initial(step, generator)) for step in self._steps])
        constants = [step for step in self._steps if not step.signature]
        columns = constants[0].columns if constants else 0
        self.bias = nn.Parameter(torch.zeros(columns * out_channels)) if bias else None

    def _initial(self, step: Step, generator: torch.Generator | None) -> Tensor:
        """Normal weights: half of an output's variance from its own entry, the rest shared by the other terms."""
        blocks = []
        for pattern in step.writings:
            own = [pattern.full and reading == pattern for reading in step.readings]
            others = self._other_terms(pattern)
            rows = sum(r.fold for r, same in zip(step.readings, own, strict=True) if not same)
            stds = []
            for reading, same in zip(step.readings, own, strict=True):
                share = (0.5 if others else 1.0) if same else 0.5 / others
                std = math.sqrt(share / (self.in_channels * (reading.fold if same else rows)))
                stds += [std] * (reading.fold * self.in_channels)
            shape = (len(stds), pattern.fold * self.out_channels)
            blocks.append(_normal(shape, 1.0, generator) * torch.tensor(stds)[:, None])
        return torch.cat(blocks, dim=1)

    def _other_terms(self, pattern: Pattern) -> int:
        """How many products add to an entry of a parameter besides the product with the entry itself."""
        terms = [(step, p) for step in self._steps for p in step.writings if p.name == pattern.name]
        return sum(not p.full or any(reading != p for reading in step.readings) for step, p in terms)

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map weight features with ``in_channels`` to weight features with ``out_channels``."""
        check_input(self.space, features, self.in_channels, next(iter(self.weights.values())))
        reader = Reader(features)
        terms: dict[str, list[Term]] = {name: [] for name in self.space.names}
        for step, weight in zip(self._steps, self.weights.values(), strict=True):
            read = reader.read(step.readings)
            if not step.signature and self.bias is not None:
                _divide(step, torch.addmm(self.bias, read, weight), terms)
            elif len(step.writings) == 1:
                terms[step.writings[0].name].append(Term(step.writings[0], read, weight))
            else:
                _divide(step, read @ weight, terms)
        return {name: write(terms[name]) for name in self.space.names}

    def extra_repr(self) -> str:
        """Channels and symmetry."""
        return f"{self.in_channels} -> {self.out_channels}, per_parameter, symmetry={self.space.symmetry!r}"


def _divide(step: Step, mixed: Tensor, terms: dict[str, list[Term]]) -> None:
    """Hand the columns of a step's product to the patterns that write them."""
    channels = mixed.shape[-1] // step.columns
    parts = mixed.split([pattern.fold * channels for pattern in step.writings], dim=-1)
    for pattern, part in zip(step.writings, parts, strict=True):
        terms[pattern.name].append(Term(pattern, part))


class RelationLinear(nn.Module):
    """An equivariant linear layer with one set of weights for all architectures.

    The maps of :class:`PerParameterLinear` with weights tied by what the two tensors are to each other: a tensor
    to itself, its row or column means, a weight to the bias of the same neurons, to its predecessor and successor,
    everything to everything, and so on (:data:`nfn_opt.layers.relations.RELATIONS`). Several tensors in the same
    relation to an output are averaged, so that depth does not change the scale. The weights of relations that do
    not occur in the space that the layer is built for start at zero.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        in_channels: Channels of the features that come in.
        out_channels: Channels of the features that go out.
        bias: Whether to add constants, one vector for biases and one for weights.
        generator: Source of the initial weights.

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
    ) -> None:
        super().__init__()
        _check_channels(in_channels, out_channels)
        self.space, self.in_channels, self.out_channels = space, in_channels, out_channels
        self._plan = plan_by_relation(space)
        std = self._initial_std() / math.sqrt(in_channels)
        initial = _normal((len(RELATIONS), in_channels, out_channels), 1.0, generator) * std[:, None, None]
        self.weight = nn.Parameter(initial)
        self.bias = nn.Parameter(torch.zeros(len(_BIAS_KINDS), out_channels)) if bias else None

    def _initial_std(self) -> Tensor:
        """Half of an output's variance from its own entry, the rest shared by the other relations."""
        sources: dict[str, list[tuple[bool, int]]] = defaultdict(list)
        for writing in self._plan:
            pattern = writing.pattern
            for relation, readings in writing.sources:
                own = pattern.full and any(r.name == pattern.name for r in readings)
                sources[pattern.name].append((own, relation))
        variance = torch.zeros(len(RELATIONS))
        for terms in sources.values():
            others = sum(not own for own, _ in terms)
            for own, relation in terms:
                share = (0.5 if others else 1.0) if own else 0.5 / others
                old = float(variance[relation])
                variance[relation] = share if not old else min(old, share)
        return variance.sqrt()

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map weight features of ``space`` (by default the one given at construction)."""
        plan = self._plan if space is None else plan_by_relation(space)
        space = space or self.space
        check_input(space, features, self.in_channels, self.weight)
        reader, weights = Reader(features), self.weight.unbind()
        terms: dict[str, list[Term]] = {name: [] for name in space.names}
        for writing in plan:
            pattern = writing.pattern
            read = concatenate([_average(reader, readings) for _, readings in writing.sources])
            weight = concatenate([weights[relation] for relation, _ in writing.sources], dim=0)
            if writing.constant and self.bias is not None:
                mixed = torch.addmm(self.bias[_BIAS_KINDS.index(writing.kind)], read, weight)
                terms[pattern.name].append(Term(pattern, mixed))
            else:
                terms[pattern.name].append(Term(pattern, read, weight))
        return {name: write(terms[name]) for name in space.names}

    def extra_repr(self) -> str:
        """Channels and sharing."""
        return f"{self.in_channels} -> {self.out_channels}, by_relation"


def _average(reader: Reader, readings: tuple[Pattern, ...]) -> Tensor:
    """Mean of several readings over the same indices."""
    first, *others = (reader.read([pattern]) for pattern in readings)
    return sum(others, start=first) / len(readings) if others else first
