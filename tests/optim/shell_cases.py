"""A small model to train, and what the tests of the optimizer ask of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

DATA = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Two layers, typed so that tests can name their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def make_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    model = Model().to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model


def loss_of(model: nn.Module) -> Tensor:
    return (model(DATA.to(next(model.parameters()).dtype)) - 1).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    return copy.deepcopy(optimizer.state_dict())


def same(a: Any, b: Any) -> None:
    """Nested containers of equal structure, bit-equal tensors and equal other values."""
    (a, structure), (b, expected) = (torch.utils._pytree.tree_flatten(x) for x in (a, b))
    assert structure == expected
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y
