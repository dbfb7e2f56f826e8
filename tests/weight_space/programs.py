"""Random programs of operators, for tests that the tracer invents no symmetry."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.weight_space.models import draw

SIZES = (1, 2, 3, 4, 6)
SHAPES = [(2, 3), (2, 6), (3, 4, 2), (2, 3, 4), (2, 2, 3), (2, 4, 4), (2, 2, 2, 3)]


class RandomProgram(nn.Module):
    """A program drawn from a seed; the same choices are made in every forward pass.

    The parameters that the operators ask for are made in the first pass.
    """

    def __init__(self, seed: int, operators: Sequence[Operator]) -> None:
        super().__init__()
        self.seed, self.operators = seed, operators
        self.weights = nn.ParameterList([nn.Parameter(draw(3).double())])
        self.complete = False

    def forward(self, x: Tensor) -> Tensor:
        self.choices, self.asked, self.values = random.Random(self.seed), 1, [x]
        for _ in range(self.choices.randint(3, 9)):
            h = self.values[-1] if self.choices.random() < 0.8 else self.choices.choice(self.values)
            h = h.mean(-1) if h.numel() > 2000 else h
            h = h.reshape(1, -1) if h.dim() < 2 else h
            result = self.choices.choice(self.operators)(self, h, self.choices.randrange(h.dim()))
            self.values.append(result if result.numel() else h)
        return self.values[-1]

    def weight(self, *shape: int) -> Tensor:
        """The next parameter."""
        if not self.complete:
            self.weights.append(nn.Parameter(draw(*shape, seed=1000 * self.seed + self.asked).double()))
        self.asked += 1
        return self.weights[self.asked - 1]

    def size(self) -> int:
        return self.choices.choice(SIZES)

    def divisor(self, number: int) -> int:
        return self.choices.choice([d for d in range(1, number + 1) if number % d == 0])


Operator = Callable[[RandomProgram, Tensor, int], Tensor]
"""What a program may do: given itself, a tensor of at least two axes and one of its axes."""


def program(seed: int, operators: Sequence[Operator]) -> tuple[RandomProgram, Tensor]:
    """A program with its parameters made, and its inputs."""
    shape = random.Random(seed + 10**6).choice(SHAPES)
    model, x = RandomProgram(seed, operators), draw(*shape, seed=seed).double()
    with torch.no_grad():
        model(x)
    model.complete = True
    return model, x


def is_sound(seed: int, operators: Sequence[Operator], symmetry: Symmetry) -> bool:
    """Whether permuting along the symmetry found leaves the outputs of a program unchanged."""
    model, x = program(seed, operators)
    space = WeightSpace.from_module(model, x, symmetry=symmetry)
    with torch.no_grad():
        largest = float(model(x).abs().max())
    # Where entries cancel, the outputs are but rounding errors.
    tolerance = 1e-7 + 1e-12 / max(largest, 1e-20)
    try:
        space.verify(model, x, tolerance=tolerance)
    except ValueError as error:
        assert "permuting the neurons changes an output" in str(error)  # noqa: PT017
        return False
    return True
