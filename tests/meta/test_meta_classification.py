"""Classification tasks: the right loss, initial parameters as PyTorch draws them, independent minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.data import ImageData
from nfn_opt.meta import (
    ClassificationTask,
    CNNClassification,
    MLPClassification,
    Reparametrization,
    default_init,
)

TASKS: dict[str, Callable[[ImageData], ClassificationTask]] = {
    "linear": lambda data: MLPClassification(data, hidden=(), batch_size=16, dtype=torch.float64),
    "mlp": lambda data: MLPClassification(
        data, hidden=(9, 7), activation="gelu", batch_size=16, dtype=torch.float64
    ),
    "cnn": lambda data: CNNClassification(data, channels=(3, 4), batch_size=16, dtype=torch.float64),
}

RELY: Any = "rely"
ALL: Any = "all"


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, digits: ImageData) -> ClassificationTask:
    return TASKS[request.param](digits)


def reference(task: ClassificationTask, params: dict[str, torch.Tensor], i: int) -> nn.Module:
    network = task.network.to_empty(device="cpu").double()
    network.load_state_dict({name: p[i] for name, p in params.items()})
    return network


def test_batched_losses_are_those_of_the_module(task: ClassificationTask, generator: torch.Generator) -> None:
    params = task.init(generator, 3)
    batch = task.batch(generator, 3)
    losses = task.losses(params, batch)
    for i in range(3):
        one = {name: p[i] for name, p in params.items()}
        inputs, labels = batch[0][i], batch[1][i]
        expected = nn.functional.cross_entropy(reference(task, params, i)(inputs), labels)
        torch.testing.assert_close(losses[i], expected)
        torch.testing.assert_close(task.loss(one, (inputs, labels)), expected)


def test_full_losses_are_those_of_all_images(
    task: ClassificationTask, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfn_opt.meta.classification._CHUNK", 128)  # does not divide 300
    params = task.init(generator, 2)
    for i, loss in enumerate(task.full_losses(params)):
        expected = nn.functional.cross_entropy(reference(task, params, i)(task.inputs), task.labels)
        torch.testing.assert_close(loss, expected.detach())


def test_space_is_that_of_the_network(task: ClassificationTask, generator: torch.Generator) -> None:
    params = task.init(generator, 2)
    assert task.space.names == tuple(params)
    assert {name: tuple(p.shape[1:]) for name, p in params.items()} == {
        spec.name: spec.shape for spec in task.space.parameters
    }
    hidden = sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in task.network.children()) - 1
    assert len(task.space.groups) == hidden


def test_minibatches_are_independent_pairs_from_the_data(
    digits: ImageData, generator: torch.Generator
) -> None:
    task = MLPClassification(digits, batch_size=32)
    inputs, labels = task.batch(generator, 4)
    assert not torch.equal(inputs[0], inputs[1])
    data = digits.images.flatten(1)
    for x, y in zip(inputs[0], labels[0], strict=True):
        assert y in digits.labels[(data == x).all(1)]


def test_default_init_has_the_distribution_of_pytorch(generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 5))
    drawn = default_init(network, generator, 400)
    for _, layer in network.named_children():
        copies = []
        for seed in range(40):
            torch.manual_seed(seed)
            if list(layer.parameters()):
                layer.reset_parameters()  # type: ignore[operator]
                copies.append({name: p.detach().clone() for name, p in layer.named_parameters()})
        for name in copies[0] if copies else ():
            values = torch.stack([copy[name] for copy in copies]).flatten()
            mine = drawn[
                next(f"{i}.{name}" for i, other in network.named_children() if other is layer)
            ].flatten()
            for statistic in (torch.mean, torch.std, torch.amax, torch.amin):
                assert statistic(mine).item() == pytest.approx(statistic(values).item(), abs=0.03)


def test_unknown_layers_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(NotImplementedError, match=r"'0\.weight' of a Bilinear"):
        default_init(nn.Sequential(nn.Bilinear(3, 2, 2)), generator, 1)


@pytest.mark.parametrize("level", ["global", "tensor", "parameter"])
def test_reparametrization_scales(level: str, generator: torch.Generator) -> None:
    params = {"a": torch.zeros(2000, 3, 2), "b": torch.zeros(2000, 3)}
    scale = Reparametrization(level=level, low=0.01, high=100.0).sample(generator, params)  # type: ignore[arg-type]
    logs = {name: s.expand(params[name].shape).log10().flatten(1) for name, s in scale.items()}
    assert torch.equal(logs["a"][:, 0], logs["b"][:, 0]) == (level == "global")
    assert torch.equal(logs["a"][:, 0], logs["a"][:, 1]) == (level != "parameter")
    assert logs["a"].abs().max() <= 2
    assert logs["a"].std().item() == pytest.approx(4 / 12**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda d: MLPClassification(d, hidden=(4, 0)), r"hidden must be widths of at least 1, got \(4, 0\)"),
        (
            lambda d: CNNClassification(d, activation=RELY),
            "activation is 'rely', expected one of relu",
        ),
        (lambda d: MLPClassification(d, batch_size=0), "batch_size must be at least 1, got 0"),
        (
            lambda d: ClassificationTask(
                nn.Linear(2, 2), torch.zeros(3, 2), torch.zeros(4, dtype=torch.long)
            ),
            "got 3 inputs and 4 labels",
        ),
        (lambda d: Reparametrization(level=ALL), "level is 'all', expected one of global"),
        (lambda d: Reparametrization(low=0.0), "expected 0 < low <= high"),
    ],
)
def test_refused_options(make: Callable[[ImageData], object], match: str, digits: ImageData) -> None:
    with pytest.raises(ValueError, match=match):
        make(digits)
