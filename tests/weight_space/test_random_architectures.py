"""Random feed-forward networks: the symmetry found holds, is complete, and a wrong one is caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.weight_space.models import draw, randomised

SYMMETRIES: list[Symmetry] = ["hidden", "all"]


class Residual(nn.Module):
    """A block added to its own input."""

    def __init__(self, *block: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Draws:
    """Choices from one generator; ``smooth`` ones make no neuron that is dead or that cannot be told from others."""

    def __init__(self, seed: int, smooth: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.smooth = smooth

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def flag(self) -> bool:
        return self.integer(0, 1) == 1

    def width(self) -> int:
        return self.integer(3 if self.smooth else 1, 17)

    def activation(self) -> nn.Module:
        activations = (nn.Tanh(), nn.SiLU(inplace=True), nn.Identity(), nn.ReLU(), nn.GELU(), nn.PReLU())
        return activations[self.integer(0, 1 if self.smooth else 5)]


def dense(draws: Draws, inputs: int, outputs: int) -> nn.Sequential:
    """One linear layer, perhaps with a norm, an activation, dropout, and a residual block behind it."""
    norms: list[Callable[[int], nn.Module]] = [
        nn.BatchNorm1d,
        nn.LayerNorm,
        nn.RMSNorm,
        lambda n: nn.Identity(),
    ]
    layers: list[nn.Module] = [
        nn.Linear(inputs, outputs, bias=draws.flag()),
        norms[draws.integer(0, 3)](outputs),
    ]
    if draws.flag():
        inner = draws.width()
        layers.append(
            Residual(
                nn.Linear(outputs, inner), draws.activation(), nn.Linear(inner, outputs, bias=draws.flag())
            )
        )
    return nn.Sequential(*layers, draws.activation(), nn.Dropout(0.3))


def convolution(draws: Draws, inputs: int, outputs: int, dims: int) -> nn.Sequential:
    """One convolution, perhaps with a norm, a depthwise residual block or pooling behind it."""
    layer, norm, pool = (
        (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d)
    )
    kernel = 2 * draws.integer(0, 1) + 1
    layers: list[nn.Module] = [layer(inputs, outputs, kernel, padding=kernel // 2, bias=draws.flag())]
    layers += [norm(outputs, affine=draws.flag())] if draws.flag() else []
    layers += [Residual(layer(outputs, outputs, 3, padding=1, groups=outputs))] if draws.flag() else []
    layers += [pool(2, stride=1)] if draws.flag() else []
    return nn.Sequential(*layers, draws.activation())


def network(seed: int, smooth: bool = False) -> tuple[nn.Module, Tensor]:
    """A network of depth 1 to 6 and widths 1 to 17, and inputs for it."""
    draws = Draws(seed, smooth)
    depth, dims = draws.integer(1, 6), draws.integer(0, 2)
    widths = [draws.width() for _ in range(depth + 1)]
    if dims == 0:
        layers: list[nn.Module] = [dense(draws, a, b) for a, b in pairwise(widths[:-1])]
        layers.append(nn.Linear(widths[-2], widths[-1], bias=draws.flag()))
        return randomised(nn.Sequential(*layers), seed), draw(3, widths[0], seed=seed)
    body = nn.Sequential(*(convolution(draws, a, b, dims) for a, b in pairwise(widths[:-1])))
    x = draw(2, widths[0], *[6] * dims, seed=seed)
    pooled = (
        (nn.AdaptiveAvgPool1d if dims == 1 else nn.AdaptiveMaxPool2d)(1) if draws.flag() else nn.Identity()
    )
    head = nn.Sequential(pooled, nn.Flatten(), nn.Dropout())
    features = head.eval()(body.eval()(x)).shape[1]
    return randomised(nn.Sequential(body, head, nn.Linear(features, widths[-1])), seed), x


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("seed", range(100))
def test_the_symmetry_found_holds(seed: int, symmetry: Symmetry) -> None:
    model, x = network(seed)
    space = WeightSpace.from_module(model, x, symmetry=symmetry)
    assert space.verify(model, x, trials=1) < 1e-10
    state = model.state_dict()
    perm = space.random_permutation(torch.Generator().manual_seed(seed))
    back = space.permute(space.permute(state, perm), perm, inverse=True)
    torch.testing.assert_close(back, dict(state), rtol=0, atol=0)


def torn(space: WeightSpace) -> Iterator[WeightSpace]:
    """The space with, in one parameter that shares its first group with others, another name for that group."""
    counts = Counter(
        name for spec in space.parameters for name in {a.name for a in spec.axes if a.permutable}
    )
    for index, spec in enumerate(space.parameters):
        first = next((axis for axis in spec.axes if counts[axis.name] > 1), None)
        if first:
            axes = tuple(replace(axis, name="torn") if axis == first else axis for axis in spec.axes)
            wrong = replace(spec, axes=axes)
            yield replace(
                space, parameters=(*space.parameters[:index], wrong, *space.parameters[index + 1 :])
            )


@pytest.mark.parametrize("seed", range(40))
def test_a_tensor_torn_from_its_group_is_caught(seed: int) -> None:
    model, x = network(seed, smooth=True)
    for wrong in islice(torn(WeightSpace.from_module(model, x, symmetry="all")), 6):
        with pytest.raises(ValueError, match="does not belong"):
            wrong.verify(model, x)


def layer(draws: Draws, dims: int, inputs: int, outputs: int) -> nn.Module:
    """A linear layer, or a convolution over so many dimensions."""
    if dims == 0:
        return nn.Linear(inputs, outputs, bias=draws.flag())
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        inputs, outputs, draws.integer(1, 2), bias=draws.flag()
    )


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("seed", range(40))
def test_the_groups_found_are_the_layers(seed: int, symmetry: Symmetry) -> None:
    draws = Draws(seed)
    dims, widths = draws.integer(0, 3), [draws.width() for _ in range(draws.integer(1, 6) + 1)]
    layers = [nn.Sequential(layer(draws, dims, a, b), draws.activation()) for a, b in pairwise(widths)]
    groups = WeightSpace.from_module(
        nn.Sequential(*layers), draw(2, widths[0], *[7] * dims), symmetry=symmetry
    ).groups
    expected = {f"h{i}": width for i, width in enumerate((w for w in widths[1:-1] if w > 1), 1)}
    if symmetry == "all":
        expected |= {name: width for name, width in (("in1", widths[0]), ("out1", widths[-1])) if width > 1}
    assert groups == expected
