"""Patches of photographs: the same for a seed, of the size asked for, parts of the photographs."""

from __future__ import annotations

import pytest
import torch

from nfn_opt.data import load_photo_patches
from nfn_opt.data.patches import _photos


def test_patches() -> None:
    patches = load_photo_patches(40, 8)
    assert patches.images.shape == (40, 8, 8, 1)
    assert 0 <= patches.images.min() < 0.2 < 0.8 < patches.images.max() <= 1
    assert patches.labels.unique().tolist() == [0, 1]
    assert patches.class_names == ("china", "flower")
    assert len(patches.images.flatten(1).unique(dim=0)) == 40


@pytest.mark.parametrize(("seed", "equal"), [(3, True), (4, False)])
def test_the_seed_decides(seed: int, equal: bool) -> None:
    state = torch.get_rng_state()
    first, second = load_photo_patches(6, 5, seed=3), load_photo_patches(6, 5, seed=seed)
    assert torch.equal(first.images, second.images) == equal
    assert (first.checksum == second.checksum) == equal
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_patches_are_the_first_ones() -> None:
    assert torch.equal(load_photo_patches(3, 6).images, load_photo_patches(9, 6).images[:3])


def test_each_patch_is_a_reduced_part_of_its_photograph() -> None:
    photos = _photos(gray=True)
    assert [tuple(photo.shape) for photo in photos] == [(1, 427, 640), (1, 427, 640)]
    patches = load_photo_patches(12, 4)
    used = set()
    for patch, label in zip(patches.images[..., 0], patches.labels.tolist(), strict=True):
        photo = photos[label]
        for scale in (1, 2, 4):
            reduced = torch.nn.functional.avg_pool2d(photo, scale, stride=1)[0]
            windows = reduced.unfold(0, 3 * scale + 1, 1).unfold(1, 3 * scale + 1, 1)[..., ::scale, ::scale]
            if (windows - patch).abs().amax((2, 3)).min() < 1e-5:
                used.add(scale)
                break
        else:
            pytest.fail("a patch is nowhere in its photograph")
    assert len(used) > 1


def test_patches_in_colour_are_the_same_patches() -> None:
    gray, colour = load_photo_patches(5, 6), load_photo_patches(5, 6, gray=False)
    assert colour.images.shape == (5, 6, 6, 3)
    torch.testing.assert_close(colour.gray().images, gray.images)
    assert colour.source == "photo patches in colour, seed 0"


@pytest.mark.parametrize(("count", "size"), [(0, 8), (-1, 8), (3, 0), (3, 107)])
def test_numbers_out_of_range(count: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"count is {count} and size {size}, expected .* 1 to 106"):
        load_photo_patches(count, size)


def test_the_largest_patch_fits() -> None:
    assert load_photo_patches(8, 106).images.shape == (8, 106, 106, 1)
