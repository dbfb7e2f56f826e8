"""Networks trained at once are those that are trained alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from nfn_opt.data import load_images
from nfn_opt.data.zoos.architecture import CnnArchitecture, SmallCnn
from nfn_opt.data.zoos.hyperparameters import (
    INITIALIZATIONS,
    Member,
    ZooOptions,
    draw_members,
    initial_parameters,
)
from nfn_opt.data.zoos.stacked import StackedCnn, pack, unpack
from nfn_opt.data.zoos.training import ZooData, batches, plan_chunks, train_zoo
from tests.data.zoos.alone import output, train_alone

ARCHITECTURES = {
    "small": CnnArchitecture(widths=(3, 4, 2), classes=5),
    "colour": CnnArchitecture(in_channels=3, widths=(4, 3), classes=4),
    "unit stride": CnnArchitecture(widths=(3, 3), kernel_size=2, stride=1, classes=3),
    "one layer": CnnArchitecture(widths=(5,), classes=4),
}
"""Those with widths below 16 take other kernels of the library below than the Small CNN Zoo's."""

CASES = {**ARCHITECTURES, "small cnn zoo": CnnArchitecture()}


@pytest.fixture(scope="module")
def data() -> ZooData:
    parts = load_images("digits").resize(16).split({"train": 300, "test": 50})
    return ZooData.from_images(parts["train"], parts["test"]).to(torch.float64)


def members(options: ZooOptions, count: int, **fixed: object) -> list[Member]:
    return [dataclasses.replace(member, **fixed) for member in draw_members(options, count, 300)]  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", CASES.values(), ids=CASES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("dropout", [0.0, 0.6])
def test_gradients(
    architecture: CnnArchitecture, activation: str, dropout: float, generator: torch.Generator
) -> None:
    count, size, side = 3, 4, 23 if len(architecture.widths) == 3 else 9
    packed = torch.randn(count, architecture.parameters, generator=generator, dtype=torch.float64) / 3
    images = torch.randn(size, architecture.in_channels, side, side, generator=generator, dtype=torch.float64)
    labels = torch.randint(architecture.classes, (size,), generator=generator)
    stacked = StackedCnn(architecture, side, activation)  # type: ignore[arg-type]
    noise = torch.rand(size * sum(stacked.units), generator=generator, dtype=torch.float64)
    found = torch.full_like(packed, torch.nan)
    target = F.one_hot(labels, architecture.classes).double()
    batch = stacked.batch(images, dropout, noise)
    stacked.gradient(packed, batch, target, found)
    logits = stacked.logits(packed, batch)
    for number in range(count):
        network = SmallCnn(architecture, activation).double()
        network.load_state_dict({name: value[number] for name, value in unpack(packed, architecture).items()})
        expected = output(network, images, dropout, noise if dropout else None, stacked.used)
        torch.testing.assert_close(logits[number], expected)
        F.cross_entropy(expected, labels).backward()
        slopes = {
            name: value.grad.unsqueeze(0)
            for name, value in network.named_parameters()
            if value.grad is not None
        }
        torch.testing.assert_close(found[number : number + 1], pack(slopes, architecture))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize(("activation", "dropout"), [("relu", 0.4), ("tanh", 0.2), ("tanh", 0.0)])
def test_at_once_as_alone(optimizer: str, activation: str, dropout: float, data: ZooData) -> None:
    options = ZooOptions(batch_size=20, seed=3)
    architecture = CnnArchitecture(widths=(4, 3, 4))
    chunk = members(
        options,
        4,
        optimizer=optimizer,
        activation=activation,
        dropout=dropout,
        train_fraction=0.25,
        w_init="he_normal",
        l2reg=1e-2,
    )
    chunk = [
        dataclasses.replace(member, steps=steps) for member, steps in zip(chunk, (9, 7, 7, 2), strict=True)
    ]
    told: list[int] = []
    zoo = train_zoo(chunk, data, options, architecture, dtype=torch.float64, done=told.append)
    assert told == [4, 4, 3, 3, 3, 3, 3, 1, 1]
    for number, member in enumerate(chunk):
        network = train_alone(member, data, options, architecture)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(zoo.params[name][number], value.float(), atol=1e-6, rtol=1e-5)
        with torch.no_grad():
            logits = network(data.test)
        loss, right = zoo.table["test_loss"][number], zoo.table["test_accuracy"][number]
        assert math.isclose(loss, F.cross_entropy(logits, data.test_labels), rel_tol=1e-6)  # type: ignore[arg-type]
        assert right == (logits.argmax(1) == data.test_labels).double().mean()
        with torch.no_grad():
            torch.testing.assert_close(
                zoo.module(number)(data.test.float()), logits.float(), atol=1e-4, rtol=1e-4
            )


def test_the_scores_on_training_images_are_of_those_that_were_seen(data: ZooData) -> None:
    options = ZooOptions(batch_size=20)
    chunk = members(options, 2, train_fraction=0.1, optimizer="sgd", activation="relu", steps=1)
    zoo = train_zoo(chunk, data, options, CnnArchitecture(), dtype=torch.float64)
    seen = torch.cat(
        [numbers for numbers, _ in zip(batches(options, 0.1, 300), range(5), strict=False)]
    ).unique()
    assert len(seen) <= 30
    again = train_zoo(chunk, data, options, CnnArchitecture(), score_images=10, dtype=torch.float64)
    assert not torch.equal(zoo.table["train_loss"], again.table["train_loss"])  # type: ignore[arg-type]


def test_a_network_that_fails_harms_no_other(data: ZooData) -> None:
    options = ZooOptions(batch_size=20)
    chunk = members(
        options,
        3,
        optimizer="sgd",
        activation="relu",
        train_fraction=1.0,
        w_init="he_normal",
        steps=5,
        dropout=0.1,
    )
    single = data.to(torch.float32)
    alone = train_zoo(chunk[:1], single, options, CnnArchitecture())
    chunk[1] = dataclasses.replace(chunk[1], learning_rate=1e30)
    zoo = train_zoo(chunk, single, options, CnnArchitecture())
    assert zoo.failed.tolist() == [False, True, False]
    good = zoo.finite()
    assert (len(good), good.left_out) == (2, 1)
    torch.testing.assert_close(
        good.params["fc.weight"][0], alone.params["fc.weight"][0], atol=1e-5, rtol=1e-4
    )


def test_batches() -> None:
    options = ZooOptions(batch_size=7)
    stream = batches(options, 0.5, 60)
    passes = [torch.stack([next(stream) for _ in range(4)]) for _ in range(2)]
    for each in passes:
        assert len(each.unique()) == 28
    assert not torch.equal(*passes)
    larger = torch.stack([numbers for numbers, _ in zip(batches(options, 1.0, 60), range(100), strict=False)])
    assert len(larger.unique()) == 60
    assert len(torch.cat(passes).unique()) <= 30


def test_chunks() -> None:
    drawn = draw_members(ZooOptions(), 60, 50_000)
    chunks = plan_chunks(drawn, 4)
    assert sorted(member.number for chunk in chunks for member in chunk) == list(range(60))
    for chunk in chunks:
        assert len(chunk) <= 4
        kinds = {(each.activation, each.optimizer, each.train_fraction, each.dropout) for each in chunk}
        assert len(kinds) == 1
        assert [member.steps for member in chunk] == sorted((member.steps for member in chunk), reverse=True)


def test_chunks_of_a_kind_are_of_one_size() -> None:
    alike = members(
        ZooOptions(batch_size=20), 13, activation="relu", optimizer="sgd", train_fraction=1.0, dropout=0.0
    )
    assert [len(chunk) for chunk in plan_chunks(alike, 6)] == [5, 5, 3]


def test_draws_stay_in_their_ranges() -> None:
    options = ZooOptions(
        learning_rate=(1e-3, 1e-2),
        dropout=(0.2, 0.3, 0.5),
        epochs=(1, 2),
        activation=("tanh",),
        batch_size=64,
    )
    drawn = draw_members(options, 200, 640)
    assert all(1e-3 <= member.learning_rate <= 1e-2 for member in drawn)
    assert {member.dropout for member in drawn} == {0.2, 0.3, 0.5}
    assert all(10 <= member.steps <= 20 for member in drawn)
    assert {member.activation for member in drawn} == {"tanh"}
    assert {member.w_init for member in drawn} == set(INITIALIZATIONS) - {"pytorch"}
    assert sum(member.learning_rate < 10**-2.5 for member in drawn) in range(80, 121)
    assert draw_members(dataclasses.replace(options, seed=1), 1, 640) != drawn[:1]


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("normal", 0.2),
        ("truncated_normal", 0.2 * 0.8796),
        ("he_normal", math.sqrt(2 / 144)),
        ("glorot_normal", math.sqrt(2 / 288)),
        ("orthogonal", math.sqrt(1 / 144)),
        ("pytorch", math.sqrt(1 / 144 / 3)),
    ],
)
def test_initial_parameters(name: str, std: float) -> None:
    (member,) = members(ZooOptions(batch_size=20), 1, w_init=name, init_std=0.2)
    params = initial_parameters(member, CnnArchitecture(), 0)
    assert params["layers.1.weight"].std().item() == pytest.approx(std, rel=0.07)
    biases = [value for key, value in params.items() if key.endswith("bias")]
    assert all(bool(value.any()) == (name == "pytorch") for value in biases)


def test_the_initialization_of_pytorch() -> None:
    """Bounds, and spread over many networks, of weights and biases as PyTorch's own layers draw them."""
    drawn = members(ZooOptions(batch_size=20), 30, w_init="pytorch")
    ours = [initial_parameters(member, CnnArchitecture(), 0) for member in drawn]
    torch.manual_seed(0)
    for number, layer in enumerate([torch.nn.Conv2d(1, 16, 3), torch.nn.Conv2d(16, 16, 3)]):
        for kind, (low, high) in {"weight": (0.97, 1), "bias": (0.8, 1)}.items():
            found = torch.stack([params[f"layers.{number}.{kind}"] for params in ours])
            bound = layer.weight[0].numel() ** -0.5
            assert low * bound < found.abs().max() <= high * bound
            assert layer.get_parameter(kind).abs().max() <= bound
            assert found.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"epochs": (2, 1)}, "epochs must be two positive numbers, the lower first"),
        ({"learning_rate": (0, 1)}, "learning_rate must be two positive numbers"),
        ({"dropout": (0, 1)}, r"dropout must be numbers in \[0, 1\)"),
        ({"train_fraction": (0.5, 2)}, r"train_fraction must be numbers in \(0, 1\]"),
        ({"optimizer": ("lion",)}, "optimizer must be some of sgd, adam, rmsprop"),
        ({"w_init": ()}, "w_init must be some of glorot_normal"),
    ],
)
def test_options_that_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZooOptions(**change)  # type: ignore[arg-type]


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(
        ValueError, match=r"the fraction 0\.1 of 300 training images are 30 images, fewer than a batch"
    ):
        draw_members(ZooOptions(), 1, 300)


def test_images_too_small() -> None:
    with pytest.raises(ValueError, match="images of 8 x 8 pixels are too small for 3 convolutions"):
        CnnArchitecture().sizes(8)
