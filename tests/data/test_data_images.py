"""Splits are fixed and disjoint; conversions and checks of `ImageData`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nfn_opt.data import ImageData, load_images


def make(count: int = 10, channels: int = 1, side: int = 4) -> ImageData:
    images = torch.rand(count, side, side, channels, generator=torch.Generator().manual_seed(1))
    return ImageData(images, torch.arange(count) % 3, ("a", "b", "c"), "made")


def numbers(part: ImageData, whole: ImageData) -> set[int]:
    """Which images of `whole` are in `part`."""
    rows = {image.numpy().tobytes(): number for number, image in enumerate(whole.images)}
    return {rows[image.numpy().tobytes()] for image in part.images}


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        (None, [80, 10, 10]),
        ({"train": 0.7, "val": 0.2, "test": 0.1}, [70, 20, 10]),
        ({"a": 0.335, "b": 0.335, "c": 0.33}, [34, 33, 33]),
        ({"train": 0.5}, [50]),
        ({"train": 60, "val": 40}, [60, 40]),
        ({"train": 1, "val": 1, "test": 1}, [1, 1, 1]),
    ],
)
def test_split_is_disjoint_and_of_the_sizes_asked_for(
    sizes: dict[str, float] | None, counts: list[int]
) -> None:
    whole = make(100)
    parts = whole.split(sizes, seed=3)
    assert [len(part) for part in parts.values()] == counts
    chosen = [numbers(part, whole) for part in parts.values()]
    assert len(set.union(*chosen)) == sum(counts)


def test_split_is_fixed_by_its_seed_alone() -> None:
    whole = make(12)
    torch.manual_seed(0)
    first = whole.split({"a": 6, "b": 6}, seed=0)["a"].labels
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    again = whole.split({"a": 6, "b": 6}, seed=0)["a"].labels
    other = whole.split({"a": 6, "b": 6}, seed=1)["a"].labels
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # The literal order: a change of it would silently mix the training and test sets of saved work.
    assert first.tolist() == [6 % 3, 11 % 3, 4 % 3, 10 % 3, 2 % 3, 8 % 3]


def test_split_does_not_touch_the_global_state() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    make().split()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002


@pytest.mark.parametrize(
    ("sizes", "error", "match"),
    [
        ({"train": 8, "test": 3}, ValueError, "together at most 10"),
        ({"train": 0.8, "test": 0.3}, ValueError, "together at most 10"),
        ({"train": 0.99, "test": 0.01}, ValueError, "'test': 0"),
        ({"train": 5, "test": -1}, ValueError, "at least one image"),
        ({"train": 5, "test": 0.1}, TypeError, "all counts .* or all fractions"),
        ({}, TypeError, "all counts .* or all fractions"),
    ],
)
def test_impossible_splits(sizes: dict[str, float], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make().split(sizes)


def test_gray_weighs_the_colours() -> None:
    data = make(channels=3)
    expected = 0.299 * data.images[..., 0] + 0.587 * data.images[..., 1] + 0.114 * data.images[..., 2]
    torch.testing.assert_close(data.gray().images[..., 0], expected)
    assert data.gray().checksum == data.checksum
    assert data.gray().gray().images.shape == (10, 4, 4, 1)


def test_resize_to_a_divisor_averages_and_keeps_constants() -> None:
    data = make(channels=3, side=8)
    small = data.resize(2)
    assert small.images.shape == (10, 2, 2, 3)
    torch.testing.assert_close(small.images.mean((1, 2)), data.images.mean((1, 2)), atol=0.05, rtol=0)
    flat = ImageData(torch.full((1, 5, 7, 1), 0.3), torch.tensor([0]), ("a",), "flat")
    torch.testing.assert_close(flat.resize((9, 3)).images, torch.full((1, 9, 3, 1), 0.3))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        data.resize(0)


def test_subset() -> None:
    data = make()
    assert torch.equal(data.subset(3).images, data.images[:3])
    assert torch.equal(data.subset([4, 1]).labels, data.labels[[4, 1]])
    assert torch.equal(data.subset(data.labels == 2).images, data.images[data.labels == 2])
    with pytest.raises(ValueError, match="cannot take 11 images of a set of 10"):
        data.subset(11)


def test_checksum_depends_on_every_pixel_and_label() -> None:
    data = make()
    images, labels = data.images.clone(), data.labels.clone()
    images[-1, -1, -1, -1] = 0.123
    labels[0] = 2
    sums = {data.checksum, make().checksum}
    assert len(sums) == 1
    sums |= {ImageData(images, data.labels, data.class_names, "x").checksum}
    sums |= {ImageData(data.images, labels, data.class_names, "x").checksum}
    assert len(sums) == 3


@pytest.mark.parametrize(
    ("images", "labels", "error", "match"),
    [
        (torch.zeros(2, 3, 3), torch.zeros(2).long(), ValueError, r"shape \(N, H, W, C\)"),
        (torch.zeros(2, 3, 3, 2), torch.zeros(2).long(), ValueError, "C = 1 or 3"),
        (torch.zeros(0, 3, 3, 1), torch.zeros(0).long(), ValueError, "at least one pixel"),
        (torch.zeros(2, 3, 3, 1), torch.zeros(3).long(), ValueError, r"labels must have shape \(2,\)"),
        (torch.zeros(2, 3, 3, 1), torch.full((2,), 5), ValueError, r"0\.\.1.*got 5\.\.5"),
        (torch.full((2, 3, 3, 1), 7.0), torch.zeros(2).long(), ValueError, r"in \[0, 1\], got \[7, 7\]"),
        (torch.full((2, 3, 3, 1), torch.nan), torch.zeros(2).long(), ValueError, "finite"),
        (torch.zeros(2, 3, 3, 1).double(), torch.zeros(2).long(), TypeError, "float32"),
    ],
)
def test_arrays_that_do_not_fit(
    images: torch.Tensor, labels: torch.Tensor, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ImageData(images, labels, ("a", "b"), "made")


def test_digits() -> None:
    digits = load_images("digits")
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.max() == 1
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert load_images("digits").checksum == digits.checksum
