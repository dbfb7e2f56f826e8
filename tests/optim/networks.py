"""Random networks whose symmetry the tests permute, and the measure of equivariance."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from nfn_opt.optim import UpdateRule
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import run


def draw_int(generator: torch.Generator, low: int, high: int) -> int:
    """A uniformly random integer in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def random_network(seed: int) -> tuple[nn.Module, Tensor]:
    """A network of depth 1 to 6 and widths 1 to 17, dense or convolutional, and inputs for it."""
    generator = torch.Generator().manual_seed(seed)
    depth = draw_int(generator, 1, 6)
    widths = [draw_int(generator, 1, 17) for _ in range(depth + 1)]
    convolutional = seed % 2 == 1
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        bias = draw_int(generator, 0, 1) == 1
        last = i == depth - 1
        if convolutional and last:
            layers += [nn.Flatten(), nn.Linear(n_in * 9, n_out, bias=bias)]
        elif convolutional:
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias), nn.ReLU()]
        else:
            layers += [nn.Linear(n_in, n_out, bias=bias)] + (
                [] if last else [nn.BatchNorm1d(n_out), nn.Tanh()]
            )
    shape = (4, widths[0], 3, 3) if convolutional else (4, widths[0])
    return nn.Sequential(*layers), torch.randn(shape, generator=generator)


def random_space(seed: int) -> WeightSpace:
    """The weight space of :func:`random_network`, with all neurons (NP) or the hidden ones (HNP) permutable."""
    model, inputs = random_network(seed)
    return WeightSpace.from_module(model, inputs, symmetry="all" if seed % 4 < 2 else "hidden")


def draw_like(space: WeightSpace, generator: torch.Generator) -> dict[str, Tensor]:
    """Random float64 tensors of a space."""
    return {s.name: torch.randn(s.shape, generator=generator, dtype=torch.float64) for s in space.parameters}


def difference(
    rule: UpdateRule, space: WeightSpace, acting: WeightSpace, generator: torch.Generator
) -> float:
    """Relative difference of the two orders after three updates, for a random permutation of ``acting``."""
    params, gradients = draw_like(space, generator), [draw_like(space, generator) for _ in range(3)]
    permutation = acting.random_permutation(generator)
    after, _ = run(rule, space, params, gradients)
    permuted = [acting.permute(tensors, permutation) for tensors in (params, *gradients)]
    got, _ = run(rule, space, permuted[0], permuted[1:])
    expected = acting.permute(after, permutation)
    moved = {name: expected[name] - permuted[0][name] for name in expected}
    size = max(m.abs().max().item() for m in moved.values())
    return max((got[n] - expected[n]).abs().max().item() for n in expected) / size
