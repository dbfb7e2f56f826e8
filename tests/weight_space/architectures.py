"""Small models of the common families, for the tests of tracing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.weight_space.models import Program


class ResidualBlock(nn.Module):
    """Two convolutions added to their input, which a projection brings to their shape."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(h + self.skip(x))


def residual_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        ResidualBlock(4, 4),
        ResidualBlock(4, 4),
        ResidualBlock(4, 6, stride=2),
        ResidualBlock(6, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


class UNet(nn.Module):
    """Two levels down and up, the features of each level concatenated to those that come back up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 7, 3, padding=1)
        self.up2, self.join2 = nn.ConvTranspose2d(7, 6, 2, 2), nn.Conv2d(12, 6, 3, padding=1)
        self.up1, self.join1 = nn.ConvTranspose2d(6, 5, 2, 2), nn.Conv2d(9, 5, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(1, 5), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        h = F.relu(self.middle(F.max_pool2d(two, 2)))
        h = F.relu(self.join2(torch.cat([self.up2(h), two], 1)))
        h = F.relu(self.join1(torch.cat([self.up1(h), one], 1)))
        return self.head(self.norm(h))


class DenseNet(nn.Module):
    """Each layer reads the outputs of all before it."""

    def __init__(self, growth: tuple[int, ...] = (4, 5, 6)) -> None:
        super().__init__()
        self.stem, width = nn.Conv2d(3, 3, 1), 3
        self.norms, self.layers = nn.ModuleList(), nn.ModuleList()
        for n in growth:
            self.norms.append(nn.BatchNorm2d(width))
            self.layers.append(nn.Conv2d(width, n, 3, padding=1))
            width += n
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = torch.cat([h, layer(F.relu(norm(h)))], 1)
        return self.head(h.mean((2, 3)))


class PackedAttention(nn.Module):
    """Self-attention with one product for queries, keys and values, as in most Vision Transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions and pre-norm blocks; classifies by the class token."""

    def __init__(self, width: int = 12, heads: int = 3, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = (
            nn.Parameter(torch.zeros(1, 1, width)),
            nn.Parameter(torch.zeros(1, 5, width)),
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "attention": PackedAttention(width, heads),
                    "norm2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)),
                }
            )
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            parts: Any = block
            x = x + parts["attention"](parts["norm1"](x))
            x = x + parts["mlp"](parts["norm2"](x))
        return self.head(self.norm(x)[:, 0])


class Mixer(nn.Module):
    """MLPs over the positions and over the channels in turn (arXiv:2105.01601)."""

    def __init__(self, width: int = 8, tokens: int = 4) -> None:
        super().__init__()
        self.patches, self.norm1, self.norm2 = (
            nn.Conv2d(3, width, 4, 4),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.tokens = nn.Sequential(nn.Linear(tokens, 6), nn.GELU(), nn.Linear(6, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 10), nn.GELU(), nn.Linear(10, width))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).mT).mT
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class Siren(nn.Module):
    """A coordinate network with sine activations (arXiv:2006.09661)."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.sin(30.0 * layer(x))
        return last(x)


class FourierNetwork(nn.Module):
    """A coordinate network on sines and cosines of fixed random projections (arXiv:2006.10739)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(2, 5))
        self.layers = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.get_buffer("frequencies")
        return self.layers(torch.cat([phase.sin(), phase.cos()], -1))


def tied_embedding() -> nn.Module:
    """A language model whose last layer is its embedding."""
    model = Program(
        lambda m, x: m.head(F.relu(m.layer(m.embed(x))) + m.embed(x)),
        embed=nn.Embedding(7, 6),
        layer=nn.Linear(6, 6),
        head=nn.Linear(6, 7, bias=False),
    )
    model.get_submodule("head").weight = model.get_submodule("embed").weight
    return model


def parametrized(name: str) -> nn.Module:
    """A layer whose weight is computed from other parameters, between two layers."""
    wrapped = getattr(parametrizations, name)(nn.Linear(5, 6))
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), wrapped, nn.Tanh(), nn.Linear(6, 2))


def gated(packed: bool) -> nn.Module:
    """A gated MLP (SwiGLU) with one or two projections."""
    if packed:
        return Program(
            lambda m, x: m.down((lambda gate, up: F.silu(gate) * up)(*m.up(x).chunk(2, -1))),
            up=nn.Linear(3, 10),
            down=nn.Linear(5, 2),
        )
    return Program(
        lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)),
        gate=nn.Linear(3, 5),
        up=nn.Linear(3, 5),
        down=nn.Linear(5, 2),
    )


def around(layer: nn.Module, inputs: int, outputs: int, call: Any = None) -> nn.Module:
    """A layer between a linear layer that feeds it and one that reads what it gives."""
    call = call or (lambda layer, h: layer(h)[0])
    return Program(
        lambda m, x: m.head(call(m.layer, m.embed(x))),
        embed=nn.Linear(3, inputs),
        layer=layer,
        head=nn.Linear(outputs, 2),
    )
