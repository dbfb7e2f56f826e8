"""A zoo whose accuracies follow from the weights by a rule, for tests."""

from __future__ import annotations

import torch

from nfn_opt.data.zoos import CnnArchitecture, Zoo
from nfn_opt.data.zoos.table import Column

ARCHITECTURE = CnnArchitecture(widths=(3, 4), classes=3)


def small_zoo(count: int, generator: torch.Generator, architecture: CnnArchitecture = ARCHITECTURE) -> Zoo:
    """Networks whose accuracy grows with the size of their weights, tanh or ReLU in turn."""
    sizes = torch.rand(count, generator=generator) * 2 + 0.1
    params = {
        name: torch.randn(count, *shape, generator=generator) * sizes.reshape(-1, *(1 for _ in shape))
        for name, shape in architecture.parameter_shapes.items()
    }
    table: dict[str, Column] = {
        "activation": tuple("relu" if number % 2 else "tanh" for number in range(count)),
        "optimizer": tuple("adam" if size > 1 else "sgd" for size in sizes.tolist()),
        "learning_rate": sizes.double().square() / 100,
        "test_accuracy": (sizes / 2.2).double(),
    }
    return Zoo(params, architecture, table)
