"""A zoo of several architectures whose accuracies follow from the weights by a rule, for tests."""

from __future__ import annotations

import torch

from nfn_opt.data.zoos import VariedArchitecture, VariedGroup, VariedZoo
from nfn_opt.data.zoos.table import Column

WIDTHS = ((3, 4), (4,), (2, 3, 3), (5, 2), (3, 3))


def made_varied_zoo(each: int, generator: torch.Generator) -> VariedZoo:
    """As many networks of each architecture, their rows in turn; accuracy grows with the size of the weights."""
    architectures = [
        VariedArchitecture(
            in_channels=1,
            widths=widths,
            kernel_sizes=(3,) * len(widths),
            strides=(1,) * len(widths),
            residuals=(-1, -1, 0)[: len(widths)],
            activations=("relu", "tanh", "relu")[: len(widths)],  # type: ignore[arg-type]
            classes=3,
        )
        for widths in WIDTHS
    ]
    count = each * len(architectures)
    sizes = torch.rand(count, generator=generator) * 2 + 0.1
    groups = []
    for number, architecture in enumerate(architectures):
        rows = torch.arange(number, count, len(architectures))
        params = {
            name: torch.randn(each, *shape, generator=generator)
            * sizes[rows].reshape(-1, *(1 for _ in shape))
            for name, shape in architecture.parameter_shapes.items()
        }
        groups.append(VariedGroup(architecture, params, rows))
    of = [architectures[row % len(architectures)] for row in range(count)]
    table: dict[str, Column] = {
        "depth": torch.tensor([len(one.widths) for one in of]),
        "parameters": torch.tensor([one.parameters for one in of]),
        "residual_connections": torch.tensor([int(len(one.widths) == 3) for one in of]),
        "activations": tuple("-".join(one.activations) for one in of),
        "optimizer": tuple("adam" if size > 1 else "sgd" for size in sizes.tolist()),
        "test_accuracy": (sizes / 2.2).double(),
    }
    return VariedZoo(tuple(groups), table)
