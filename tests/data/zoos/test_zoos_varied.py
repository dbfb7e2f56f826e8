"""Zoos of many architectures: stored as they are, dealt out by network or architecture, trained as alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nfn_opt import WeightSpace
from nfn_opt.artifacts import ArtifactError
from nfn_opt.data import ImageData, load_images
from nfn_opt.data.zoos import VariedArchitecture, VariedCnn, VariedOptions, VariedZoo, build_varied_zoo
from nfn_opt.data.zoos.shards import ZooShards
from nfn_opt.data.zoos.training import ZooData, batches
from nfn_opt.data.zoos.varied_options import draw_architecture, draw_varied_members, initial_varied
from nfn_opt.data.zoos.varied_training import train_varied

OPTIONS = VariedOptions(per_architecture=2, depth=(2, 4), widths=(3, 5), batch_size=16, epochs=(0.1, 0.4))

RESIDUAL = VariedArchitecture(
    in_channels=1,
    widths=(4, 3, 6, 3),
    kernel_sizes=(3, 3, 5, 3),
    strides=(2, 1, 1, 1),
    residuals=(-1, -1, 0, 1),
    activations=("relu", "gelu", "tanh", "leaky_relu"),
)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits").subset(240)


@pytest.fixture(scope="module")
def zoo(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> VariedZoo:
    path = tmp_path_factory.mktemp("varied") / "zoo.safetensors"
    return build_varied_zoo(digits, path, count=5, options=OPTIONS, score_images=40, shard_size=2)


def test_a_zoo_comes_back_from_its_file(zoo: VariedZoo, tmp_path: Path) -> None:
    again = VariedZoo.load(zoo.save(tmp_path / "zoo.safetensors"))
    assert repr(again) == repr(zoo)
    assert again.table["number"].tolist() == list(range(5))  # type: ignore[union-attr]
    for one, other in zip(zoo.groups(), again.groups(), strict=True):
        assert one.architecture == other.architecture
        assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())
    assert (tmp_path / "zoo.csv").read_text().splitlines()[0].startswith("number,architecture,optimizer")


def test_members_are_trained_as_one_alone(digits: ImageData, zoo: VariedZoo) -> None:
    """The member of the zoo is what autograd and an optimizer of torch make of its initial parameters."""
    dealt = digits.split({"train": 5 / 6, "test": 1 / 6}, seed=0)
    data = ZooData.from_images(dealt["train"], dealt["test"])
    member = draw_varied_members(OPTIONS, 5, len(data.train))[4]
    architecture = draw_architecture(OPTIONS, member.architecture, in_channels=1, side=8)
    network = VariedCnn(architecture)
    network.load_state_dict(initial_varied(member, architecture, OPTIONS.seed))
    settings: dict[str, Any] = {"lr": member.learning_rate}
    optimizer = {
        "sgd": lambda: torch.optim.SGD(network.parameters(), **settings),
        "adam": lambda: torch.optim.Adam(network.parameters(), eps=1e-7, **settings),
        "rmsprop": lambda: torch.optim.RMSprop(network.parameters(), alpha=0.9, eps=1e-7, **settings),
    }[member.optimizer]()
    for numbers, _ in zip(batches(OPTIONS, 1.0, len(data.train)), range(member.steps), strict=False):
        optimizer.zero_grad()
        weights = [value for name, value in network.named_parameters() if name.endswith("weight")]
        penalty = member.l2reg * sum(weight.square().sum() for weight in weights)
        (F.cross_entropy(network(data.train[numbers]), data.train_labels[numbers]) + penalty).backward()
        optimizer.step()
    for name, value in zoo.module(4).state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        right = network(data.test[:40]).argmax(1) == data.test_labels[:40]
    assert zoo.table["test_accuracy"][4] == right.double().mean()


def test_the_first_networks_do_not_depend_on_the_others(digits: ImageData, zoo: VariedZoo) -> None:
    dealt = digits.split({"train": 5 / 6, "test": 1 / 6}, seed=0)
    data = ZooData.from_images(dealt["train"], dealt["test"])
    members = draw_varied_members(OPTIONS, 2, len(data.train))
    members.sort(key=lambda member: -member.steps)
    few = train_varied(members, data, OPTIONS, score_images=40)
    for place, member in enumerate(members):
        for name, value in few.module(place).state_dict().items():
            torch.testing.assert_close(value, zoo.module(member.number).state_dict()[name])


def test_stopped_and_resumed(
    digits: ImageData, zoo: VariedZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zoo.safetensors"
    settings: dict[str, Any] = {"count": 5, "options": OPTIONS, "score_images": 40, "shard_size": 2}
    with monkeypatch.context() as patch:
        patch.setattr(ZooShards, "join", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_varied_zoo(digits, path, **settings)
    next(Path(f"{path}.parts").glob("shard_*.safetensors")).unlink()
    resumed = build_varied_zoo(digits, path, resume=True, **settings)
    assert resumed.csv() == zoo.csv()
    with pytest.raises(ValueError, match=r"options\.batch_size was 16, now 17"):
        build_varied_zoo(
            digits,
            path,
            resume=True,
            **settings | {"options": dataclasses.replace(OPTIONS, batch_size=17)},
        )


def test_selection_and_splits(zoo: VariedZoo) -> None:
    some = zoo[[4, 0, 3]]
    assert some.table["number"].tolist() == [4, 0, 3]  # type: ignore[union-attr]
    for place, number in enumerate((4, 0, 3)):
        one, other = some.module(place).state_dict(), zoo.module(number).state_dict()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    joined = VariedZoo.concat([zoo[[4, 0]], zoo[1:4]])
    assert joined.table["number"].tolist() == [4, 0, 1, 2, 3]  # type: ignore[union-attr]
    assert torch.equal(joined.module(0).fc.weight, zoo.module(4).fc.weight)
    parts = zoo.split({"a": 2, "b": 1}, by_architecture=True)
    seen = [{group.architecture for group in part.groups()} for part in parts.values()]
    assert [len(each) for each in seen] == [2, 1]
    assert not seen[0] & seen[1]
    assert sorted(len(part) for part in zoo.split({"a": 0.6, "b": 0.4}).values()) == [2, 3]
    with pytest.raises(IndexError, match="network 5 of a zoo of 5"):
        zoo.module(5)


def test_networks_that_are_not_finite_are_left_out(zoo: VariedZoo, tmp_path: Path) -> None:
    table = dict(zoo.table)
    table["test_loss"] = torch.tensor([1.0, torch.inf, 1.0, 1.0, 1.0], dtype=torch.float64)
    failed = dataclasses.replace(zoo, table=table)
    assert failed.failed.tolist() == [False, True, False, False, False]
    path = failed.save(tmp_path / "zoo.safetensors")
    assert (len(VariedZoo.load(path)), VariedZoo.load(path).left_out) == (4, 1)
    assert len(VariedZoo.load(path, keep_failed=True)) == 5


def test_damaged_files_are_named(zoo: VariedZoo, tmp_path: Path) -> None:
    path = zoo.save(tmp_path / "zoo.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"zoo\.safetensors is not a complete safetensors file"):
        VariedZoo.load(path)


def test_the_weight_space_of_residual_networks_is_found(generator: torch.Generator) -> None:
    network = VariedCnn(RESIDUAL)
    images = torch.randn(2, 1, 16, 16, generator=generator)
    space = WeightSpace.from_module(network, images)
    # Layer 2 has the channels of layer 0 and two more; layer 3 those of layer 1.
    assert sorted(space.groups.values()) == [2, 3, 4]
    assert space.verify(network, images) < 1e-5


def test_a_residual_connection_adds_the_channels_that_both_have(generator: torch.Generator) -> None:
    network = VariedCnn(RESIDUAL)
    images = torch.randn(2, 1, 16, 16, generator=generator)
    first = F.relu(network.layers[0](images))
    second = F.gelu(network.layers[1](first))
    third = network.layers[2](second)
    third[:, :4] += first
    third = torch.tanh(third)
    last = F.leaky_relu(network.layers[3](third) + second)
    torch.testing.assert_close(network(images), network.fc(last.mean((2, 3))))


def test_drawn_architectures() -> None:
    options = VariedOptions(strides=(1, 2), residual=1.0)
    drawn = [draw_architecture(options, number, in_channels=3, side=16) for number in range(40)]
    assert len(set(drawn)) == 40
    for architecture in drawn:
        assert min(architecture.sizes(16)) >= 4
        assert architecture.residuals[:2] == (-1, -1)
    assert {len(architecture.widths) for architecture in drawn} == {2, 3, 4, 5}
    assert any(max(architecture.residuals) >= 0 for architecture in drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (4, 3)}, "one value a layer in each of its lists"),
        ({"residuals": (-1, 1, 0, 1)}, r"residuals\[1\] must be -1 or an earlier layer"),
        ({"activations": ("relu", "swish", "tanh", "relu")}, "activations some of relu, gelu"),
    ],
)
def test_architectures_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RESIDUAL, **change)


def test_residual_connections_over_a_stride_are_refused() -> None:
    with pytest.raises(ValueError, match=r"residuals\[2\] joins 8 x 8 pixels with 4 x 4"):
        dataclasses.replace(RESIDUAL, strides=(2, 1, 2, 1), residuals=(-1, -1, 0, -1)).sizes(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_architecture": 0}, "per_architecture must be >= 1, got 0"),
        ({"depth": (3, 2)}, "depth must be two numbers >= 1"),
        ({"kernel_sizes": (2,)}, "kernel_sizes must be odd"),
        ({"residual": 2.0}, "residual must be a probability"),
        ({"learning_rate": (0.0, 1.0)}, "learning_rate must be two positive numbers"),
        ({"optimizer": ("lion",)}, "optimizer must be some of sgd, adam, rmsprop"),
    ],
)
def test_options_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VariedOptions(**change)
