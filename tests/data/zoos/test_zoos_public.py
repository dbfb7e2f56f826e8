"""The reader of the public Small CNN Zoo, on a small set of the same form."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.zoos import load_small_cnn_zoo

LAYOUT = """varname,start_idx,end_idx,shape
sequential/conv2d/bias:0,0,16,"(16,)"
sequential/conv2d/kernel:0,16,160,"(3, 3, 1, 16)"
sequential/conv2d_1/bias:0,160,176,"(16,)"
sequential/conv2d_1/kernel:0,176,2480,"(3, 3, 16, 16)"
sequential/conv2d_2/bias:0,2480,2496,"(16,)"
sequential/conv2d_2/kernel:0,2496,4800,"(3, 3, 16, 16)"
sequential/dense/bias:0,4800,4810,"(10,)"
sequential/dense/kernel:0,4810,4970,"(16, 10)"
"""

METRICS = """config.activation,config.dropout,config.learning_rate,config.train_fraction,modeldir,step,test_accuracy
relu,0.1,0.01,0.5,/a,0,0.1
relu,0.1,0.01,0.5,/a,86,0.5
tanh,0.2,0.02,1.0,/b,0,0.2
tanh,0.2,0.02,1.0,/b,86,0.6
relu,0.3,0.03,0.1,/c,0,0.3
relu,0.3,0.03,0.1,/c,86,0.7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).normal(0, 0.1, (6, 4970)).astype(np.float32)
    np.save(tmp_path / "weights.npy", weights)
    (tmp_path / "layout.csv").write_text(LAYOUT)
    with gzip.open(tmp_path / "metrics.csv.gz", "wt") as file:
        file.write(METRICS)
    return tmp_path


def tensorflow_output(row: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Outputs of the network of a row, in TensorFlow's layout, by loops over the pixels; images (B, H, W, 1)."""
    parts = [row[:16], row[16:160], row[160:176], row[176:2480], row[2480:2496], row[2496:4800]]
    for number, inputs in enumerate((1, 16, 16)):
        bias, kernel = parts[2 * number], parts[2 * number + 1].reshape(3, 3, inputs, 16)
        size = (images.shape[1] - 3) // 2 + 1
        after = np.zeros((len(images), size, size, 16))
        for y in range(size):
            for x in range(size):
                window = images[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                after[:, y, x] = np.einsum("bhwi,hwio->bo", window, kernel) + bias
        images = np.maximum(after, 0)
    return np.asarray(images.mean((1, 2)) @ row[4810:].reshape(16, 10) + row[4800:4810])


def test_the_networks_are_those_of_the_files(folder: Path) -> None:
    zoo = load_small_cnn_zoo(folder)
    assert (len(zoo), zoo.architecture.parameters) == (3, 4970)
    assert zoo.table["activation"] == ("relu", "tanh", "relu")
    assert zoo.table["row"].tolist() == [1, 3, 5]  # type: ignore[union-attr]
    assert zoo.table["test_accuracy"].tolist() == [0.5, 0.6, 0.7]  # type: ignore[union-attr]
    images = torch.rand(2, 28, 28, 1, generator=torch.Generator().manual_seed(0))
    row = np.load(folder / "weights.npy")[1].astype(float)
    with torch.no_grad():
        found = zoo.module(0)(images.permute(0, 3, 1, 2))
    expected = torch.from_numpy(tensorflow_output(row, images.double().numpy()))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert found.abs().max() > 1e-3
    assert F.softmax(found, 1).isfinite().all()


def test_steps_and_limit(folder: Path) -> None:
    assert load_small_cnn_zoo(folder, step=None).table["step"].tolist() == [0, 86] * 3  # type: ignore[union-attr]
    assert load_small_cnn_zoo(folder, step=0, limit=2).table["row"].tolist() == [0, 2]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="there is no step 5; there are 0, 86"):
        load_small_cnn_zoo(folder, step=5)
    with pytest.raises(ValueError, match="limit must be >= 1"):
        load_small_cnn_zoo(folder, limit=0)


def test_networks_that_failed_are_counted(folder: Path) -> None:
    weights = np.load(folder / "weights.npy")
    weights[3, 7] = np.nan
    np.save(folder / "weights.npy", weights)
    zoo = load_small_cnn_zoo(folder)
    assert (len(zoo), zoo.left_out) == (2, 1)


def test_an_unpacked_table_and_a_saved_zoo(folder: Path) -> None:
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "metrics.csv.gz").unlink()
    zoo = load_small_cnn_zoo(folder)
    again = type(zoo).load(zoo.save(folder / "zoo.safetensors"))
    assert again.table["modeldir"] == ("/a", "/b", "/c")


def _pickled(folder: Path) -> None:
    weights = np.load(folder / "weights.npy")
    rows = np.empty(len(weights), dtype=object)
    rows[:] = list(weights)
    np.save(folder / "weights.npy", rows, allow_pickle=True)


def test_pickled_weights_are_refused_unless_asked_for(folder: Path) -> None:
    plain = load_small_cnn_zoo(folder)
    _pickled(folder)
    with pytest.raises(ArtifactError, match=r"reading them can run any code.*unsafe_pickle=True"):
        load_small_cnn_zoo(folder)
    asked: Any = load_small_cnn_zoo(folder, unsafe_pickle=True)
    assert torch.equal(asked.params["fc.weight"], plain.params["fc.weight"])


@pytest.mark.parametrize("name", ["weights.npy", "layout.csv", "metrics.csv.gz"])
def test_damaged_and_missing_files(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError):
        load_small_cnn_zoo(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no {name}"):
        load_small_cnn_zoo(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("16,160", "17,160", "starts at 17"),
        ('"(16, 10)"', '"(16, 9)"', "has 160 columns for the shape"),
        ('"(16, 10)"', "__import__('os')", "is no table of varname"),
        ("varname", "name", "is no table of varname"),
        ('"(16, 10)"', '"(10, 16)"', "is not that of a small CNN"),
    ],
)
def test_a_layout_that_does_not_fit(old: str, new: str, message: str, folder: Path) -> None:
    (folder / "layout.csv").write_text(LAYOUT.replace(old, new))
    with pytest.raises(ArtifactError, match=message):
        load_small_cnn_zoo(folder)


def test_tables_that_do_not_fit(folder: Path) -> None:
    (folder / "metrics.csv.gz").unlink()
    (folder / "metrics.csv").write_text(METRICS.rpartition("relu")[0])
    with pytest.raises(
        ArtifactError, match=r"weights.npy has shape \(6, 4970\), but metrics.csv has 5 lines"
    ):
        load_small_cnn_zoo(folder)
    (folder / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="it has no column 'step'"):
        load_small_cnn_zoo(folder)
