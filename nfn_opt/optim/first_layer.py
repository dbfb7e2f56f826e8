"""The first layer of a learned rule: a linear map of normalised features, without ever storing those."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from nfn_opt.optim.features import ENTRY, EPS, FACTOR, MATRIX_ONLY, TIMESCALES, Inputs, channels, repeated
from nfn_opt.optim.layout import Segment, flat
from nfn_opt.optim.normalise import Over, inverse_rms, several_matrices

BLOCK = 16384
"""About how many weights are worked on at once where no graph is kept: their hidden layers fit a cache."""


def initial_weight(
    out_features: int, fan_in: int, generator: torch.Generator, scale: float = 1.0
) -> nn.Parameter:
    """A weight ``(out_features, fan_in)``, normal, deviation ``scale / sqrt(fan_in)``, cut at twice that."""
    weight = torch.zeros(out_features, fan_in)
    if scale:
        std = scale * fan_in**-0.5
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    return nn.Parameter(weight)


def affine(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """``weight @ x + bias`` for ``x`` of shape ``(channels, m)``; one batched product under ``vmap``.

    A plain matrix product of a shared weight with a mapped ``x`` would be turned into one of transposed copies.
    """
    return torch.baddbmm(bias.reshape(1, -1, 1), weight.unsqueeze(0), x.unsqueeze(0)).squeeze(0)


@dataclasses.dataclass(frozen=True)
class Preactivation:
    """The first layer's output for one tensor, computed where it is asked for.

    Attributes:
        segment: The tensor.
        x: Its entry features, ``(channels, n)``.
        weight: ``(H, channels)``, the normalisation included where ``x`` is not normalised.
        bias: ``(H,)``, the time features included.
        parts: What row and column features add, ``(H, *shape)`` with one axis of size 1.
    """

    segment: Segment
    x: Tensor
    weight: Tensor
    bias: Tensor
    parts: tuple[Tensor, ...]

    def blocks(self) -> Iterator[Tensor]:
        """Outputs ``(H, m)`` for consecutive weights; in one block if a graph is kept."""
        n, shape = self.segment.spec.numel, self.segment.shape
        if torch.is_grad_enabled() or n <= BLOCK or not shape:
            yield self._block(slice(None), shape)
            return
        inner = n // shape[0]
        rows = max(1, BLOCK // inner)
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            yield self._block(slice(start, stop), (stop - start, *shape[1:]))

    def through(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        """What a network for each weight makes of the output, from ``(H, m)`` to ``(C, m)``, for all: ``(C, n)``."""
        results = [network(block) for block in self.blocks()]
        return results[0] if len(results) == 1 else torch.cat(results, dim=1)

    def _block(self, rows: slice, shape: tuple[int, ...]) -> Tensor:
        """The output for some indices of the first axis, of which ``shape`` is left."""
        x = self.x
        if rows != slice(None):
            inner = x.shape[1] // self.segment.shape[0]
            x = x[:, rows.start * inner : rows.stop * inner]
        hidden = affine(self.weight, x, self.bias)
        if not self.parts:
            return hidden
        viewed = hidden.reshape(len(self.bias), *shape)
        for part in self.parts:
            viewed = viewed + (part if part.shape[1] == 1 else part[:, rows])
        return viewed.reshape(hidden.shape)


class FeatureLinear(nn.Module):
    r"""Linear map from the features of each weight (see :mod:`nfn_opt.optim.features`) to channels.

    .. math::
        h = W \, \operatorname{diag}(s) \, x + b, \qquad s_c = (\operatorname{mean}(x_c^2) + 10^{-9})^{-1/2}

    The normalisation multiplies the small matrix instead of the features; row and column features are mapped
    before they are broadcast; time features only move the bias. The result is the same to rounding. (Where the
    mean is over each matrix of a larger tensor, it is the features that are multiplied.)

    Args:
        features: Names of the features, in the order of the weight's columns.
        out_channels: Number of channels.
        momenta: Number of momenta, M.
        factors: Number of factored second moments, K.
        use_time: Whether the last columns read the time features.
        generator: Source of the initial weight.
        over: What the mean of the normalisation is over, see :mod:`nfn_opt.optim.normalise`.
        eps: Of the normalisation.
        clip: Features are first cut to this absolute value, if given.
        repeat: Whether features of matrices are repeated for vectors; otherwise they are zero.
    """

    def __init__(
        self,
        features: tuple[str, ...],
        out_channels: int,
        momenta: int,
        factors: int,
        use_time: bool,
        generator: torch.Generator,
        *,
        over: Over = "tensor",
        eps: float = EPS,
        clip: float | None = None,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.use_time, self.over = features, use_time, over
        self.eps, self.clip, self.repeat = eps, clip, repeat
        widths = [channels(feature, momenta, factors) for feature in features]
        starts = [sum(widths[:i]) for i in range(len(widths))]
        self.columns = {f: range(s, s + w) for f, s, w in zip(features, starts, widths, strict=True)}
        self.in_features = sum(widths) + len(TIMESCALES) * use_time
        self.weight = initial_weight(out_channels, self.in_features, generator)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, inputs: Inputs, time: Tensor) -> list[Preactivation]:
        """Map the features of all tensors.

        Args:
            inputs: What the features are computed from.
            time: Time features, shape ``(11,)``.

        Returns:
            What gives the output for each tensor of the layout.
        """
        # Those that a vector lacks come last, so that its features are the first rows.
        entries = sorted((name for name in self.features if name in ENTRY), key=MATRIX_ONLY.__contains__)
        values = [ENTRY[feature](inputs) for feature in entries]
        stacked = torch.cat([value.reshape(-1, value.shape[-1]) for value in values])
        bias = self._bias(time)
        return [
            self._segment(i, segment, entries, x, bias, inputs)
            for i, (segment, x) in enumerate(
                zip(inputs.layout.segments, inputs.layout.split(stacked), strict=True)
            )
        ]

    def _bias(self, time: Tensor) -> Tensor:
        if not self.use_time:
            return self.bias
        return self.bias + self.weight[:, -len(TIMESCALES) :] @ time

    def _weight(self, features: list[str]) -> Tensor:
        columns = [column for feature in features for column in self.columns[feature]]
        if columns == list(range(len(columns))):
            return self.weight[:, : len(columns)]
        return self.weight[:, columns]

    def _segment(
        self, index: int, segment: Segment, entries: list[str], x: Tensor, bias: Tensor, inputs: Inputs
    ) -> Preactivation:
        """The map for one tensor, whose entry features are ``x`` of shape ``(channels, n)``."""
        if segment.factored is None and not MATRIX_ONLY.isdisjoint(entries):
            entries = [feature for feature in entries if feature not in MATRIX_ONLY]
            x = x[: sum(len(self.columns[feature]) for feature in entries)]
        if segment.factored is None and self.repeat:
            entries, x = self._repeated(index, entries, x, inputs)
        weight, x = self._normalised(entries, x.reshape(-1, *segment.shape))
        parts = []
        if segment.factored is not None and inputs.means.rows:
            for which, mean in enumerate((inputs.means.rows[index], inputs.means.columns[index])):
                features = [name for name in self.features if name in FACTOR and FACTOR[name][0] == which]
                if features and mean is not None:
                    parts.append(self._part(features, mean))
        return Preactivation(segment, x, weight, bias, tuple(parts))

    def _repeated(
        self, index: int, entries: list[str], x: Tensor, inputs: Inputs
    ) -> tuple[list[str], Tensor]:
        """The features of a vector, with those of matrices in place of which it has others."""
        more = [feature for feature in self.features if feature in MATRIX_ONLY]
        if not more:
            return entries, x
        momentum, row = inputs.layout.split(inputs.momentum)[index], flat(inputs.means.rows[index])
        values = [repeated(feature, momentum, row, inputs.root_eps) for feature in more]
        return [*entries, *more], torch.cat([x, *values])

    def _part(self, features: list[str], mean: Tensor) -> Tensor:
        """The map for row or column features: channels, then the shape as viewed with one axis of size 1."""
        x = torch.cat([FACTOR[feature][1](mean) for feature in features])
        weight, rows = self._normalised(features, x)
        return (weight @ rows).reshape(len(weight), *x.shape[1:])

    def _normalised(self, features: list[str], x: Tensor) -> tuple[Tensor, Tensor]:
        """The weight ``(H, c)`` and the features ``(c, *shape)`` made flat; one of them is normalised."""
        if self.clip is not None:
            x = torch.clamp(x, -self.clip, self.clip)
        weight, scale = self._weight(features), inverse_rms(x, self.eps, self.over)
        if several_matrices(x.dim() - 1, self.over):
            return weight, flat(x * scale)
        return weight * scale.reshape(-1), flat(x)
