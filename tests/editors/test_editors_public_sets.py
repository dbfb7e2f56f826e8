"""Public sets of INRs, in small copies of their form: exact images, splits, and damaged files named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from editors.public_sets import list_public_inrs, load_public_inrs
from nfn_opt.artifacts import ArtifactError

Params = dict[str, Any]
DWSNETS = ("seq.0", "seq.1", "seq.2")
NFN = ("net.0.linear", "net.1.linear", "net.2")
WIDTH = 5


def network(names: tuple[str, ...], seed: int, channels: int = 1, **extra: object) -> Params:
    draws = torch.Generator().manual_seed(seed)
    params: Params = {}
    for name, (fan_in, fan_out) in zip(names, ((2, WIDTH), (WIDTH, WIDTH), (WIDTH, channels)), strict=True):
        params[f"{name}.weight"] = torch.randn(fan_out, fan_in, generator=draws, dtype=torch.float64) / 9
        params[f"{name}.bias"] = torch.randn(fan_out, generator=draws, dtype=torch.float64) / 9
    return params | extra


def save(path: Path, params: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(params, path)


def mnist(folder: Path) -> dict[Path, Params]:
    names = ["training_3_12", "training_0_4", "training_9_7", "testing_1_4", "testing_7_0"]
    files = {
        folder / f"mnist_png_{name}" / "checkpoints" / "model_final.pth": network(DWSNETS, seed)
        for seed, name in enumerate(names)
    }
    (folder / "readme.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "readme.txt").write_text("other files are not read")
    return files


def fashion(folder: Path) -> dict[Path, Params]:
    halves = [("train", 0, 4), ("train", 11, 2), ("train", 3, 9), ("test", 3, 1)]
    files = {
        folder / half / f"model_{number}.pth": network(DWSNETS, number + 20 * (half == "test"), label=label)
        for half, number, label in halves
    }
    folder.mkdir()
    splits = {"train": [3, 0], "val": [11]}
    paths = {name: [f"fmnist_inrs/train/model_{n}.pth" for n in numbers] for name, numbers in splits.items()}
    paths["test"] = ["fmnist_inrs/test/model_3.pth"]
    (folder / "splits.json").write_text(json.dumps(paths))
    return files


def sirens(folder: Path, channels: int = 1) -> dict[Path, Params]:
    plain = [("5", 2), ("0", 44_999), ("1", 45_000), ("5", 50_000), ("8", 69_999)]
    again = [("aug0_5", 2), ("aug1_5", 2), ("aug0_1", 45_000)]
    return {
        folder / f"randinit_smaller_{name}s" / f"net{number}.pth": network(NFN, seed, channels)
        for seed, (name, number) in enumerate([*plain, *again])
    }


def cifar(folder: Path) -> dict[Path, Params]:
    return sirens(folder, 3)


def written(make: Callable[[Path], dict[Path, Params]], folder: Path) -> dict[Path, Params]:
    files = make(folder)
    for path, params in files.items():
        save(path, params)
    return files


def dwsnets_image(params: Params) -> Tensor:
    """An image of DWSNets, in [0, 1]: coordinates (x, y) from numpy's meshgrid, x to the right."""
    x, y = np.meshgrid(np.linspace(-1, 1, 28), np.linspace(-1, 1, 28))
    hidden = torch.tensor(np.stack([x.flatten(), y.flatten()], 1))
    for name in DWSNETS[:2]:
        hidden = torch.sin(30 * (hidden @ params[f"{name}.weight"].T + params[f"{name}.bias"]))
    values = hidden @ params["seq.2.weight"].T + params["seq.2.bias"] + 0.5
    return values.view(28, 28, 1)


def nfn_image(params: Params) -> Tensor:
    """An image of NFN, turned from [-1, 1] to [0, 1]: coordinates from torch's meshgrid, the row first."""
    side = 28 if len(params["net.2.bias"]) == 1 else 32
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    hidden = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    for name in NFN[:2]:
        hidden = torch.sin(30 * (hidden @ params[f"{name}.weight"].T + params[f"{name}.bias"]))
    values = hidden @ params["net.2.weight"].T + params["net.2.bias"]
    return (values.view(side, side, -1) + 1) / 2


SETS = [
    pytest.param(mnist, dwsnets_image, id="mnist"),
    pytest.param(fashion, dwsnets_image, id="fashion"),
    pytest.param(sirens, nfn_image, id="sirens"),
    pytest.param(cifar, nfn_image, id="cifar"),
]


@pytest.mark.parametrize(("make", "image"), SETS)
def test_images_are_those_of_the_original_networks(
    make: Callable[[Path], dict[Path, Params]], image: Callable[[Params], Tensor], tmp_path: Path
) -> None:
    files = written(make, tmp_path / "set")
    listed = list_public_inrs(tmp_path / "set", copies="all")
    inrs = load_public_inrs(tmp_path / "set", copies="all")
    assert {inr.path for inr in listed} == files.keys()
    expected = torch.stack([image(files[inr.path]) for inr in listed])
    torch.testing.assert_close(inrs.render(clamp=False), expected, rtol=0, atol=1e-12)
    assert inrs.psnr.isnan().all()
    assert inrs.labels is not None
    for inr, label in zip(listed, inrs.labels.tolist(), strict=True):
        said = files[inr.path].get("label", inr.label)
        assert label == said


def test_files_in_single_precision_stay_so(tmp_path: Path) -> None:
    for path, params in mnist(tmp_path).items():
        save(path, {name: value.float() for name, value in params.items()})
    inrs = load_public_inrs(tmp_path, limit=2)
    assert inrs.params["layers.0.weight"].dtype == torch.float32
    path = inrs.save(tmp_path / "inrs.safetensors")
    assert type(inrs).load(path).meta["source"] == {
        "name": tmp_path.name,
        "layout": "mnist-inrs",
        "split": None,
    }


@pytest.mark.parametrize(
    ("make", "split", "labels"),
    [
        (mnist, None, [7, 1, 0, 9, 3]),
        (mnist, "train", [0, 9, 3]),
        (mnist, "test", [7, 1]),
        (fashion, None, [1, 4, 9, 2]),
        (fashion, "train", [4, 9]),
        (fashion, "val", [2]),
        (fashion, "test", [1]),
        (sirens, None, [5, 0, 1, 5, 8]),
        (sirens, "train", [5, 0]),
        (sirens, "val", [1]),
        (sirens, "test", [5, 8]),
    ],
)
def test_splits(
    make: Callable[[Path], dict[Path, Params]], split: Any, labels: list[int], tmp_path: Path
) -> None:
    written(make, tmp_path / "set")
    inrs = load_public_inrs(tmp_path / "set", split=split)
    assert inrs.labels is not None
    assert inrs.labels.tolist() == labels


def test_a_file_of_splits_with_paths_of_another_machine(tmp_path: Path) -> None:
    written(mnist, tmp_path / "set")
    paths = [
        f"/there/mnist-inrs/mnist_png_training_{name}/checkpoints/model_final.pth" for name in ("9_7", "0_4")
    ]
    file = tmp_path / "mnist_splits.json"
    file.write_text(json.dumps({"val": {"path": paths, "label": ["9", "0"]}}))
    inrs = load_public_inrs(tmp_path / "set", split="val", splits=file)
    assert inrs.labels is not None
    assert inrs.labels.tolist() == [0, 9]
    with pytest.raises(ArtifactError, match=r"mnist_splits.json is no file of splits with 'train'"):
        load_public_inrs(tmp_path / "set", split="train", splits=file)
    file.write_text(json.dumps({"val": [paths[0], paths[1].replace("0_4", "0_5")]}))
    with pytest.raises(FileNotFoundError, match=r"training_0_5.*not in the folder"):
        load_public_inrs(tmp_path / "set", split="val", splits=file)
    file.write_text(file.read_text()[:20])
    with pytest.raises(ArtifactError, match="JSONDecodeError"):
        load_public_inrs(tmp_path / "set", split="val", splits=file)


def test_copies(tmp_path: Path) -> None:
    written(sirens, tmp_path)
    assert [inr.copy for inr in list_public_inrs(tmp_path, copies="all")] == [-1] * 5 + [0, 0, 1]
    assert [inr.number for inr in list_public_inrs(tmp_path, copies=[0, 1])] == [2, 45_000, 2]
    assert len(load_public_inrs(tmp_path, copies=[-1, 1], split="train")) == 3
    with pytest.raises(ValueError, match=r"copies must be some of \[-1, 0, 1\], or 'all', got \[7\]"):
        load_public_inrs(tmp_path, copies=[7])


def test_limit_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(sirens, tmp_path)
    inrs = load_public_inrs(tmp_path, limit=2, progress=True)
    assert inrs.labels is not None
    assert inrs.labels.tolist() == [5, 0]
    assert "reading INRs" in capsys.readouterr().err
    assert len(load_public_inrs(tmp_path, limit=99)) == 5
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="limit must be >= 1"):
        load_public_inrs(tmp_path, limit=0)


def broken(**changes: object) -> Callable[[Path], None]:
    """A network of DWSNets with some of its tensors changed, or left out where the change is None."""

    def write(path: Path) -> None:
        params = network(DWSNETS, 0, label=3) | {
            key.replace("_", "."): value for key, value in changes.items()
        }
        save(path, {key: value for key, value in params.items() if value is not None})

    return write


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncate, "no complete file of tensors"),
        (lambda path: path.write_bytes(b""), "no complete file of tensors"),
        (lambda path: path.write_text("no tensors at all"), "no complete file of tensors"),
        (lambda path: save(path, Path("code is not run")), "no complete file of tensors"),
        (lambda path: save(path, [1, 2]), "holds a list"),
        (
            lambda path: save(path, network(NFN, 0, label=3)),
            "expected seq.0.weight, .* got net.0.linear.weight",
        ),
        (broken(seq_1_bias=None), "expected seq.0.weight"),
        (broken(seq_1_bias=torch.zeros(4)), r"'seq.1.bias' must have shape \(5,\), got \(4,\)"),
        (broken(seq_0_weight=torch.zeros(5, 3)), r"'seq.0.weight' must have shape \(5, 2\)"),
        (
            broken(seq_2_bias=torch.zeros(2), seq_2_weight=torch.zeros(2, 5)),
            "must have 1 or 3 numbers, got 2",
        ),
        (broken(seq_2_bias=torch.tensor([torch.nan])), "'seq.2.bias' must be a tensor of finite"),
        (broken(seq_2_bias=torch.tensor([1])), "'seq.2.bias' must be a tensor of finite floating-point"),
        (
            broken(seq_2_bias=torch.zeros(1)),
            r"layers.2.bias has shape \(1,\) and torch.float32, unlike .*model_3",
        ),
        (broken(label=None), "'label' must be an integer from 0, got None"),
        (broken(label="shoe"), "'label' must be an integer from 0, got 'shoe'"),
        (broken(label=-1), "'label' must be an integer"),
    ],
)
def test_damaged_files_are_named(damage: Callable[[Path], None], match: str, tmp_path: Path) -> None:
    written(fashion, tmp_path / "set")
    damage(tmp_path / "set" / "train" / "model_11.pth")
    with pytest.raises(ArtifactError, match=f"(?s)model_11.pth.*{match}"):
        load_public_inrs(tmp_path / "set")


def test_labels_may_be_tensors(tmp_path: Path) -> None:
    written(fashion, tmp_path / "set")
    broken(label=torch.tensor(6))(tmp_path / "set" / "train" / "model_11.pth")
    inrs = load_public_inrs(tmp_path / "set", split="val")
    assert inrs.labels is not None
    assert inrs.labels.tolist() == [6]


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'"):
        load_public_inrs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no public set of INRs; expected .* mnist-inrs, fmnist_inrs"):
        load_public_inrs(tmp_path / "empty")
    files = written(fashion, tmp_path / "set")
    next(iter(files)).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"splits.json names '.*model_0.pth', which is not in the folder"
    ):
        load_public_inrs(tmp_path / "set", split="train")
    save(tmp_path / "set" / "train" / "other.pth", {})
    with pytest.raises(ValueError, match=r"other.pth is no file of fmnist_inrs"):
        load_public_inrs(tmp_path / "set")


def test_splits_that_there_are_not(tmp_path: Path) -> None:
    written(mnist, tmp_path / "set")
    with pytest.raises(ValueError, match="mnist-inrs has no validation split of its own"):
        load_public_inrs(tmp_path / "set", split="val")
    with pytest.raises(ValueError, match="split must be 'train', 'val', 'test' or None, got 'dev'"):
        load_public_inrs(tmp_path / "set", split="dev")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"none.json"):
        load_public_inrs(tmp_path / "set", split="val", splits=tmp_path / "none.json")
    for path in (tmp_path / "set").glob("*_testing_*/*/*.pth"):
        path.unlink()
    with pytest.raises(ValueError, match="has no INRs of split 'test'"):
        load_public_inrs(tmp_path / "set", split="test")
