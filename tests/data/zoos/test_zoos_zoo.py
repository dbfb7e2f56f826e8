"""The container: parts, splits, files whole or refused, networks that failed counted and left out."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest
import torch

from nfn_opt import WeightSpace
from nfn_opt.artifacts import ArtifactError, save_artifact
from nfn_opt.data import read_image
from nfn_opt.data.zoos import CnnArchitecture, Zoo, draw_zoo
from nfn_opt.data.zoos.table import Column

SMALL = CnnArchitecture(widths=(3, 2), classes=4)


def make(count: int = 10, **table: Column) -> Zoo:
    generator = torch.Generator().manual_seed(0)
    params = {
        name: torch.randn(count, *shape, generator=generator)
        for name, shape in SMALL.parameter_shapes.items()
    }
    columns: dict[str, Column] = {
        "number": torch.arange(count),
        "activation": tuple("relu" if number % 2 else "tanh" for number in range(count)),
        "learning_rate": torch.rand(count, generator=generator, dtype=torch.float64),
        "test_accuracy": torch.rand(count, generator=generator, dtype=torch.float64),
    }
    return Zoo(params, SMALL, {**columns, **table}, meta={"source": "test"})


def same(one: Zoo, other: Zoo) -> bool:
    columns = [(one.table[name], other.table[name]) for name in one.table]
    return (
        list(one.table) == list(other.table)
        and all(torch.equal(value, other.params[name]) for name, value in one.params.items())
        and all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in columns)  # type: ignore[arg-type]
        and (one.architecture, one.left_out, one.meta) == (other.architecture, other.left_out, other.meta)
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    zoo = make()
    assert same(Zoo.load(zoo.save(tmp_path / "new" / "zoo.safetensors")), zoo)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["zoo.csv", "zoo.safetensors"]


def test_the_table_beside_it(tmp_path: Path) -> None:
    zoo = make(3)
    zoo.save(tmp_path / "zoo.safetensors")
    with (tmp_path / "zoo.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["activation"] for line in lines] == ["tanh", "relu", "tanh"]
    assert [float(line["learning_rate"]) for line in lines] == zoo.table["learning_rate"].tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("index", [3, -1, slice(2, 5), [4, 0, 4], torch.arange(10) % 3 == 0])
def test_parts(index: int | slice | list[int] | torch.Tensor) -> None:
    zoo = make()
    part = zoo[index]
    numbers = torch.arange(10)[[index] if isinstance(index, int) else index].tolist()
    assert part.table["number"].tolist() == numbers  # type: ignore[union-attr]
    assert part.table["activation"] == tuple(zoo.table["activation"][number] for number in numbers)
    assert torch.equal(part.params["fc.bias"], zoo.params["fc.bias"][numbers])


def test_split_and_concat() -> None:
    zoo = make()
    parts = zoo.split({"train": 6, "test": 3}, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "test": 3}
    whole = Zoo.concat(list(parts.values()))
    assert len(set(whole.table["number"].tolist())) == 9  # type: ignore[union-attr]
    assert same(Zoo.concat(list(zoo.split({"train": 6, "test": 3}, seed=1).values())), whole)
    assert not same(Zoo.concat(list(zoo.split({"train": 6, "test": 3}, seed=2).values())), whole)
    with pytest.raises(ValueError, match="10 networks make parts of"):
        zoo.split({"train": 11})


def test_networks_that_failed(tmp_path: Path) -> None:
    zoo = make(test_loss=torch.tensor([1.0] * 9 + [float("nan")]))
    zoo.params["layers.1.weight"][4, 0, 0, 1, 1] = torch.inf
    zoo.save(tmp_path / "zoo.safetensors")
    assert zoo.failed.nonzero().flatten().tolist() == [4, 9]
    for good in (zoo.finite(), Zoo.load(tmp_path / "zoo.safetensors")):
        assert (len(good), good.left_out, good.failed.any().item()) == (8, 2, False)
        assert repr(good).endswith("2 left out that are not finite)")
    assert len(Zoo.load(tmp_path / "zoo.safetensors", keep_failed=True)) == 10
    assert Zoo.concat([good, good]).left_out == 4


def test_a_module_and_a_weight_space() -> None:
    zoo = make()
    network = zoo.module(3)
    assert network.activation == "relu"
    space = WeightSpace.from_module(network, torch.zeros(1, 1, 16, 16))
    features = space.as_features(zoo.params)
    assert features["layers.1.weight"].shape[0] == 10
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    before = network(images)
    network.load_state_dict(
        space.permute(network.state_dict(), space.random_permutation(torch.Generator().manual_seed(2)))
    )
    torch.testing.assert_close(network(images), before)


@pytest.mark.parametrize("size", [0, 100, 600])
def test_a_truncated_file_is_refused(size: int, tmp_path: Path) -> None:
    path = make().save(tmp_path / "zoo.safetensors")
    os.truncate(path, size)
    with pytest.raises(ArtifactError, match="is not a complete safetensors file"):
        Zoo.load(path)


def test_files_that_are_no_zoo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Zoo.load(tmp_path / "none.safetensors")
    save_artifact(tmp_path / "other.safetensors", {}, kind="inr_set")
    with pytest.raises(ArtifactError, match="holds a 'inr_set', expected a 'zoo'"):
        Zoo.load(tmp_path / "other.safetensors")
    save_artifact(tmp_path / "empty.safetensors", {}, kind="zoo")
    with pytest.raises(ArtifactError, match="does not hold a valid zoo"):
        Zoo.load(tmp_path / "empty.safetensors")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(3).save(tmp_path / "zoo.safetensors")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(4).save(path)
    monkeypatch.undo()
    assert len(Zoo.load(path)) == 3
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {}}, "params must have the names layers.0.weight"),
        (
            {"architecture": CnnArchitecture(widths=(3, 3), classes=4)},
            r"params\['layers.1.weight'\] must be a float",
        ),
        ({"table": {"activation": ("relu",)}}, "must have 2 values, one a network, got 1"),
        ({"table": {"a": torch.zeros(2, 2)}}, "must have one number a network"),
        ({"table": {}}, "the table must have the column 'activation'"),
    ],
)
def test_what_does_not_fit(change: dict[str, object], message: str) -> None:
    zoo = make(2)
    with pytest.raises(ValueError, match=message):
        Zoo(**{"params": zoo.params, "architecture": SMALL, "table": zoo.table, **change})  # type: ignore[arg-type]


def test_out_of_range() -> None:
    with pytest.raises(IndexError, match="network 10 of a zoo of 10"):
        make()[10]
    with pytest.raises(ValueError, match="cannot be joined"):
        Zoo.concat([make(2), make(2, more=torch.zeros(2))])
    with pytest.raises(ValueError, match="at least one Zoo"):
        Zoo.concat([])
    with pytest.raises(ValueError, match="activation must be one of relu, tanh, got 'swish'"):
        make(2, activation=("swish", "relu")).module(0)


def test_a_picture(tmp_path: Path) -> None:
    zoo = make(optimizer=("sgd", "adam") * 5)
    zoo.params["fc.bias"][0, 0] = torch.nan
    assert read_image(draw_zoo(zoo, tmp_path / "new" / "zoo.png")).shape[-1] == 3
    with pytest.raises(ValueError, match="has not the columns optimizer"):
        draw_zoo(make(), tmp_path / "zoo.png")
    zoo.params["fc.bias"][:] = torch.nan
    with pytest.raises(ValueError, match="has not networks that are finite"):
        draw_zoo(zoo, tmp_path / "zoo.png")
    assert not (tmp_path / "zoo.png").exists()
