"""Verification passes on the right space (everywhere in these tests) and fails on wrong ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Axis, TensorSpec, WeightSpace
from tests.weight_space.models import between, check, draw, randomised, two_layers


def edited(space: WeightSpace, **axes: tuple[Axis, ...]) -> WeightSpace:
    """The space with other axes for some parameters; ``_`` stands for the dot in their names."""
    specs = {spec.name.replace(".", "_"): spec for spec in space.parameters}
    new = {name: TensorSpec(specs[name].name, specs[name].shape, axes[name]) for name in axes}
    return replace(space, parameters=tuple(new.get(name, spec) for name, spec in specs.items()))


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("width", [2, 3, 9])
def test_outputs_taken_for_neurons(width: int) -> None:
    model = randomised(mlp(3, 4, width))
    space = WeightSpace.from_module(model, draw(5, 3))
    out = Axis("o", width)
    wrong = edited(space, **{"2_weight": (out, space["2.weight"].axes[1]), "2_bias": (out,)})
    with pytest.raises(ValueError, match="does not belong to this model"):
        wrong.verify(model, draw(5, 3))


@pytest.mark.parametrize("width", [2, 3, 9])
def test_two_layers_taken_for_one(width: int) -> None:
    model = randomised(mlp(3, width, width, 2))
    space = WeightSpace.from_module(model, draw(5, 3))
    h1 = space["0.bias"].axes[0]
    last = space["4.weight"].axes
    wrong = edited(space, **{"2_weight": (h1, h1), "2_bias": (h1,), "4_weight": (last[0], h1)})
    assert wrong.groups == {"h1": width}
    assert (
        wrong.verify(model, draw(5, 3)) < 1e-10
    )  # one permutation for both is a symmetry too, if a smaller one
    with pytest.raises(ValueError, match="does not belong"):
        edited(space, **{"2_bias": (h1,)}).verify(model, draw(5, 3))


@pytest.mark.parametrize("width", [2, 3, 9])
@pytest.mark.parametrize("name", ["0_bias", "2_weight"])
def test_one_layer_taken_for_two(width: int, name: str) -> None:
    model = randomised(mlp(3, width, 2))
    space = WeightSpace.from_module(model, draw(5, 3))
    axes = tuple(
        replace(axis, name="other") if axis.permutable else axis
        for axis in space[name.replace("_", ".")].axes
    )
    with pytest.raises(ValueError, match="does not belong"):
        edited(space, **{name: axes}).verify(model, draw(5, 3), trials=1)


def test_running_statistics_left_behind() -> None:
    model = between(nn.BatchNorm1d(6))
    space = check(model, draw(5, 3))
    with pytest.raises(ValueError, match="does not belong"):
        replace(space, buffers=()).verify(model, draw(5, 3))


def test_pixels_taken_for_channels() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Flatten(), nn.Linear(4 * 4, 3))
    space = check(model, draw(2, 2, 4))
    rows, channels, pixels = space["2.weight"].axes
    with pytest.raises(ValueError, match="does not belong"):
        edited(space, **{"2_weight": (rows, replace(pixels, name="p"), channels)}).verify(
            model, draw(2, 2, 4)
        )


def test_a_change_that_makes_an_output_infinite_or_nan() -> None:
    def root_of_first(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x)) + m.a.bias[0].sqrt()

    model = two_layers(root_of_first)
    space = WeightSpace.from_module(between(), draw(2, 3))
    named = {"0.weight": "a.weight", "0.bias": "a.bias", "1.weight": "b.weight", "1.bias": "b.bias"}
    wrong = replace(space, parameters=tuple(replace(s, name=named[s.name]) for s in space.parameters))
    with torch.no_grad():
        model.get_parameter("a.bias").copy_(torch.tensor([1.0, -1, -1, -1, -1, -1]))
    with pytest.raises(ValueError, match="changes an output by inf"):
        wrong.verify(model, draw(2, 3))


def test_models_that_write_into_their_arguments() -> None:
    def careless(m: Any, x: Tensor) -> Tensor:
        m.a.bias.mul_(2)
        m.count.add_(1)
        return m.b(m.a(x.mul_(2)))

    model, x = two_layers(careless, count=torch.zeros(())).double(), draw(2, 3).double()
    before = [t.detach().clone() for t in (x, *model.parameters(), *model.buffers())]
    space = WeightSpace.from_module(model, x)
    assert space.groups == {"h1": 6}
    assert space.verify(model, x) < 1e-10
    torch.testing.assert_close([x, *model.parameters(), *model.buffers()], before, rtol=0, atol=0)


def test_precision() -> None:
    model = randomised(mlp(3, 17, 17, 2))
    space = WeightSpace.from_module(model, draw(5, 3))
    single = space.verify(model, draw(5, 3), dtype=torch.float32)
    assert 1e-10 < single < 1e-4
    assert space.verify(model, draw(5, 3)) < 1e-10
    assert space.verify(model.double(), draw(5, 3).double(), dtype=None) < 1e-10
    with pytest.raises(ValueError, match="expected at most 0"):
        space.verify(model.float(), draw(5, 3), dtype=None, tolerance=0.0)


def test_permutations_are_drawn_from_the_generator_alone(generator: torch.Generator) -> None:
    model = between()
    space = WeightSpace.from_module(model, draw(2, 3))
    own, everyones = generator.get_state(), torch.get_rng_state()
    space.verify(model, draw(2, 3), generator=generator)
    assert not torch.equal(generator.get_state(), own)
    assert torch.equal(torch.get_rng_state(), everyones)


def test_other_batches_than_the_traced_one() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    space = WeightSpace.from_module(randomised(model), draw(2, 3, 2, 2), symmetry="all")
    for batch in (1, 2, 7):
        assert space.verify(model, draw(batch, 3, 2, 2)) < 1e-10


def nan_model(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x)) / 0 * 0


def noisy(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x)) + torch.rand(2, generator=m.generator)


REFUSED: dict[str, tuple[nn.Module, Any, dict[str, Any], str]] = {
    "no trials": (between(), draw(2, 3), {"trials": 0}, "trials is 0, expected at least 1"),
    "another model": (nn.Linear(3, 2), draw(2, 3), {}, "missing 0.weight"),
    "another width": (nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 2)), draw(2, 3), {}, "has shape"),
    "inputs that do not fit": (between(), draw(2, 4), {}, "Sequential fails on the example inputs"),
    "inputs of another type": (between(), torch.zeros(2, 3, dtype=torch.int64), {}, "Sequential fails"),
    "more inputs": (between(), (draw(2, 3), draw(2, 3)), {}, "hold 2 tensors, expected 1"),
    "no entries": (between(), draw(0, 3), {}, "outputs have no entries"),
    "meta": (between().to("meta"), draw(2, 3).to("meta"), {}, "meta device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    model, inputs, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        WeightSpace.from_module(between(), draw(2, 3)).verify(model, inputs, **options)


def test_refused_models() -> None:
    not_finite = two_layers(nan_model)
    with pytest.raises(ValueError, match="outputs are not finite"):
        WeightSpace.from_module(not_finite, draw(2, 3)).verify(not_finite, draw(2, 3))

    random = two_layers(noisy)
    random.__dict__["generator"] = torch.Generator().manual_seed(0)
    space = WeightSpace.from_module(two_layers(lambda m, x: m.b(m.a(x))), draw(2, 3))
    with pytest.raises(ValueError, match="or the model is not deterministic"):
        space.verify(random, draw(2, 3))

    fixed = two_layers(lambda m, x: m.b(m.a(x)) @ torch.eye(2))
    space = WeightSpace.from_module(fixed, draw(2, 3))
    with pytest.raises(ValueError, match="pass dtype=None"):
        space.verify(fixed, draw(2, 3))
    assert space.verify(fixed, draw(2, 3), dtype=None) < 1e-4


def test_inputs_of_another_shape_than_their_groups() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.AdaptiveAvgPool1d(1))
    space = WeightSpace.from_module(model, draw(2, 3, 5), symmetry="all")
    with pytest.raises(ValueError, match=r"input 0 has shape \(2, 3, 6\), expected \(2, 3, 5\)"):
        space.verify(model, draw(2, 3, 6))
