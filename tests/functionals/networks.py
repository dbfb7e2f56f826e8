"""Networks of different kinds, with random weights of a chosen scale, for the tests of functionals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Features, WeightSpace


class Residual(nn.Module):
    """Convolutions around which the stream is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        x = self.first(x)
        x = x + self.b(self.a(x.relu()).relu())
        out: Tensor = self.last(x.mean((2, 3)))
        return out


def mlp(*widths: int) -> WeightSpace:
    widths = widths or (3, 8, 6, 2)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return WeightSpace.from_module(nn.Sequential(*layers[:-1]), torch.zeros(2, widths[0]))


def cnn() -> WeightSpace:
    layers = (nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28, 3))
    return WeightSpace.from_module(nn.Sequential(*layers), torch.zeros(2, 2, 6, 6))


def residual() -> WeightSpace:
    return WeightSpace.from_module(Residual(), torch.zeros(2, 2, 6, 6))


def transformer() -> WeightSpace:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))
    return WeightSpace.from_module(model, torch.zeros(2, 5, 3))


SPACES: dict[str, Callable[[], WeightSpace]] = {
    "mlp": mlp,
    "cnn": cnn,
    "residual": residual,
    "transformer": transformer,
}


def draw(space: WeightSpace, log_scales: Tensor, generator: torch.Generator) -> Features:
    """Normal weights, of standard deviation ``exp(log_scale)`` in each network of the batch."""
    features = {}
    for spec in space.parameters:
        weights = torch.randn(len(log_scales), *spec.view_shape, 1, generator=generator)
        features[spec.name] = weights * log_scales.exp().reshape(-1, *(1 for _ in spec.axes), 1)
    return features
