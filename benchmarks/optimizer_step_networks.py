"""The networks whose optimizer step is measured, with random weights and random gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Module:
    """A fully connected network."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """Two 3 x 3 convolutions and the sum with what comes in, that of ResNet-18 (arXiv:1512.03385)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, before, h, w)`` to ``(B, after, h / stride, w / stride)``."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18 for images of ImageNet's size, 11,689,512 parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def gpt2_small() -> nn.Module:
    """GPT-2 small with shared embeddings, 124,439,808 parameters, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    network: nn.Module = GPT2LMHeadModel(GPT2Config())
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-32-10": lambda: mlp(64, 32, 10),
    "MLP 784-128-128-10": lambda: mlp(784, 128, 128, 10),
    "MLP 3072-512-512-10": lambda: mlp(3072, 512, 512, 10),
    "ResNet-18": resnet18,
    "GPT-2 small": gpt2_small,
}


def with_gradients(name: str) -> list[nn.Parameter]:
    """The parameters of a network, with random gradients of deviation 0.01."""
    params = list(NETWORKS[name]().parameters())
    generator = torch.Generator().manual_seed(0)
    for p in params:
        p.grad = torch.empty_like(p).normal_(0.0, 0.01, generator=generator)
    return params
