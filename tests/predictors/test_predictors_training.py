"""Training of predictors: they learn what there is to learn, resume to the same bits, and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.data.zoos import CnnArchitecture
from nfn_opt.predictors import (
    NetworkGroup,
    Predictor,
    PredictorConfig,
    permute_each,
    prediction_score,
    train_on_groups,
    train_predictor,
    zoo_data,
)
from nfn_opt.predictors.architectures import space_for
from nfn_opt.training import TrainingConfig
from nfn_opt.weight_space import WeightSpace
from tests.predictors.small_zoo import small_zoo

QUICK = TrainingConfig(steps=60, batch_size=16, lr=2e-2, warmup=0, validate_every=20)
SIZES = {"train": 0.6, "val": 0.2, "test": 0.2}


def small(**options: object) -> PredictorConfig:
    sizes = {"hidden_channels": 4, "embedding": 16, "head_width": 16}
    return PredictorConfig(**{**sizes, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["hnp", "relation", "statnn", "deepsets"])
def test_learns_what_the_weights_say(kind: str, generator: torch.Generator) -> None:
    data = zoo_data(small_zoo(100, generator))
    parts = data.split(SIZES, seed=0)
    predictor = Predictor(data.architecture, data.config(small(kind=kind)))
    before = prediction_score(predictor, parts["test"])
    result = train_on_groups(predictor, parts["train"], parts["val"], config=QUICK)
    assert prediction_score(predictor, parts["test"]) > max(0.6, before)
    assert prediction_score(predictor, parts["val"]) == pytest.approx(result.best_score)


def test_values_keep_their_unit_and_classes_their_names(generator: torch.Generator) -> None:
    zoo = small_zoo(100, generator)
    rates = zoo_data(zoo, "learning_rate", beside=())
    (train,), (val,), (test,) = rates.split(SIZES, seed=0).values()
    predictor = Predictor(rates.architecture, rates.config(small(kind="statnn", target="value")))
    train_predictor(predictor, train.params, train.targets, val.params, val.targets, config=QUICK)
    error = (predictor.predict(test.params)[:, 0] - test.targets).abs().mean()
    assert error < 0.5 * (test.targets - test.targets.mean()).abs().mean()
    optimizers = zoo_data(zoo, "optimizer", beside=())
    assert optimizers.classes == ("adam", "sgd")
    parts = optimizers.split(SIZES, seed=0)
    classifier = Predictor(optimizers.architecture, optimizers.config(small(kind="statnn")))
    train_on_groups(classifier, parts["train"], parts["val"], config=QUICK)
    assert prediction_score(classifier, parts["test"]) > 0.85


def test_one_training_on_several_architectures(generator: torch.Generator) -> None:
    """Networks of an architecture that was never seen are ordered too."""
    widths = {"train": ((3, 4), (5,), (4, 3, 3)), "val": ((3, 4),), "test": ((6, 5),)}
    parts: dict[str, list[NetworkGroup]] = {}
    config = small(kind="relation", hidden_channels=8)
    for part, several in widths.items():
        for one in several:
            architecture = CnnArchitecture(widths=one, classes=3)
            group = zoo_data(small_zoo(40, generator, architecture), beside=()).groups[0]
            space = space_for(architecture, config)
            parts.setdefault(part, []).append(NetworkGroup(group.params, group.targets, space=space))
    predictor = Predictor(parts["train"][0].space or WeightSpace(()), config)
    train_on_groups(predictor, parts["train"], parts["val"], config=QUICK)
    assert prediction_score(predictor, parts["test"]) > 0.5


@pytest.mark.parametrize("kind", ["hnp", "mlp-augmented"])
def test_resumes_to_the_same_bits(kind: str, tmp_path: Path, generator: torch.Generator) -> None:
    data = zoo_data(small_zoo(40, generator))
    parts = data.split(SIZES, seed=0)

    def trained(name: str, patience: int | None, *, resume: bool = False) -> Predictor:
        predictor = Predictor(data.architecture, data.config(small(kind=kind, dropout=0.1)))
        config = TrainingConfig(steps=9, batch_size=4, warmup=0, validate_every=3, patience=patience)
        train_on_groups(
            predictor, parts["train"], parts["val"], config=config, folder=tmp_path / name, resume=resume
        )
        return predictor

    whole = trained("whole", None)
    again = trained("again", None)
    checkpoint = tmp_path / "again" / "checkpoint.safetensors"
    assert checkpoint.is_file()
    resumed = trained("again", None, resume=True)
    for other in (again, resumed):
        for first, second in zip(whole.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(first, second)


def test_permute_each_keeps_what_the_networks_compute(generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    space = WeightSpace.from_module(network, torch.zeros(1, 3))
    params = {spec.name: torch.randn(4, *spec.shape, generator=generator) for spec in space.parameters}
    x = torch.randn(7, 3, generator=generator)

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        return torch.stack(
            [
                torch.func.functional_call(network, {name: value[i] for name, value in weights.items()}, x)
                for i in range(4)
            ]
        )

    moved = permute_each(params, space, generator)
    torch.testing.assert_close(outputs(moved), outputs(params))
    orders = [(moved["0.bias"][i, :, None] == params["0.bias"][i]).int().argmax(1) for i in range(4)]
    assert len({tuple(order.tolist()) for order in orders}) > 1


def test_splits_are_those_of_the_zoo(generator: torch.Generator) -> None:
    zoo = small_zoo(30, generator)
    parts = zoo_data(zoo).split(SIZES, seed=3)
    for name, part in zoo.split(SIZES, seed=3).items():
        (group,) = parts[name]
        # Within a part a group keeps the order in which its networks were dealt.
        assert torch.equal(group.params["fc.bias"], part.params["fc.bias"])
        assert group.inputs is not None
        assert group.inputs[:, 0].tolist() == [float(word == "tanh") for word in part.table["activation"]]


def test_refusals(generator: torch.Generator) -> None:
    data = zoo_data(small_zoo(12, generator))
    (group,) = data.groups
    predictor = Predictor(data.architecture, data.config(small()))
    with pytest.raises(ValueError, match="2 architectures for a predictor of kind 'hnp'"):
        train_on_groups(predictor, [group, group], [group])
    with pytest.raises(ValueError, match="there is no column 'loss'"):
        zoo_data(small_zoo(3, generator), "loss")
