"""Filled pixels are the mean of their neighbours, the others stay."""

from __future__ import annotations

import itertools

import pytest
import torch

from editors.inpainting import inpaint

CASES = [  # images, rectangle in fractions, rows and columns that it covers
    ((2, 10, 10, 1), (0.35, 0.35, 0.3, 0.3), (range(3, 6), range(3, 6))),
    ((1, 12, 7, 3), (0.0, 0.0, 0.5, 1.0), (range(6), range(7))),  # the upper half
    ((1, 6, 9, 1), (0.5, 0.5, 1.0, 1.0), (range(3, 6), range(4, 9))),  # the lower right corner
    ((1, 1, 9, 3), (0.0, 0.4, 1.0, 0.3), (range(1), range(4, 6))),  # one row
    ((1, 9, 1, 1), (0.4, 0.0, 0.3, 1.0), (range(4, 6), range(1))),  # one column
    (
        (1, 5, 5, 1),
        (0.92, 0.9, 0.05, 0.1),
        (range(5, 5), range(4, 5)),
    ),  # between the centres of pixels: nothing
    ((1, 5, 5, 1), (0.2, 0.2, 0.0, 0.5), (range(1, 1), range(1, 3))),
]


@pytest.mark.parametrize(("shape", "rectangle", "covered"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filled_pixels_are_the_mean_of_their_neighbours(
    shape: tuple[int, ...],
    rectangle: tuple[float, ...],
    covered: tuple[range, range],
    dtype: torch.dtype,
) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    before = images.clone()
    filled = inpaint(images, **dict(zip(("top", "left", "height", "width"), rectangle, strict=True)))
    assert torch.equal(images, before)
    assert filled.dtype == dtype
    hidden = set(itertools.product(*covered))
    for y, x in itertools.product(range(shape[1]), range(shape[2])):
        if (y, x) not in hidden:
            assert torch.equal(filled[:, y, x], images[:, y, x])
            continue
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        neighbours = [filled[:, i, j] for i, j in near if 0 <= i < shape[1] and 0 <= j < shape[2]]
        torch.testing.assert_close(filled[:, y, x], torch.stack(neighbours).mean(0), atol=1e-6, rtol=0)


def test_what_is_hidden_does_not_matter() -> None:
    images = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    scratched = images.clone()
    scratched[:, 2:6, 2:6] = 1
    rectangle = {"top": 0.25, "left": 0.25, "height": 0.5, "width": 0.5}
    assert torch.equal(inpaint(images, **rectangle), inpaint(scratched, **rectangle))


def test_a_rectangle_that_leaves_nothing() -> None:
    with pytest.raises(ValueError, match="hides all pixels of images of 1 x 2, expected at least one left"):
        inpaint(torch.zeros(1, 1, 2, 1), top=0.0, left=0.0, height=1.0, width=1.0)
