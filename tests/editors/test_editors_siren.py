"""The SIREN's initialisation, its coordinates, and its batched twin."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from editors.siren import Siren, SirenConfig, coordinates, initial_parameters, siren_apply

CONFIGS = [
    SirenConfig(),
    SirenConfig(out_channels=3),
    SirenConfig(hidden_width=5, hidden_layers=1, omega_0=10.0),
    SirenConfig(hidden_width=8, hidden_layers=4, out_channels=2),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_in_order(config: SirenConfig) -> None:
    state = Siren(config).state_dict()
    assert list(state) == [
        f"layers.{layer}.{part}" for layer in range(config.hidden_layers + 1) for part in ("weight", "bias")
    ]
    assert {name: tuple(value.shape) for name, value in state.items()} == config.parameter_shapes


def test_initialisation_of_the_siren_paper(generator: torch.Generator) -> None:
    config = SirenConfig(hidden_width=50)
    params = initial_parameters(config, 200, generator)
    bounds = {
        "layers.0.weight": 1 / 2,
        "layers.1.weight": math.sqrt(6 / 50) / 30,
        "layers.2.weight": math.sqrt(6 / 50) / 30,
        "layers.0.bias": 1 / math.sqrt(2),
        "layers.1.bias": 1 / math.sqrt(50),
        "layers.2.bias": 1 / math.sqrt(50),
    }
    assert params.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert 0.9 * bound < params[name].abs().max() <= bound, name
        assert params[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_hidden_units_keep_their_spread(generator: torch.Generator) -> None:
    """The point of the initialisation: the spread of the activations is the same in every layer."""
    config = SirenConfig(hidden_width=256, hidden_layers=4)
    siren, hidden, spread = Siren(config, generator=generator), coordinates(32, 32), []
    for layer in list(siren.layers)[:-1]:
        hidden = torch.sin(config.omega_0 * layer(hidden))
        spread.append(hidden.std().item())
    assert spread == pytest.approx([math.sqrt(1 / 2)] * 4, abs=0.1)


def test_randomness_comes_from_the_generator_alone(generator: torch.Generator) -> None:
    before = torch.get_rng_state()
    first, second = Siren(generator=generator), Siren(generator=generator)
    assert torch.equal(before, torch.get_rng_state())
    weights = [each.state_dict()["layers.0.weight"] for each in (first, second, Siren(), Siren())]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])


def test_coordinates() -> None:
    coords = coordinates(3, 5, dtype=torch.float64)
    assert coords.dtype == torch.float64
    image = coords.view(3, 5, 2)
    assert image[0, 0].tolist() == [-1, -1]
    assert image[2, 4].tolist() == [1, 1]
    assert image[1, 4].tolist() == [0, 1]
    assert coordinates(1, 2).tolist() == [[0, -1], [0, 1]]
    with pytest.raises(ValueError, match="at least 1, got 0 x 2"):
        coordinates(0, 2)


@pytest.mark.parametrize("config", CONFIGS)
def test_apply_equals_the_module(config: SirenConfig, generator: torch.Generator) -> None:
    params = {name: value.double() for name, value in initial_parameters(config, 3, generator).items()}
    coords = coordinates(4, 6, dtype=torch.float64)
    got = siren_apply(params, coords, config)
    siren = Siren(config).double()
    for number in range(3):
        siren.load_state_dict({name: value[number] for name, value in params.items()})
        torch.testing.assert_close(got[number], siren(coords), rtol=1e-12, atol=1e-12)


def test_apply_leaves_its_arguments_alone_and_has_gradients(generator: torch.Generator) -> None:
    config = SirenConfig(hidden_width=4, hidden_layers=2, omega_0=3.0)
    params = {name: value.double() for name, value in initial_parameters(config, 2, generator).items()}
    copies = {name: value.clone() for name, value in params.items()}
    coords = coordinates(2, 3, dtype=torch.float64)
    plain = siren_apply(params, coords, config)
    assert all(torch.equal(params[name], copies[name]) for name in params)

    def of_values(*values: torch.Tensor) -> torch.Tensor:
        return siren_apply(dict(zip(params, values, strict=True)), coords, config)

    values = [value.requires_grad_() for value in copies.values()]
    torch.testing.assert_close(of_values(*values), plain)
    assert torch.autograd.gradcheck(of_values, values)


def test_apply_under_function_transforms(generator: torch.Generator) -> None:
    config, coords = SirenConfig(hidden_width=4), coordinates(3, 3)
    params = initial_parameters(config, 2, generator)

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return (
            siren_apply({name: value[None] for name, value in values.items()}, coords, config).square().sum()
        )

    grads = torch.func.vmap(torch.func.grad(loss))(params)
    single = torch.func.grad(loss)({name: value[1] for name, value in params.items()})
    for name, value in single.items():
        torch.testing.assert_close(grads[name][1], value)


def test_forward_is_made_of_three_operations() -> None:
    seen = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Record():
        Siren()(coordinates(2, 2))
    assert {"addmm", "mul", "sin"} <= seen
    assert not seen & {"matmul", "bmm", "einsum", "add"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"layers.0.bias": None}, "missing parameter 'layers.0.bias'"),
        ({"layers.9.bias": torch.zeros(2, 1)}, "unexpected parameter 'layers.9.bias'"),
        (
            {"layers.1.weight": torch.zeros(2, 4, 5)},
            r"'layers.1.weight'\] must have shape \(2, 4, 4\), got \(2, 4, 5\)",
        ),
        ({"layers.2.bias": torch.zeros(3, 1)}, r"must have shape \(2, 1\), got \(3, 1\)"),
    ],
)
def test_parameters_that_do_not_fit(change: dict[str, torch.Tensor | None], match: str) -> None:
    config = SirenConfig(hidden_width=4)
    params = {**initial_parameters(config, 2, torch.Generator().manual_seed(0)), **change}
    given = {name: value for name, value in params.items() if value is not None}
    with pytest.raises(ValueError, match=match):
        siren_apply(given, coordinates(2, 2), config)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hidden_width": 0}, "hidden_width must be an integer of at least 1, got 0"),
        ({"hidden_layers": 1.5}, "hidden_layers must be an integer"),
        ({"out_channels": -1}, "out_channels"),
        ({"omega_0": 0.0}, "omega_0 must be a positive finite number, got 0.0"),
        ({"omega_0": math.nan}, "omega_0"),
    ],
)
def test_bad_configurations(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SirenConfig(**options)  # type: ignore[arg-type]


def test_it_prints_its_architecture() -> None:
    assert "2-32-32-1, omega_0=30" in str(Siren())
