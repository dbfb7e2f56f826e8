"""Every source gives the same kind of set, and bad input is refused with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from sklearn.utils import Bunch

from nfn_opt.data import load_images

BYTES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (BYTES, BYTES / 255),
        (BYTES[..., 0], BYTES[..., :1] / 255),
        (BYTES[..., :1].astype(np.int64), BYTES[..., :1] / 255),
        (BYTES[..., 0].astype(np.uint16) * 257, BYTES[..., :1] / 255),
        (BYTES / 255, BYTES / 255),
        (BYTES[..., 0] > 99, BYTES[..., :1] > 99),
    ],
    ids=["colour", "gray", "int64", "uint16", "float64", "bool"],
)
def test_npz(tmp_path: Path, images: np.ndarray, expected: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 2, 0, 1, 1], dtype=np.uint8))
    data = load_images(tmp_path / "a.npz")
    torch.testing.assert_close(data.images, torch.tensor(expected, dtype=torch.float32))
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 1]
    assert data.class_names == ("0", "1", "2")
    assert data.source == "a.npz"


def test_npz_with_strings_as_labels_and_options(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=BYTES, labels=np.array(["dog", "cat", "dog", "cat", "ant", "dog"]))
    data = load_images(tmp_path / "a.npz", size=(3, 2), gray=True)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.labels.tolist() == [2, 1, 2, 1, 0, 2]
    assert data.images.shape == (6, 3, 2, 1)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"images": BYTES}, r"has \['images'\], not \['labels'\]"),
        ({"x": BYTES, "y": BYTES}, r"not \['images', 'labels'\]"),
        ({"images": BYTES[0, 0], "labels": np.zeros(5, int)}, "must have shape"),
        ({"images": BYTES, "labels": np.zeros(3, int)}, r"labels must have shape \(6,\)"),
        ({"images": BYTES.astype(float), "labels": np.zeros(6, int)}, r"must lie in \[0, 1\]"),
        ({"images": BYTES * np.nan, "labels": np.zeros(6, int)}, "finite"),
        ({"images": BYTES.astype(str), "labels": np.zeros(6, int)}, "must be numbers"),
        ({"images": BYTES, "labels": np.zeros(6)}, "integers or strings, got float64"),
        ({"images": BYTES, "labels": np.full(6, -1)}, r"got -1\.\.-1"),
        ({"images": np.array([BYTES], dtype=object), "labels": np.zeros(6, int)}, "cannot read"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=match):
        load_images(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_damaged_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz"):
        load_images(tmp_path / "a.npz")


def test_single_array_is_no_npz(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, BYTES)
    with pytest.raises(ValueError, match="holds a single array"):
        load_images(tmp_path / "a.npz")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_folder(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "b.png", BYTES[1])
    save(tmp_path / "dog" / "a.png", BYTES[0])
    save(tmp_path / "cat" / "z.bmp", BYTES[2, ..., 0])
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    data = load_images(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 1]
    expected = np.stack([BYTES[2, ..., :1].repeat(3, -1), BYTES[0], BYTES[1]]) / 255
    torch.testing.assert_close(data.images, torch.tensor(expected, dtype=torch.float32))


def test_folder_of_several_sizes_needs_a_size(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", BYTES[0])
    save(tmp_path / "a" / "2.png", BYTES[0, :3])
    with pytest.raises(ValueError, match=r"several sizes, 5 x 4, 3 x 4; give a size"):
        load_images(tmp_path)
    assert load_images(tmp_path, size=4).images.shape == (2, 4, 4, 3)


def test_a_folder_of_pictures_is_one_class(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    save(folder / "2.png", BYTES[1])
    save(folder / "1.png", BYTES[0])
    (folder / "notes.txt").write_text("no picture")
    data = load_images(folder)
    assert (data.class_names, data.labels.tolist()) == (("photos",), [0, 0])
    torch.testing.assert_close(data.images[1], torch.tensor(BYTES[1] / 255, dtype=torch.float32))


def test_bad_folders(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="has no pictures"):
            load_images(tmp_path)
        (tmp_path / "a").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="has no pictures"):
        load_images(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"cannot read .*1\.png"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("digit", ValueError, "did you mean 'digits'"),
        ("cifar10", ValueError, "did you mean 'CIFAR_10'"),
        ("MNIST", ValueError, "did you mean 'mnist_784'"),
        ("fashion_mnist", ValueError, "did you mean 'Fashion-MNIST'"),
        ("zzzzz", ValueError, "no image set 'zzzzz'; Known are digits, mnist_784"),
        ("nothing.npz", FileNotFoundError, r"there is no file 'nothing\.npz'"),
        ("no/such/folder", FileNotFoundError, "no file or folder 'no/such/folder'"),
        (__file__, ValueError, r"is no \.npz file"),
    ],
)
def test_unknown_sources(source: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load_images(source)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "first_class"),
    [
        ("mnist_784", (1, 28, 28), np.int64, "0"),
        ("Fashion-MNIST", (1, 28, 28), np.float64, "t-shirt"),
        ("CIFAR_10", (3, 32, 32), np.uint8, "airplane"),
    ],
)
def test_openml(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], dtype: type, first_class: str
) -> None:
    planes: np.ndarray = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype(dtype)
    calls = []

    def fetch(fetched: str, **options: Any) -> Bunch:
        calls.append((fetched, options))
        return Bunch(data=planes.reshape(4, -1), target=np.array(["3", "0", "9", "3"], dtype=object))

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    data = load_images(name, data_home="cache")
    torch.testing.assert_close(data.images.movedim(-1, 1), torch.tensor(planes / 255, dtype=torch.float32))
    assert data.labels.tolist() == [3, 0, 9, 3]
    assert data.class_names[0] == first_class
    assert len(data.class_names) == 10
    fetched, options = calls[0]
    assert fetched == name
    assert options["data_home"] == "cache"
    assert options["as_frame"] is False
    assert options["version"] == 1


def test_openml_out_of_reach_or_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> Bunch:
        raise ConnectionError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", unreachable)
    with pytest.raises(OSError, match=r"could not get 'mnist_784' from OpenML \(no network\); connect"):
        load_images("mnist_784")
    changed = Bunch(data=np.zeros((2, 100)), target=np.array(["0", "1"]))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *args, **options: changed)
    with pytest.raises(ValueError, match="rows must have 784 pixels"):
        load_images("mnist_784")
