"""Where the families take images and text from: by name, at the size that a task asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping

from nfn_opt.data import ImageData, TextData, load_images, load_photo_patches, load_text

KNOWN: dict[str, str] = {
    "digits": "digits",
    "mnist": "mnist_784",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR_10",
}
"""Names of image sets, and what `load_images` calls them."""


class DataSources:
    """Images and text, loaded at first use and kept.

    Args:
        images: For names of image sets, a file, folder or other name that `load_images` reads; names that
            are not given are loaded as in `KNOWN`, from OpenML if need be.
        text: A text file; the corpus of the library if not given.
        limit: Largest number of images taken of a set, chosen at random but always the same.

    Example:
        >>> data = DataSources({"mnist": "digits"}, limit=100)
        >>> data.images("mnist", 4)
        ImageData('digits, 4 x 4', 100 images of 4 x 4 x 1, 10 classes)
    """

    def __init__(
        self,
        images: Mapping[str, str | os.PathLike[str]] | None = None,
        *,
        text: str | os.PathLike[str] | None = None,
        limit: int = 2048,
    ) -> None:
        self._paths = {**KNOWN, **(images or {})}
        self._text_path = text
        self.limit = limit
        self._images: dict[str, ImageData] = {}
        self._sized: dict[tuple[str, int], ImageData] = {}
        self._text: TextData | None = None

    def images(self, name: str, size: int) -> ImageData:
        """The images of a set, resized to a square.

        Args:
            name: One of `KNOWN`, a name given by the user, or ``"photos"``: gray patches of photographs.
            size: Height and width, in pixels.

        Raises:
            ValueError: If the name is unknown.
        """
        if (name, size) not in self._sized:
            if name == "photos":
                found = load_photo_patches(min(self.limit, 256), size)
            else:
                found = self._loaded(name).resize(size)
            self._sized[name, size] = found
        return self._sized[name, size]

    def text(self) -> TextData:
        """The text."""
        if self._text is None:
            self._text = load_text(self._text_path)
        return self._text

    def _loaded(self, name: str) -> ImageData:
        if name not in self._paths:
            raise ValueError(
                f"there is no image source {name!r}, expected photos, {', '.join(self._paths)}; "
                "give DataSources its file"
            )
        if name not in self._images:
            found = load_images(self._paths[name])
            count = min(self.limit, len(found))
            self._images[name] = found.split({"all": count}, seed=0)["all"]
        return self._images[name]
