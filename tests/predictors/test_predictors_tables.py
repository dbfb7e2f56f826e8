"""From zoos of every kind to what predictors are trained on."""

from __future__ import annotations

import pytest
import torch

from nfn_opt.data.policies import PolicyArchitecture
from nfn_opt.data.zoos import GruAdderArchitecture, Zoo
from nfn_opt.data.zoos.architecture import ZooArchitecture
from nfn_opt.predictors import Predictor, PredictorConfig, zoo_data
from nfn_opt.weight_space import WeightSpace
from tests.predictors.varied_zoo import WIDTHS, made_varied_zoo


def zoo_of(
    architecture: ZooArchitecture, count: int, generator: torch.Generator, **table: torch.Tensor
) -> Zoo:
    params = {
        name: torch.randn(count, *shape, generator=generator)
        for name, shape in architecture.parameter_shapes.items()
    }
    scores = {name: torch.rand(count, generator=generator) for name in architecture.scores}
    return Zoo(params, architecture, {**table, **scores})


def test_networks_of_many_architectures(generator: torch.Generator) -> None:
    zoo = made_varied_zoo(4, generator)
    data = zoo_data(zoo)
    assert data.column == "test_accuracy"
    assert (len(data), len(data.groups)) == (20, len(WIDTHS))
    assert data.inputs == ("activations=tanh",)
    accuracy = zoo.table["test_accuracy"]
    for number, group in enumerate(data.groups):
        rows = range(number, 20, len(WIDTHS))
        assert torch.equal(group.targets, torch.as_tensor(accuracy)[list(rows)].float())
        assert group.space is not None
        for row, params in zip(rows, group.params["layers.0.weight"], strict=True):
            assert torch.equal(params, zoo.module(row).get_parameter("layers.0.weight"))
        assert group.inputs is not None
        depth = len(WIDTHS[number])
        assert group.inputs[:, 0].tolist() == pytest.approx([(depth > 1) / depth] * 4)
    predictor = Predictor(data.architecture, data.config(PredictorConfig(kind="relation", hidden_channels=4)))
    predictor.fit(data.groups)
    for group in data.groups:
        assert predictor.predict(group.params, group.inputs, group.space).shape == (4, 1)


def test_words_are_classes_in_all_groups(generator: torch.Generator) -> None:
    zoo = made_varied_zoo(4, generator)
    data = zoo_data(zoo, "optimizer", beside=())
    assert data.classes == ("adam", "sgd")
    assert data.inputs == ()
    words = zoo.table["optimizer"]
    for number, group in enumerate(data.groups):
        assert [data.classes[one] for one in group.targets.tolist()] == list(words[number :: len(WIDTHS)])


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
def test_gru_networks(symmetry: str, generator: torch.Generator) -> None:
    architecture = GruAdderArchitecture(hidden=4, digits=1)
    data = zoo_data(zoo_of(architecture, 6, generator), symmetry=symmetry)  # type: ignore[arg-type]
    assert data.column == "test_success"
    assert data.inputs == ()
    assert isinstance(data.architecture, WeightSpace)
    kind = "np" if symmetry == "all" else "hnp"
    predictor = Predictor(data.architecture, data.config(PredictorConfig(kind=kind, hidden_channels=4)))  # type: ignore[arg-type]
    predictor.fit(data.groups)
    assert predictor.predict(data.groups[0].params).shape == (6, 1)


def test_policies_of_training_runs_are_refused(generator: torch.Generator) -> None:
    zoo = zoo_of(
        PolicyArchitecture(observations=4, outputs=2, hidden=(3,)), 4, generator, run=torch.arange(4)
    )
    with pytest.raises(ValueError, match="deal out whole runs"):
        zoo_data(zoo)


def test_a_part_of_a_zoo_has_the_inputs_of_the_whole(generator: torch.Generator) -> None:
    zoo = made_varied_zoo(4, generator)
    part = zoo[torch.arange(1, 20, len(WIDTHS))]  # of one architecture, with relu alone
    assert zoo_data(part).inputs == ()
    (group,) = zoo_data(part, inputs=zoo_data(zoo).inputs).groups
    assert group.inputs is not None
    assert group.inputs.tolist() == [[0.0]] * 4
