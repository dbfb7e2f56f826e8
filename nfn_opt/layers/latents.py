"""Between weight features and a fixed set of latents, by cross-attention: the two halves of Inr2Array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from nfn_opt.layers.attention import check_heads
from nfn_opt.layers.checks import check_input
from nfn_opt.layers.statistics import as_entries
from nfn_opt.weight_space import Axis, Features, TensorSpec, WeightSpace


class LatentPool(nn.Module):
    r"""Cross-attention from learned queries to all weights: an invariant, fixed-size summary of a network.

    Latent :math:`l` is, for every head with its share of the :math:`c` latent channels,

    .. math:: z_l = V \sum_t \mathrm{softmax}_t\!\Bigl(\tfrac{1}{\sqrt c}\, q_l \cdot K x_t\Bigr)\, x_t

    over the entries :math:`x_t` of all parameters (Sec. 3.5 of arXiv:2305.13546; that paper has no projections and
    one head). Entries are told apart only by their features: encode positions before. Queries and keys are
    multiplied first, so that no weight is projected. The layer applies to any space.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        channels: Channels of the features.
        latents: Number of latents.
        latent_channels: Channels of a latent; by default ``channels``.
        heads: Number of heads; divides ``latent_channels``.
        generator: Source of the initial weights.

    Shapes:
        in: ``{name: (B, *axes, channels)}``; out: ``(B, latents, latent_channels)``.

    Raises:
        ValueError: If ``heads`` does not divide ``latent_channels``, or a number is not positive.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> pool = LatentPool(space, 8, latents=16, latent_channels=32, heads=4)
        >>> pool({spec.name: torch.zeros(3, *spec.view_shape, 8) for spec in space.parameters}).shape
        torch.Size([3, 16, 32])
    """

    def __init__(
        self,
        space: WeightSpace,
        channels: int,
        latents: int,
        latent_channels: int | None = None,
        heads: int = 8,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        latent_channels = channels if latent_channels is None else latent_channels
        _check_counts(channels=channels, latents=latents)
        check_heads(latent_channels, heads)
        self.space, self.channels, self.heads = space, channels, heads
        self.queries = _normal((latents, latent_channels), 1.0, generator)
        self.key = _normal((latent_channels, channels), channels**-0.5, generator)
        self.value = _normal((latent_channels, channels), channels**-0.5, generator)
        self.value_bias = nn.Parameter(torch.zeros(latent_channels))

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Tensor:
        """Map weight features of ``space``, by default the one given at construction, to latents."""
        space = space or self.space
        check_input(space, features, self.channels, self.queries)
        entries = [as_entries(features[name]) for name in space.names]
        weights = self._weights(entries).split([x.shape[1] for x in entries], dim=-1)
        first, *others = (torch.bmm(w, x) for w, x in zip(weights, entries, strict=True))
        mixed = sum(others, start=first).unflatten(1, (self.heads, -1))
        value = self.value.unflatten(0, (self.heads, -1))
        return torch.einsum("bhlc,hdc->blhd", mixed, value).flatten(2) + self.value_bias

    def _weights(self, entries: list[Tensor]) -> Tensor:
        """How much every latent of every head attends to every entry, ``(B, heads * latents, entries)``."""
        queries, keys = self.queries.unflatten(1, (self.heads, -1)), self.key.unflatten(0, (self.heads, -1))
        product = torch.einsum("lhd,hdc->hlc", queries, keys).flatten(0, 1) / math.sqrt(keys.shape[1])
        scores = [torch.bmm(product.expand(len(x), -1, -1), x.mT) for x in entries]
        return torch.softmax(torch.cat(scores, -1), dim=-1)

    def extra_repr(self) -> str:
        """Channels, latents and heads."""
        latents, latent_channels = self.queries.shape
        return f"{self.channels} -> {latents} x {latent_channels}, {self.heads} heads"


class LatentUnpool(nn.Module):
    """Cross-attention from weights to latents: weight features from a fixed-size summary.

    The query of an entry is a learned vector of its parameter, plus one for the position along each of its fixed
    axes (kernel positions; under ``symmetry="hidden"`` also inputs and outputs). Latents do not change when neurons
    are permuted, so what depends on them alone must be the same for all neurons of a group, and is. To tell neurons
    apart give features of the network itself: they are mapped and added to the queries, and the result is
    equivariant to permuting these.

    (The decoder of arXiv:2305.13546 makes the weights of new networks from latents instead, by a hypernetwork.)

    Args:
        space: The weight space.
        channels: Channels of the features that come out, and of those that are added to the queries.
        latent_channels: Channels of a latent.
        heads: Number of heads; divides ``latent_channels``.
        generator: Source of the initial weights.

    Shapes:
        in: ``(B, latents, latent_channels)``, and if wanted ``{name: (B, *axes, channels)}``;
        out: ``{name: (B, *axes, channels)}``.

    Raises:
        ValueError: If ``heads`` does not divide ``latent_channels``, or a number is not positive.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> unpool = LatentUnpool(space, 8, 32, heads=4)
        >>> unpool(torch.zeros(3, 16, 32))["0.weight"].shape
        torch.Size([3, 4, 2, 8])
    """

    def __init__(
        self,
        space: WeightSpace,
        channels: int,
        latent_channels: int,
        heads: int = 8,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_counts(channels=channels)
        check_heads(latent_channels, heads)
        self.space, self.channels, self.heads = space, channels, heads
        self._specs = space.cells.space.parameters
        sizes = {a.name: a.size for spec in self._specs for a in spec.axes if _is_ordered(a)}
        self._keys = {name: f"axis_{i}" for i, name in enumerate(sizes)}
        self.parameter_table = _normal((len(self._specs), latent_channels), 1.0, generator)
        self.axis_tables = nn.ParameterDict(
            {
                self._keys[name]: _normal((size, latent_channels), 1.0, generator)
                for name, size in sizes.items()
            }
        )
        self.query = _normal((latent_channels, channels), channels**-0.5, generator)
        self.key = _normal((latent_channels, latent_channels), latent_channels**-0.5, generator)
        self.value = _normal((latent_channels, latent_channels), latent_channels**-0.5, generator)
        self.out = _normal((channels, latent_channels), latent_channels**-0.5, generator)
        self.out_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, latents: Tensor, features: Mapping[str, Tensor] | None = None) -> Features:
        """Map latents to weight features, told apart by ``features`` where given.

        Raises:
            ValueError: If latents or features do not fit.
        """
        self._check_latents(latents, features)
        keys = _heads(latents @ self.key.mT, self.heads)
        values = _heads(latents @ self.value.mT, self.heads)
        cells: Mapping[str, Tensor] = {}
        if features is not None:
            check_input(self.space, features, self.channels, self.query)
            cells = self.space.cells.split(features)
        results: Features = {}
        for i, spec in enumerate(self._specs):
            query = self._query(i, spec)
            if features is not None:
                query = query + cells[spec.name] @ self.query.mT
            shape = query.shape[:-1] if features is None else query.shape[1:-1]
            batch = 1 if features is None else len(latents)
            mixed = self._attend(query.reshape(batch, prod(shape), query.shape[-1]), keys, values)
            results[spec.name] = mixed.reshape(len(latents), *shape, self.channels)
        expanded = {s.name: results[s.name].expand(-1, *s.view_shape, -1).contiguous() for s in self._specs}
        return self.space.cells.join(expanded)

    def _query(self, index: int, spec: TensorSpec) -> Tensor:
        """Learned queries of one parameter, ``(*axes, latent_channels)``, of size 1 along groups."""
        query = self.parameter_table[index].reshape(*(1 for _ in spec.axes), -1)
        for position, axis in enumerate(spec.axes):
            if _is_ordered(axis):
                shape = [axis.size if i == position else 1 for i in range(len(spec.axes))]
                query = query + self.axis_tables[self._keys[axis.name]].reshape(*shape, -1)
        return query

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention from ``(B or 1, entries, latent_channels)`` to the latents: ``(B, entries, channels)``."""
        queries = _heads(query, self.heads)
        weights = torch.softmax(queries @ keys.mT / math.sqrt(keys.shape[-1]), dim=-1)
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        return mixed @ self.out.mT + self.out_bias

    def _check_latents(self, latents: Tensor, features: Mapping[str, Tensor] | None) -> None:
        wanted = self.key.shape[1]
        if latents.dim() != 3 or latents.shape[2] != wanted or not latents.shape[1]:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, expected (batch, latents, {wanted}); build the layer for "
                "the channels of these latents, or give it those of a LatentPool"
            )
        batches = {t.shape[0] for t in (features or {}).values()} - {latents.shape[0]}
        if batches:
            raise ValueError(
                f"features are of {batches.pop()} networks, expected {latents.shape[0]} as the latents; give the "
                "features of the networks that the latents come from"
            )

    def extra_repr(self) -> str:
        """Channels and heads."""
        return f"latents x {self.key.shape[1]} -> {self.channels}, {self.heads} heads"


def _is_ordered(axis: Axis) -> bool:
    return not axis.permutable and axis.size > 1


def _heads(x: Tensor, heads: int) -> Tensor:
    """``(B, tokens, C)`` to ``(B, heads, tokens, C / heads)``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) * std)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
