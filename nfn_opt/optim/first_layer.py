"""The first layer of a learned rule: a linear map of normalised features, without ever storing those."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfn_opt.optim.features import ENTRY, EPS, FACTOR, MATRIX_ONLY, TIMESCALES, Inputs, channels
from nfn_opt.optim.layout import Segment


def initial_weight(
    out_features: int, fan_in: int, generator: torch.Generator, scale: float = 1.0
) -> nn.Parameter:
    """A weight ``(out_features, fan_in)``, normal, deviation ``scale / sqrt(fan_in)``, cut at twice that."""
    weight = torch.empty(out_features, fan_in)
    std = scale * fan_in**-0.5
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    return nn.Parameter(weight)


class FeatureLinear(nn.Module):
    r"""Linear map from the features of each weight (see :mod:`nfn_opt.optim.features`) to channels.

    .. math::
        h = W \, \operatorname{diag}(s) \, x + b, \qquad s_c = (\operatorname{mean}(x_c^2) + 10^{-9})^{-1/2}

    The normalisation multiplies the small matrix instead of the features; row and column features are mapped
    before they are broadcast; time features only move the bias. The result is the same to rounding.

    Args:
        features: Names of the features, in the order of the weight's columns.
        out_channels: Number of channels.
        momenta: Number of momenta, M.
        factors: Number of factored second moments, K.
        use_time: Whether the last columns read the time features.
        generator: Source of the initial weight.
    """

    def __init__(
        self,
        features: tuple[str, ...],
        out_channels: int,
        momenta: int,
        factors: int,
        use_time: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.features, self.use_time = features, use_time
        widths = [channels(feature, momenta, factors) for feature in features]
        starts = [sum(widths[:i]) for i in range(len(widths))]
        self.columns = {f: range(s, s + w) for f, s, w in zip(features, starts, widths, strict=True)}
        self.in_features = sum(widths) + len(TIMESCALES) * use_time
        self.weight = initial_weight(out_channels, self.in_features, generator)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, inputs: Inputs, time: Tensor) -> list[Tensor]:
        """Map the features of all tensors.

        Args:
            inputs: What the features are computed from.
            time: Time features, shape ``(11,)``.

        Returns:
            For each tensor of the layout ``(*view_shape, channels)``.
        """
        entries = [feature for feature in self.features if feature in ENTRY]
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
    ) -> Tensor:
        """The map for one tensor, whose entry features are ``x`` of shape ``(channels, n)``."""
        if segment.factored is None and not MATRIX_ONLY.isdisjoint(entries):
            entries = [feature for feature in entries if feature not in MATRIX_ONLY]
            x = x[: sum(len(self.columns[feature]) for feature in entries)]
        weight = self._weight(entries) * _inverse_rms(x, 1)
        hidden = torch.addmm(bias, x.t(), weight.t()).reshape(*segment.spec.view_shape, -1)
        if segment.factored is None or not inputs.means.rows:
            return hidden
        for which, mean in enumerate((inputs.means.rows[index], inputs.means.columns[index])):
            features = [name for name in self.features if name in FACTOR and FACTOR[name][0] == which]
            if features and mean is not None:
                hidden = hidden + self._factors(features, mean)
        return hidden

    def _factors(self, features: list[str], mean: Tensor) -> Tensor:
        """The map for row or column features: shape as viewed with one axis of size 1, then channels."""
        x = torch.cat([FACTOR[feature][1](mean) for feature in features])
        weight = self._weight(features) * _inverse_rms(x.flatten(1), 1)
        return x.movedim(0, -1) @ weight.t()


def _inverse_rms(x: Tensor, dim: int) -> Tensor:
    return torch.rsqrt((x * x).mean(dim) + EPS)
