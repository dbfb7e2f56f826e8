"""A functional shared by relation, trained on MLPs, runs on networks of other kinds without a new parameter."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from nfn_opt.functionals import EquivariantConfig, EquivariantFunctional, InvariantConfig, InvariantFunctional
from nfn_opt.testing import assert_equivariant, assert_invariant, assert_sensitive, random_features
from nfn_opt.weight_space import Features, WeightSpace
from tests.functionals.networks import SPACES, draw, mlp

OPTIONS: dict[str, Any] = {
    "sharing": "by_relation", "hidden_channels": 16, "hidden_layers": 2, "fourier_frequencies": 0, "position_bands": 2,
    "norm": True,
}  # fmt: skip
OTHERS = [name for name in SPACES if name != "mlp"]


def train(network: torch.nn.Module, loss: Any, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def scales(count: int, generator: torch.Generator) -> Tensor:
    """Logarithms of the scale of each network, of variance 0.75."""
    return 3 * torch.rand(count, generator=generator) - 1.5


@pytest.fixture(scope="module")
def predictor() -> InvariantFunctional:
    """Predicts the logarithm of the scale of the weights; trained on MLPs of two shapes."""
    generator = torch.Generator().manual_seed(0)
    config = InvariantConfig(**{**OPTIONS, "norm": False, "pool": "mean", "head_width": 32})
    network = InvariantFunctional(mlp(), config, generator=generator)

    spaces = itertools.cycle([mlp(), mlp(6, 9, 4, 8, 3)])

    def loss() -> Tensor:
        space, targets = next(spaces), scales(32, generator)
        return (network(draw(space, targets, generator), space=space)[:, 0] - targets).square().mean()

    losses = train(network, loss, 150)
    assert sum(losses[-10:]) / 10 < 0.1
    return network


@pytest.mark.parametrize("kind", OTHERS)
def test_predictor_on_networks_of_other_kinds(
    kind: str, predictor: InvariantFunctional, generator: torch.Generator
) -> None:
    """The prediction follows the scale of networks that were not trained on."""
    space, weights = SPACES[kind](), {n: p.clone() for n, p in predictor.state_dict().items()}
    targets = scales(64, generator)
    with torch.no_grad():
        predicted = predictor(draw(space, targets, generator), space=space)[:, 0]
    assert torch.corrcoef(torch.stack([predicted, targets]))[0, 1] > 0.9
    assert_invariant(
        lambda f: predictor({n: t.float() for n, t in f.items()}, space).double(), space, 1, generator, tolerance=1e-4
    )  # fmt: skip
    assert predictor.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in predictor.state_dict().items())


def shifted(space: WeightSpace, count: int, generator: torch.Generator) -> Features:
    """Normal weights around a mean of its own for each tensor of each network."""
    features = draw(space, torch.zeros(count), generator)
    return {
        n: t + torch.randn(count, *(1 for _ in t.shape[1:]), generator=generator) for n, t in features.items()
    }


def centred(features: Features) -> Features:
    """Every entry minus the mean of its tensor: a target for which a functional has to look at whole tensors."""
    return {n: t - t.mean(tuple(range(1, t.dim())), keepdim=True) for n, t in features.items()}


def error(out: Features, target: Features) -> Tensor:
    return torch.stack([(out[n] - target[n]).square().mean() for n in out]).mean()


@pytest.fixture(scope="module")
def editor() -> EquivariantFunctional:
    """Subtracts from every weight the mean of its tensor; trained on MLPs of one shape."""
    generator = torch.Generator().manual_seed(0)
    network = EquivariantFunctional(mlp(), EquivariantConfig(**OPTIONS, out_scale=1.0), generator=generator)

    def loss() -> Tensor:
        features = shifted(mlp(), 16, generator)
        return error(network(features), centred(features))

    losses = train(network, loss, 100)
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    return network


@pytest.mark.parametrize("kind", OTHERS)
def test_editor_on_networks_of_other_kinds(
    kind: str, editor: EquivariantFunctional, generator: torch.Generator
) -> None:
    """It runs, respects the symmetry of the other network, and does there what it was trained to do."""
    space = SPACES[kind]()
    count = sum(p.numel() for p in editor.parameters())
    features = shifted(space, 16, generator)
    with torch.no_grad():
        got = error(editor(features, space=space), centred(features))
    assert got < 0.75, "0 everywhere has an error of about 1"
    assert sum(p.numel() for p in editor.parameters()) == count

    def run(f: Features) -> Features:
        return {n: t.double() for n, t in editor({n: t.float() for n, t in f.items()}, space).items()}

    assert_equivariant(run, space, 1, generator, tolerance=1e-4)
    assert_sensitive(run, space, 1, generator)


@pytest.mark.parametrize("kind", SPACES)
def test_no_weight_depends_on_the_space(kind: str, generator: torch.Generator) -> None:
    """A functional made for any space takes the weights of one made for another, and then is the same map."""
    space = SPACES[kind]()
    config = EquivariantConfig(**{**OPTIONS, "residual": True})
    for_mlps = EquivariantFunctional(mlp(), config, generator=generator)
    own = EquivariantFunctional(space, config, generator=generator)
    own.load_state_dict(for_mlps.state_dict())
    features = random_features(space, 1, generator=generator, dtype=torch.float32)
    a, b = own(features), for_mlps(features, space=space)
    assert all(torch.equal(a[name], b[name]) for name in space.names)


def test_features_of_another_space_need_its_name(generator: torch.Generator) -> None:
    network = EquivariantFunctional(mlp(), EquivariantConfig(**OPTIONS), generator=generator)
    other: WeightSpace = SPACES["cnn"]()
    with pytest.raises(
        ValueError, match=r"sharing='by_relation' takes them as forward\(features, space=other\)"
    ):
        network(random_features(other, 1, generator=generator, dtype=torch.float32))
