"""Predictors of all kinds: what they ignore, what they must not ignore, files, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError, save_artifact
from nfn_opt.data.zoos import ZooOptions
from nfn_opt.data.zoos.architecture import CnnArchitecture, SmallCnn
from nfn_opt.data.zoos.hyperparameters import draw_members, initial_parameters
from nfn_opt.predictors import (
    KINDS,
    NetworkGroup,
    Predictor,
    PredictorConfig,
    list_predictors,
    permute_each,
)
from nfn_opt.weight_space import WeightSpace

CNN = CnnArchitecture(widths=(4, 5), classes=3)
ACTIVATION = ("activation=tanh",)
INVARIANT = [kind for kind in KINDS if kind not in ("mlp", "mlp-augmented")]


def config_of(kind: str, **options: object) -> PredictorConfig:
    small = {"hidden_channels": 4, "embedding": 12, "head_width": 8, "probes": 3, "inputs": ACTIVATION}
    return PredictorConfig(kind=kind, **{**small, **options})  # type: ignore[arg-type]


def networks(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: torch.randn(count, *shape, generator=generator) for name, shape in CNN.parameter_shapes.items()
    }


def activations(count: int) -> Tensor:
    return torch.arange(count).remainder(2).float().unsqueeze(1)


def fitted(kind: str, generator: torch.Generator, **options: object) -> Predictor:
    """In float64, so that invariance is seen sharply."""
    predictor = Predictor(CNN, config_of(kind, **options), generator=generator)
    targets = torch.rand(20, predictor.config.outputs, generator=generator)
    predictor.fit([NetworkGroup(networks(20, generator), targets, activations(20))])
    return predictor.double().eval()


def doubled(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in params.items()}


@pytest.mark.parametrize("kind", INVARIANT)
def test_ignores_the_order_of_hidden_neurons(kind: str, generator: torch.Generator) -> None:
    predictor = fitted(kind, generator)
    params = doubled(networks(6, generator))
    hidden = WeightSpace.from_module(SmallCnn(CNN), torch.zeros(1, 1, 15, 15))
    moved = permute_each(params, hidden, generator)
    assert not torch.equal(moved["layers.1.weight"], params["layers.1.weight"])
    torch.testing.assert_close(
        predictor(moved, activations(6)), predictor(params, activations(6)), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["mlp", "mlp-augmented"])
def test_a_flat_mlp_does_not(kind: str, generator: torch.Generator) -> None:
    predictor = fitted(kind, generator)
    params = doubled(networks(6, generator))
    moved = permute_each(params, predictor.space, generator)
    assert (predictor(moved, activations(6)) - predictor(params, activations(6))).abs().min() > 1e-6


@pytest.mark.parametrize("kind", ["np", "hnp", "attention", "universal", "relation", "messages", "probing"])
def test_sees_which_neurons_belong_together(kind: str, generator: torch.Generator) -> None:
    """One tensor permuted alone is another network, of the same statistics."""
    predictor = fitted(kind, generator)
    params = doubled(networks(6, generator))
    broken = params | {"layers.1.weight": params["layers.1.weight"].flip(1)}
    change = predictor(broken, activations(6)) - predictor(params, activations(6))
    assert change.abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_read_on_its_own_and_its_activation_counts(
    kind: str, generator: torch.Generator
) -> None:
    predictor = fitted(kind, generator)
    params, inputs = doubled(networks(5, generator)), activations(5)
    together = predictor(params, inputs)
    alone = [
        predictor({name: value[i : i + 1] for name, value in params.items()}, inputs[i : i + 1])
        for i in range(5)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)
    assert (predictor(params, 1 - inputs) - together).abs().min() > 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_all_parameters_get_a_gradient(kind: str, generator: torch.Generator) -> None:
    predictor = fitted(kind, generator, statistics=True, spectrum=True)
    loss = predictor.loss(predictor(doubled(networks(8, generator)), activations(8)), torch.rand(8))
    loss.backward()
    idle = [
        name
        for name, value in predictor.named_parameters()
        if value.grad is None or not value.grad.abs().sum()
    ]
    # Relations that this architecture does not have are there for others.
    assert idle == [] or kind == "relation"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_all_of_it(kind: str, tmp_path: Path, generator: torch.Generator) -> None:
    predictor = fitted(kind, generator).float()
    params = networks(4, generator)
    path = predictor.save(tmp_path / "one.safetensors", command="train", scores={"tau": 0.5})
    loaded = Predictor.load(path)
    assert torch.equal(loaded.predict(params, activations(4)), predictor.predict(params, activations(4)))
    assert loaded.metadata == {"command": "train", "scores": {"tau": 0.5}}
    assert loaded.range is not None
    assert loaded.range.limits == predictor.range.limits  # type: ignore[union-attr]


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Linear(widths[1], widths[2]))


def test_any_weight_space(tmp_path: Path, generator: torch.Generator) -> None:
    space = WeightSpace.from_module(mlp(3, 6, 2), torch.zeros(1, 3), symmetry="all")
    predictor = Predictor(space, PredictorConfig(kind="np", target="value", outputs=2, hidden_channels=4))
    params = {spec.name: torch.randn(7, *spec.shape, generator=generator) for spec in space.parameters}
    predictor.fit([NetworkGroup(params, torch.randn(7, 2, generator=generator) * 3 + 10)])
    loaded = Predictor.load(predictor.save(tmp_path / "np.safetensors"))
    assert loaded.predict(params).shape == (7, 2)
    torch.testing.assert_close(loaded.predict(params), predictor.predict(params))
    raw = predictor.eval()(params)
    torch.testing.assert_close(predictor.predict(params), raw * predictor.target_std + predictor.target_mean)
    assert predictor.target_mean.min() > 5


def test_one_predictor_for_several_architectures(generator: torch.Generator) -> None:
    spaces = [WeightSpace.from_module(mlp(3, width, 2), torch.zeros(1, 3)) for width in (4, 9)]
    predictor = Predictor(spaces[0], PredictorConfig(kind="relation", hidden_channels=4)).eval()
    for space in spaces:
        params = {spec.name: torch.randn(3, *spec.shape, generator=generator) for spec in space.parameters}
        moved = permute_each(params, space, generator)
        assert predictor(params, space=space).shape == (3, 1)
        torch.testing.assert_close(predictor(moved, space=space), predictor(params, space=space))


def test_probing_answers_are_those_of_the_networks(generator: torch.Generator) -> None:
    predictor = fitted("probing", generator)
    params, inputs = doubled(networks(4, generator)), activations(4).double()
    probes = torch.randn(3, 1, 15, 15, generator=generator, dtype=torch.float64)
    answers = predictor.probing._evaluate(params, probes, inputs)
    for number in range(4):
        network = SmallCnn(CNN, "tanh" if inputs[number] else "relu").double()
        network.load_state_dict({name: value[number] for name, value in params.items()})
        torch.testing.assert_close(answers[number], network(probes))


def test_probing_a_module_needs_the_module(tmp_path: Path, generator: torch.Generator) -> None:
    network, probes = mlp(3, 4, 2), torch.randn(5, 3, generator=generator)
    space = WeightSpace.from_module(network, torch.zeros(1, 3))
    config = PredictorConfig(kind="probing", hidden_channels=4)
    with pytest.raises(ValueError, match="network is missing"):
        Predictor(space, config, probes=probes)
    predictor = Predictor(space, config, network=network, probes=probes).eval()
    params = {spec.name: torch.randn(3, *spec.shape, generator=generator) for spec in space.parameters}
    path = predictor.save(tmp_path / "probing.safetensors")
    with pytest.raises(ValueError, match="network is missing"):
        Predictor.load(path)
    loaded = Predictor.load(path, network=network)
    torch.testing.assert_close(loaded(params), predictor(params))


def test_classes(generator: torch.Generator) -> None:
    predictor = fitted_classes(generator)
    params = networks(5, generator)
    chances = predictor.probabilities(params)
    torch.testing.assert_close(chances.sum(1), torch.ones(5))
    assert torch.equal(predictor.predict(params), chances.argmax(1))


def fitted_classes(generator: torch.Generator) -> Predictor:
    config = PredictorConfig(target="class", outputs=4, hidden_channels=4)
    predictor = Predictor(CNN, config, generator=generator)
    predictor.fit([NetworkGroup(networks(8, generator), torch.arange(8) % 4)])
    return predictor


def test_the_range_names_what_is_outside(generator: torch.Generator) -> None:
    predictor = fitted("hnp", generator).float()
    params = networks(3, generator)
    params["layers.1.weight"][1] *= 10
    params["fc.bias"][2] = 0.0
    assert predictor.range is not None
    inside, large, small = predictor.range.outside(params, predictor.space)
    assert inside == []
    assert all(text.startswith("layers.1.weight: ") for text in large)
    assert any("root mean square" in text for text in large)
    assert [text.partition(",")[0] for text in small] == ["fc.bias: root mean square 0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gnn"}, "kind is 'gnn', expected one of np"),
        ({"target": "class"}, "expected the number of classes"),
        ({"kind": "relation", "pool": "attention"}, "expected 'mean'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"inputs": ("a", "a")}, "each name once"),
        ({"embedding": 0}, "embedding is 0"),
    ],
)
def test_refused_configurations(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictorConfig(**options)  # type: ignore[arg-type]


def test_refusals(generator: torch.Generator) -> None:
    hidden = WeightSpace.from_module(mlp(3, 6, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="expected 'all' for kind 'np'"):
        Predictor(hidden, PredictorConfig(kind="np"))
    with pytest.raises(ValueError, match="'activation=tanh' among them"):
        Predictor(CNN, PredictorConfig(kind="probing"))
    predictor = fitted("hnp", generator).float()
    params = networks(3, generator)
    with pytest.raises(ValueError, match=r"inputs has none, expected \(3, 1\)"):
        predictor(params)
    with pytest.raises(ValueError, match="expected 'class'"):
        predictor.probabilities(params, activations(3))
    with pytest.raises(ValueError, match="expected scores from 0 to 1"):
        predictor.fit([NetworkGroup(params, torch.tensor([0.0, 1.0, 2.0]), activations(3))])
    params["fc.bias"][1] = torch.nan
    with pytest.raises(ValueError, match="1 of the networks"):
        predictor.predict(params, activations(3))
    with pytest.raises(ValueError, match="1 of 3 networks"):
        NetworkGroup(params, torch.rand(3))
    with pytest.raises(ValueError, match="bias has 3"):
        NetworkGroup({"fc.bias": torch.zeros(3, 2)}, torch.rand(4))
    with pytest.raises(ValueError, match="0 to 3"):
        fitted_classes(generator).fit([NetworkGroup(networks(2, generator), torch.tensor([0, 4]))])


def test_damaged_files(tmp_path: Path, generator: torch.Generator) -> None:
    predictor = fitted("hnp", generator)
    other = save_artifact(tmp_path / "zoo.safetensors", {}, kind="zoo")
    with pytest.raises(ArtifactError, match="expected a 'predictor'"):
        Predictor.load(other)
    record = {"config": dataclasses.asdict(predictor.config), "cnn": None, "space": {}, "probes": None}
    broken = save_artifact(
        tmp_path / "broken.safetensors", predictor.state_dict(), kind="predictor", metadata=record
    )
    with pytest.raises(ArtifactError, match="does not hold a valid predictor"):
        Predictor.load(broken)


def test_pretrained_names() -> None:
    with pytest.raises(ValueError, match="no pretrained predictor 'nobody'"):
        Predictor.pretrained("nobody")
    for name in list_predictors():
        assert Predictor.pretrained(name).range is not None


def test_untrained_networks_are_predicted_to_be_near_chance(generator: torch.Generator) -> None:
    predictor = Predictor.pretrained("mnist-accuracy")
    params = {}
    for name, shape in CnnArchitecture().parameter_shapes.items():
        drawn = torch.randn(10, *shape, generator=generator)
        bound = (2 / max(1, torch.Size(shape[1:]).numel())) ** 0.5
        params[name] = torch.zeros_like(drawn) if name.endswith("bias") else bound * drawn  # He normal
    for tanh in (0.0, 1.0):
        found = predictor.predict(params, torch.full((10, 1), tanh))
        assert 0.05 < found.mean().item() < 0.2


def test_so_are_untrained_layers_of_pytorch() -> None:
    """Their biases are random, where those of the usual zoos begin at zero."""
    predictor = Predictor.pretrained("mnist-accuracy")
    members = draw_members(ZooOptions(w_init=("pytorch",), seed=1), 20, 50_000)
    drawn = [initial_parameters(member, CnnArchitecture(), 1) for member in members]
    params = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    for tanh in (0.0, 1.0):
        found = predictor.predict(params, torch.full((20, 1), tanh))
        assert 0.05 < found.mean().item() < 0.2
