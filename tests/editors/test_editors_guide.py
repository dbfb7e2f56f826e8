"""Guides: the gradients are those of automatic differentiation, and every pixel is heard."""

from __future__ import annotations

import pytest
import torch

from editors.guide import Guide, GuideConfig, pull_back, render_for_gradient
from editors.siren import SirenConfig, coordinates, initial_parameters, siren_apply

DOUBLE = torch.float64


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_those_of_automatic_differentiation(layers: int, channels: int) -> None:
    siren = SirenConfig(hidden_width=5, hidden_layers=layers, out_channels=channels, omega_0=10.0)
    generator = torch.Generator().manual_seed(layers)
    params = {
        name: value.double().requires_grad_()
        for name, value in initial_parameters(siren, 3, generator).items()
    }
    coords = coordinates(4, 3, dtype=DOUBLE)
    change = torch.randn(3, channels, 12, generator=generator, dtype=DOUBLE)
    rendering = render_for_gradient(params, coords, siren)
    shown = siren_apply(params, coords, siren)
    torch.testing.assert_close(rendering.values.mT, shown)
    exact = torch.autograd.grad((shown.mT * change).sum(), list(params.values()))
    found = pull_back(params, rendering, change)
    assert found.keys() == params.keys()
    for name, value in zip(params, exact, strict=True):
        torch.testing.assert_close(found[name], value)


def test_gradients_can_be_differentiated_again() -> None:
    siren = SirenConfig(hidden_width=3, omega_0=5.0)
    params = initial_parameters(siren, 2, torch.Generator().manual_seed(0))
    names, coords = list(params), coordinates(2, 2, dtype=DOUBLE)

    def gradients(change: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        return tuple(pull_back(given, render_for_gradient(given, coords, siren), change).values())

    inputs = [torch.ones(2, 1, 4, dtype=DOUBLE), *(value.double() for value in params.values())]
    assert torch.autograd.gradcheck(gradients, [value.requires_grad_() for value in inputs])


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_guide_keeps_the_shape_of_the_picture(layers: int) -> None:
    config, siren = GuideConfig(channels=4, layers=layers), SirenConfig(out_channels=3)
    guide = Guide(config, siren, (6, 5), generator=torch.Generator().manual_seed(0))
    shown = torch.rand(2, 3, 30, generator=torch.Generator().manual_seed(1))
    assert guide(shown, shown).shape == shown.shape


def test_a_guide_sees_the_picture_now_before_and_the_place() -> None:
    guide = Guide(GuideConfig(channels=8), SirenConfig(), (6, 6), generator=torch.Generator().manual_seed(0))
    now, before = torch.rand(2, 1, 1, 36, generator=torch.Generator().manual_seed(1))
    change = guide(now, before)
    assert not torch.allclose(guide(now + 0.1, before), change, atol=1e-4)
    assert not torch.allclose(guide(now, before + 0.1), change, atol=1e-4)
    flat = guide(torch.zeros_like(now), torch.zeros_like(now)).view(6, 6)[2:4, 2:4]
    assert flat.std() > 1e-4


def test_a_guide_is_drawn_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (
        Guide(GuideConfig(), SirenConfig(), (4, 4), generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{"channels": -1}, {"layers": 0}])
def test_sizes_that_make_no_guide(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"guide has -?\d+ channels and \d+ layers, expected 0"):
        GuideConfig(**options)
