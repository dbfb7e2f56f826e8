"""The reader of the CNN Wild Park, on small files of the same form; no code of a file runs."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.zoos import VariedCnn, load_cnn_park
from nfn_opt.data.zoos.park import _architecture

SMALL: dict[str, Any] = {
    "n_layers": 2,
    "n_classes": 10,
    "channels": [3, 4, 8],
    "kernel_size": [3, 5],
    "stride": [1, 1],
    "padding": [1, 2],
    "residual": [-1, -1],
    "activation": ["relu", "sigmoid"],
}

DEEP: dict[str, Any] = {
    "n_layers": 3,
    "n_classes": 10,
    "channels": [3, 4, 8, 8],
    "kernel_size": [3, 3, 3],
    "stride": [1, 1, 1],
    "padding": [1, 1, 1],
    "residual": [-1, -1, 0],
    "activation": ["leaky_relu", "gelu", "none"],
}


def checkpoint(config: Any, described: dict[str, Any], accuracy: float, iteration: int) -> dict[str, Any]:
    return {
        "model": VariedCnn(_architecture(described)).state_dict(),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001}]},
        "config": config,
        "last_result": {"test/acc": accuracy, "test/loss": 1.5, "hostname": "somewhere"},
        "iteration": iteration,
    }


@pytest.fixture
def park(tmp_path: Path) -> Path:
    files = [
        ("run_a", "000010", SMALL, 0.3, 10),
        ("run_a", "000020", SMALL, 0.4, 20),
        ("run_b", "000020", DEEP, 0.5, 20),
        ("run_c", "000020", SMALL, 0.6, 20),
    ]
    for run, number, config, accuracy, iteration in files:
        path = tmp_path / "cifar10_zooV2" / run / f"checkpoint_{number}" / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        torch.save(checkpoint(config, config, accuracy, iteration), path)
    return tmp_path


def file_of(park: Path, run: str) -> Path:
    return park / "cifar10_zooV2" / run / "checkpoint_000020" / "checkpoint.pt"


def test_the_last_checkpoints(park: Path) -> None:
    zoo = load_cnn_park(park)
    assert zoo.table["run"] == ("run_a", "run_b", "run_c")
    assert zoo.table["test_accuracy"].tolist() == [0.4, 0.5, 0.6]  # type: ignore[union-attr]
    assert [len(group) for group in zoo.groups()] == [2, 1]
    stored = torch.load(file_of(park, "run_c"), weights_only=True)["model"]
    assert all(torch.equal(value, stored[name]) for name, value in zoo.module(2).state_dict().items())
    assert zoo.module(1).architecture.residuals == (-1, -1, 0)


def test_all_checkpoints_and_a_limit(park: Path) -> None:
    zoo = load_cnn_park(park, checkpoints="all")
    assert zoo.table["iteration"].tolist() == [10, 20, 20, 20]  # type: ignore[union-attr]
    assert len(load_cnn_park(park, checkpoints="all", limit=3)) == 3


def test_splits(park: Path) -> None:
    path = park / "cnn_park_splits.json"
    name = "cifar10_zooV2/{}/checkpoint_000020/checkpoint.pt"
    parts = {"train": {"path": [name.format("run_c")]}, "test": {"path": [name.format("run_a")]}}
    path.write_text(json.dumps(parts))
    zoo = load_cnn_park(park, splits=path)
    assert zoo.table["split"] == ("test", "train")
    path.write_text("[]")
    with pytest.raises(ArtifactError, match="is not the JSON of splits"):
        load_cnn_park(park, splits=path)


def omegaconf_object(value: Any, modules: dict[str, Any]) -> Any:
    """`value` as OmegaConf keeps it: containers with their content and nodes with their value, each with a parent."""
    names: dict[type, tuple[str, str]] = {
        dict: ("dictconfig", "DictConfig"),
        list: ("listconfig", "ListConfig"),
    }
    module, name = names.get(type(value), ("nodes", "AnyNode"))
    one = getattr(modules[f"omegaconf.{module}"], name)()
    if isinstance(value, dict):
        content: Any = {key: omegaconf_object(each, modules) for key, each in value.items()}
    else:
        content = [omegaconf_object(each, modules) for each in value] if isinstance(value, list) else value
    metadata = modules["omegaconf.base"].ContainerMetadata()
    metadata.__dict__.update(ref_type=Any, object_type=dict, key_type=int, flags={})
    one.__dict__.update({"_metadata": metadata, "_parent": None})
    one.__dict__["_val" if name == "AnyNode" else "_content"] = content
    for child in (
        content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    ):
        child.__dict__["_parent"] = one
    return one


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules with the classes that the published files name, for writing only."""
    classes = {
        "dictconfig": ["DictConfig"],
        "listconfig": ["ListConfig"],
        "nodes": ["AnyNode"],
        "base": ["ContainerMetadata"],
    }
    modules: dict[str, Any] = {"omegaconf": types.ModuleType("omegaconf")}
    monkeypatch.setitem(sys.modules, "omegaconf", modules["omegaconf"])
    for name, members in classes.items():
        module = types.ModuleType(f"omegaconf.{name}")
        for member in members:
            setattr(module, member, type(member, (), {"__module__": module.__name__}))
        modules[module.__name__] = module
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return modules


def test_configurations_of_omegaconf(
    park: Path, omegaconf: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = omegaconf_object(DEEP, omegaconf)
    torch.save(checkpoint(config, DEEP, 0.7, 20), file_of(park, "run_b"))
    for name in omegaconf:
        monkeypatch.delitem(sys.modules, name)
    zoo = load_cnn_park(park)
    assert zoo.module(1).architecture == _architecture(DEEP)
    assert zoo.table["test_accuracy"].tolist() == [0.4, 0.7, 0.6]  # type: ignore[union-attr]


@dataclasses.dataclass
class Foreign:
    """A class that no published file has."""

    n_layers: int = 2


def test_other_objects_are_refused_unless_asked_for(park: Path) -> None:
    content = checkpoint(SMALL, SMALL, 0.6, 20) | {"more": Foreign()}
    torch.save(content, file_of(park, "run_c"))
    with pytest.raises(ArtifactError, match=r"run_c.*holds objects of .*Foreign.*unsafe_pickle=True"):
        load_cnn_park(park)
    assert len(load_cnn_park(park, unsafe_pickle=True)) == 3


@pytest.mark.parametrize("content", ["truncated", "no zip", "no dict", "other shapes", "no config"])
def test_damaged_files_are_named_or_skipped(content: str, park: Path) -> None:
    path = file_of(park, "run_c")
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "no zip":
        path.write_text("nothing")
    else:
        wrong = checkpoint(DEEP, SMALL, 0.6, 20) if content == "other shapes" else {"model": {}}
        torch.save([1, 2] if content == "no dict" else wrong, path)
    with pytest.raises(ArtifactError, match="run_c"):
        load_cnn_park(park)
    zoo = load_cnn_park(park, damaged="skip")
    assert (len(zoo), zoo.left_out) == (2, 1)
    assert zoo.meta["skipped"] == ["cifar10_zooV2/run_c/checkpoint_000020/checkpoint.pt"]


def test_networks_that_are_not_finite_are_left_out(park: Path) -> None:
    content = checkpoint(SMALL, SMALL, 0.6, 20)
    content["model"]["fc.bias"][0] = torch.nan
    torch.save(content, file_of(park, "run_a"))
    zoo = load_cnn_park(park)
    assert (len(zoo), zoo.left_out) == (2, 1)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint\.pt in"):
        load_cnn_park(tmp_path)
    with pytest.raises(ValueError, match="limit must be >= 1 or None, got 0"):
        load_cnn_park(tmp_path, limit=0)
