"""Layers shared by all networks see every coupling where tensors have several groups on a side, or one group twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.layers import ChannelNorm, GaussianFourierFeatures, NFAttention, NFLinear, NFTransformerBlock
from nfn_opt.testing import assert_equivariant, assert_sensitive
from nfn_opt.weight_space import WeightSpace
from tests.layers.spaces import mlp, space_of


class Products(nn.Module):
    """Products of hidden neurons: one group acts twice on the inputs of what comes behind."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.first, self.behind = nn.Linear(3, 5), behind

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        h = self.first(x).tanh()
        two = isinstance(self.behind, nn.Bilinear)
        out: Tensor = self.behind(h, h) if two else self.behind((h[:, :, None] * h[:, None]).flatten(1))
        return out


class Attention(nn.Module):
    """Attention with learned keys and values beside those of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 12), nn.Linear(12, 2)
        self.attention = nn.MultiheadAttention(12, 3, add_bias_kv=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        h = self.first(x)
        out: Tensor = self.last(self.attention(h, h, h)[0])
        return out


SPACES: dict[str, Callable[[], WeightSpace]] = {
    "bilinear": lambda: space_of(Products(nn.Bilinear(5, 5, 4)), 3),
    "outer product": lambda: space_of(Products(nn.Linear(25, 2)), 3),
    "heads": lambda: space_of(Attention(), 4, 3),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_coupling_is_seen(name: str, generator: torch.Generator) -> None:
    space = SPACES[name]()
    layer = NFLinear(space, 2, 3, sharing="by_relation", generator=generator).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    assert_equivariant(layer, space, 2, generator)
    assert_sensitive(layer, space, 2, generator)


def test_no_network_at_all() -> None:
    space = space_of(mlp(2, 3, 2), 2)
    for layer in (NFAttention(space, 4, 2), NFTransformerBlock(space, 4, 2)):
        empty = {spec.name: torch.zeros(0, *spec.view_shape, 4) for spec in space.parameters}
        assert all(tensor.shape == empty[name].shape for name, tensor in layer(empty).items())


def test_half_precision_keeps_the_phase_of_fourier_features(generator: torch.Generator) -> None:
    layer, x = GaussianFourierFeatures(1, 8, generator=generator), {"w": torch.linspace(-3, 3, 50)[:, None]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)["w"]
    torch.testing.assert_close(half.float(), layer(x)["w"], atol=0.01, rtol=0)


def test_refused(generator: torch.Generator) -> None:
    space = space_of(mlp(2, 3, 2), 2)
    with pytest.raises(ValueError, match="channels is 0, expected at least 1"):
        ChannelNorm(0)
    with pytest.raises(ValueError, match="frequencies is 0, expected a positive number"):
        GaussianFourierFeatures(1, 0)
    wrong = {spec.name: torch.zeros(1, *spec.view_shape, 3) for spec in space.parameters}
    with pytest.raises(ValueError, match=r"0\.weight"):
        NFTransformerBlock(space, 4, 2)(wrong)
