"""Patches of the two photographs that ship with scikit-learn: natural images without a download."""

from __future__ import annotations

import torch
from torch import Tensor

from nfn_opt.data.images import ImageData

__all__ = ["load_photo_patches"]


def load_photo_patches(count: int, size: int = 16, *, seed: int = 0, gray: bool = True) -> ImageData:
    """Random square patches of the photographs ``china.jpg`` and ``flower.jpg`` at random scales.

    The photographs (427 x 640 pixels, CC BY 2.0, by the flickr users danielbuechele and vultilion) come with
    scikit-learn. A patch covers 1, 2 or 4 times its size in the photograph and is reduced to ``size`` by
    averaging. The photograph is the label.

    Args:
        count: Number of patches.
        size: Height and width of a patch, in pixels.
        seed: Seed of the choice.
        gray: Whether the patches are gray; otherwise the same patches in colour.

    Raises:
        ValueError: If ``count`` or ``size`` is not positive, or a patch would not fit into a photograph.

    Example:
        >>> patches = load_photo_patches(10, 16)
        >>> patches.images.shape
        torch.Size([10, 16, 16, 1])
    """
    photos = _photos(gray)
    limit = min(min(photo.shape[1:]) for photo in photos) // 4
    if count < 1 or not 1 <= size <= limit:
        raise ValueError(f"count is {count} and size {size}, expected count >= 1 and size from 1 to {limit}")
    generator = torch.Generator().manual_seed(seed)
    patches, labels = torch.empty(count, size, size, 1 if gray else 3), torch.empty(count, dtype=torch.int64)
    for i in range(count):
        photo, power = (int(torch.randint(high, (), generator=generator)) for high in (len(photos), 3))
        side = size * 2**power
        top, left = (
            int(torch.randint(n - side + 1, (), generator=generator)) for n in photos[photo].shape[1:]
        )
        patch = photos[photo][:, top : top + side, left : left + side]
        patches[i] = torch.nn.functional.adaptive_avg_pool2d(patch, size).movedim(0, -1)
        labels[i] = photo
    source = f"photo patches{'' if gray else ' in colour'}, seed {seed}"
    return ImageData(images=patches, labels=labels, class_names=("china", "flower"), source=source)


def _photos(gray: bool) -> list[Tensor]:
    """The photographs in [0, 1], each (C, 427, 640); in gray, their luma."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(photo) / 255 for photo in load_sample_images().images]
    if gray:
        return [(photo @ torch.tensor([0.299, 0.587, 0.114])).unsqueeze(0) for photo in photos]
    return [photo.movedim(-1, 0) for photo in photos]
