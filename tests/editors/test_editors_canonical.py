"""Signs and phases of SIRENs: functions stay the same, representatives are unique, edits follow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from editors import Editor, EditorConfig, InrSet, SirenConfig, canonicalize, coordinates, siren_apply
from editors.siren import initial_parameters
from nfn_opt.functionals import EquivariantConfig

CONFIGS = (SirenConfig(), SirenConfig(hidden_width=5, hidden_layers=3, out_channels=3, omega_0=7.0))
GRID = coordinates(7, 6, dtype=torch.float64)


def drawn(config: SirenConfig, seed: int = 0) -> dict[str, Tensor]:
    params = initial_parameters(config, 3, torch.Generator().manual_seed(seed))
    return {name: 2 * value.double() for name, value in params.items()}


def moved(params: dict[str, Tensor], config: SirenConfig, seed: int = 1) -> dict[str, Tensor]:
    """The same functions with other signs and phases."""
    generator, found = torch.Generator().manual_seed(seed), dict(params)
    for layer in range(config.hidden_layers):
        weight, bias, reading = f"layers.{layer}.weight", f"layers.{layer}.bias", f"layers.{layer + 1}.weight"
        sign = 1.0 - 2.0 * torch.randint(2, found[bias].shape, generator=generator).double()
        turns = torch.randint(-3, 4, found[bias].shape, generator=generator).double()
        found[weight] = found[weight] * sign.unsqueeze(2)
        found[bias] = found[bias] * sign + turns * (math.pi / config.omega_0)
        found[reading] = found[reading] * (sign * (1 - 2 * (turns % 2))).unsqueeze(1)
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_the_function_stays_and_the_representative_is_one(config: SirenConfig) -> None:
    params = drawn(config)
    other = moved(params, config)
    values = siren_apply(params, GRID, config)
    torch.testing.assert_close(siren_apply(other, GRID, config), values, rtol=0, atol=1e-11)
    assert not torch.allclose(other["layers.0.bias"], params["layers.0.bias"])
    found, _ = canonicalize(params, config)
    torch.testing.assert_close(siren_apply(found, GRID, config), values, rtol=0, atol=1e-11)
    again, _ = canonicalize(other, config)
    for name in params:
        torch.testing.assert_close(again[name], found[name], rtol=0, atol=1e-12)
    for layer in range(config.hidden_layers):
        assert found[f"layers.{layer}.bias"].abs().max() <= math.pi / (2 * config.omega_0) + 1e-12
    assert (found["layers.0.weight"][..., 0] >= 0).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_change_is_brought_back(config: SirenConfig) -> None:
    params, change = drawn(config), {name: 0.01 * value for name, value in drawn(config, seed=5).items()}
    found, signs = canonicalize(params, config)
    here = {name: found[name] + change[name] for name in found}
    back = signs.apply(change)
    there = {name: params[name] + back[name] for name in params}
    torch.testing.assert_close(
        siren_apply(there, GRID, config), siren_apply(here, GRID, config), rtol=0, atol=1e-11
    )
    for name, value in signs.apply(back).items():
        assert torch.equal(value, change[name])


@pytest.mark.parametrize("canonical", [True, False])
def test_edits_of_one_function_are_one_function(canonical: bool) -> None:
    config = CONFIGS[1]
    body = EquivariantConfig(hidden_channels=6, out_scale=1.0)
    editor = Editor(
        EditorConfig(siren=config, edit="dilate", image_size=(7, 6), canonical=canonical, body=body)
    ).double()
    sets = [
        InrSet(p, config, torch.full((3,), torch.nan), (7, 6))
        for p in (drawn(config), moved(drawn(config), config))
    ]
    one, two = (siren_apply(editor(inrs).params, GRID, config) for inrs in sets)
    assert torch.allclose(one, two, rtol=0, atol=1e-9) is canonical
