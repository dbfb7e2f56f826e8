"""Batched losses of the families' tasks are those of the modules, and can be traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from nfn_opt.data import ImageData, TextData
from nfn_opt.meta.families import (
    CharTask,
    Initializer,
    InrTask,
    NetworkTask,
    SupervisedTask,
    autoencode,
    classify,
    mean_squared_error,
    run_stacked,
)
from nfn_opt.meta.families.modules import CausalSelfAttention, CharRecurrent, CharTransformer
from nfn_opt.meta.families.networks import conv_autoencoder, conv_net, normed_mlp, residual_net, siren

TEXT = TextData.encode("the cat sat on the mat, and the rat ran to the cat. " * 20)


def pictures(channels: int = 1, size: int = 8) -> ImageData:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(20, size, size, channels, generator=generator)
    return ImageData(images, torch.arange(20) % 3, ("a", "b", "c"), "random")


def recurrent(kind: str) -> CharTask:
    with torch.device("meta"):
        network = CharRecurrent(len(TEXT.alphabet), 5, 6, kind)
    return CharTask(network, TEXT, length=5, batch_size=3, dtype=torch.float64)


def transformer() -> CharTask:
    with torch.device("meta"):
        network = CharTransformer(len(TEXT.alphabet), 6, dim=8, heads=2)
    return CharTask(network, TEXT, length=5, batch_size=3, dtype=torch.float64)


def fitting(batch_size: int | None = 9) -> InrTask:
    initializer, network = Initializer(kind="siren", omega=8.0), siren(7, 2, 3, 8.0)
    return InrTask(network, pictures(3), batch_size=batch_size, initializer=initializer, dtype=torch.float64)


F64: Any = {"batch_size": 4, "dtype": torch.float64}

TASKS: dict[str, Callable[[], NetworkTask]] = {
    "mlp": lambda: classify(normed_mlp((64, 9, 3), "gelu"), pictures(), flat=True, **F64),
    "mlp-layer-norm": lambda: classify(
        normed_mlp((64, 9, 7, 3), "tanh", "layer"), pictures(), flat=True, **F64
    ),
    "cnn": lambda: classify(conv_net((3, 4, 6), 3, "silu"), pictures(3), **F64),
    "cnn-group-norm": lambda: classify(conv_net((1, 4, 6), 3, "relu", "group"), pictures(), **F64),
    "residual": lambda: classify(residual_net((3, 4, 4, 6), 3), pictures(3), **F64),
    "residual-layer-norm": lambda: classify(residual_net((1, 4, 6), 3, "gelu", "layer"), pictures(), **F64),
    "autoencoder": lambda: autoencode(normed_mlp((64, 9, 4, 9, 64), "sigmoid"), pictures(), flat=True, **F64),
    "conv-autoencoder": lambda: autoencode(conv_autoencoder((1, 4, 5), "tanh"), pictures(), **F64),
    "inr": fitting,
    "gru": lambda: recurrent("gru"),
    "lstm": lambda: recurrent("lstm"),
    "rnn-tanh": lambda: recurrent("tanh"),
    "rnn-relu": lambda: recurrent("relu"),
    "transformer": transformer,
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> NetworkTask:
    return TASKS[request.param]()


def gradients(loss: Tensor, params: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(params.values())))


def test_batched_losses_and_gradients_are_those_of_the_module(
    task: NetworkTask, generator: torch.Generator
) -> None:
    params = {name: p.requires_grad_() for name, p in task.init(generator, 3).items()}
    batch = task.batch(generator, 3)
    losses = task.losses(params, batch)
    found = gradients(losses.sum(), params)
    for i in range(3):
        one = {name: p[i].detach().requires_grad_() for name, p in params.items()}
        loss = task.loss(one, (batch[0][i], batch[1][i]))
        torch.testing.assert_close(losses[i], loss, rtol=1e-10, atol=1e-12)
        for mine, expected in zip(found, gradients(loss, one), strict=True):
            torch.testing.assert_close(mine[i], expected, rtol=1e-10, atol=1e-12)
    assert all(gradient.abs().max() > 0 for gradient in found)


def test_losses_and_gradients_can_be_traced(task: NetworkTask, generator: torch.Generator) -> None:
    def step(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        losses = task.losses(leaves, batch)
        return [losses, *gradients(losses.sum(), leaves)]

    params, batch = task.init(generator, 2), task.batch(generator, 2)
    graph = make_fx(step)(params, batch)
    operators = {str(node.target) for node in graph.graph.nodes}
    # Gradients of lookups were found to be lost in compiled steps.
    assert not any("index_put" in name or "embedding" in name for name in operators)
    other, others = task.init(generator, 2), task.batch(generator, 2)
    for traced, eager in zip(graph(other, others), step(other, others), strict=True):
        torch.testing.assert_close(traced, eager)


def test_space_is_that_of_the_network(task: NetworkTask, generator: torch.Generator) -> None:
    params = task.init(generator, 1)
    assert task.space.names == tuple(params)
    network = task.network.to_empty(device="cpu").double()
    network.load_state_dict({name: p[0] for name, p in params.items()})
    example = task.evaluation()[0][:2]
    assert len(task.space.groups) > 0
    task.space.verify(network, example)


def test_full_losses_are_those_of_all_examples(
    task: NetworkTask, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfn_opt.meta.families.network_tasks._CHUNK", 7)  # divides none of them
    params = task.init(generator, 1)
    one = {name: p[0] for name, p in params.items()}
    expected = task.loss(one, task.evaluation())
    torch.testing.assert_close(task.full_losses(params)[0], expected, rtol=1e-10, atol=1e-12)


def test_every_network_fits_its_own_image(generator: torch.Generator) -> None:
    task = fitting()
    coordinates, values = task.batch(generator, 23)
    images = 2 * pictures(3).images - 1
    for i in (0, 1, 22):
        place = ((coordinates[i] + 1) / 2 * 7).round().long()
        expected = images[i % 20][place[:, 0], place[:, 1]]
        torch.testing.assert_close(values[i], expected.double())
    params = {name: p[:1].expand(23, *p.shape[1:]) for name, p in task.init(generator, 1).items()}
    losses = task.full_losses(params)
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses[0], losses[20])
    everything = fitting(None)
    torch.testing.assert_close(everything.losses(params, everything.batch(generator, 23)), losses)


def test_excerpts_are_followed_by_their_next_character(generator: torch.Generator) -> None:
    task = recurrent("gru")
    codes, following = task.batch(generator, 4)
    assert codes.shape == following.shape == (4, 3, 5)
    assert torch.equal(codes[..., 1:], following[..., :-1])
    text = TEXT.decode(TEXT.codes)
    for row, last in zip(codes.flatten(0, 1), following.flatten(0, 1)[:, -1:], strict=True):
        assert TEXT.decode(torch.cat([row, last])) in text


def test_layers_that_are_not_known_run_one_by_one(generator: torch.Generator) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.layer(x).sigmoid()

    network = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), Gated(), nn.LogSoftmax(-1))
    params = {name: torch.randn(3, *p.shape, generator=generator) for name, p in network.named_parameters()}
    x = torch.randn(3, 5, 4, generator=generator)
    outputs = run_stacked(network, x, params)
    for i in range(3):
        one = {name: p[i] for name, p in params.items()}
        torch.testing.assert_close(outputs[i], torch.func.functional_call(network, one, (x[i],)))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: SupervisedTask(nn.Sequential(nn.BatchNorm1d(2)), torch.zeros(3, 2), torch.zeros(3, 2)),
            r"has buffers \(0.running_mean",
        ),
        (lambda: SupervisedTask(nn.Linear(2, 2), torch.zeros(3, 2), torch.zeros(2)), "3 inputs and 2 targ"),
        (
            lambda: SupervisedTask(nn.Linear(2, 2), torch.zeros(3, 2), torch.zeros(3), batch_size=0),
            "batch_size must be at least 1, got 0",
        ),
        (lambda: CharTask(recurrent("gru").network, TEXT, length=5000), "more than length=5000"),
        (lambda: recurrent("elman"), "kind is 'elman', expected one of gru"),
        (lambda: CausalSelfAttention(8, 3), "got 3 heads and dim 8"),
        (lambda: normed_mlp((3,)), "two widths or more"),
    ],
)
def test_refused_options(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_a_convolution_that_cannot_be_stacked_is_refused(generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"))
    with pytest.raises(NotImplementedError, match="give the number of zeros"):
        run_stacked(network, torch.zeros(2, 1, 1, 4, 4), {"0.weight": torch.zeros(2, 1, 1, 3, 3)})


def test_mean_squared_error_of_each_network() -> None:
    outputs = torch.stack([torch.zeros(2, 3), torch.ones(2, 3)])
    assert mean_squared_error(outputs, torch.zeros(2, 2, 3)).tolist() == [0.0, 1.0]
