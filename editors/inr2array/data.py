"""INRs of labelled images in parts, with further fits of the training images as augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from editors.fit_files import fit_to_file
from editors.fit_options import FitOptions
from editors.inr_set import InrSet
from nfn_opt.data import ImageData

__all__ = ["InrParts", "fit_parts"]

HELD_OUT_SEEDS = {"validation": 1_000_000, "test": 1_000_001}
"""Added to the seed of the fits of the training images, so that no other fit starts from the same weights."""


@dataclasses.dataclass(frozen=True)
class InrParts:
    """INRs of disjoint images.

    Attributes:
        views: Fits of the training images, each from initial weights of its own, in the same order.
        validation: INRs of the validation images.
        test: INRs of the test images.
        class_names: Names of the classes.
    """

    views: tuple[InrSet, ...]
    validation: InrSet
    test: InrSet
    class_names: tuple[str, ...]

    @property
    def train(self) -> InrSet:
        """All views of the training images in one set."""
        return InrSet.concat(self.views)


def fit_parts(
    images: ImageData,
    counts: Sequence[int],
    folder: Path,
    *,
    views: int = 0,
    options: FitOptions | None = None,
    progress: bool = False,
) -> InrParts:
    """Deal images out to three parts and fit an INR to each; training images are fitted again for each view.

    The INRs are kept in the folder, and the same call again reads them, or goes on where it was stopped.

    Args:
        images: Labelled images.
        counts: Images of training, validation and test.
        folder: Where the INRs are kept.
        views: Further fits of each training image, from other initial weights.
        options: How to fit; the seed is that of the first fit of the training images.
        progress: Show progress bars.

    Raises:
        ValueError: If the counts are not three positive numbers, there are too few images, `views` is negative, or
            the folder holds other INRs.
    """
    if len(counts) != 3 or min(counts) < 1:
        raise ValueError(
            f"counts is {tuple(counts)}, expected three positive numbers: training, validation, test"
        )
    if views < 0:
        raise ValueError(f"views is {views}, expected 0 (each training image is fitted once) or more")
    if sum(counts) > len(images):
        raise ValueError(
            f"counts is {tuple(counts)}, {sum(counts):,} images, expected at most the {len(images):,} that there are; "
            "give fewer (--counts) or more images"
        )
    options = options or FitOptions()
    dealt = images.split(dict(zip(("train", "validation", "test"), counts, strict=True)), seed=0)

    def fitted(part: str, name: str, seed: int) -> InrSet:
        path = folder / f"inrs_{name}.safetensors"
        begun = path.exists() or path.with_name(f"{path.name}.parts").exists()
        chosen = dataclasses.replace(options, seed=seed)
        return fit_to_file(dealt[part], path, options=chosen, resume=begun, progress=progress)

    train = tuple(fitted("train", f"train_{view}", options.seed + view) for view in range(1 + views))
    validation, test = (fitted(part, part, options.seed + shift) for part, shift in HELD_OUT_SEEDS.items())
    return InrParts(train, validation, test, images.class_names)
