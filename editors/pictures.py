"""Rows of pictures, to compare images with their edits."""

from __future__ import annotations

import os
from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from nfn_opt.artifacts import atomic_write

LEAST_WIDTH = 7.0
"""Least width of a picture, in inches, so that its title fits."""


def draw_rows(path: str | os.PathLike[str], rows: Mapping[str, Tensor], title: str) -> None:
    """Draw one row of images for each label, images of one place under each other.

    Args:
        path: PNG file to write.
        rows: Images ``(N, H, W, C)`` for each label, C 1 or 3, values in [0, 1].
        title: Over all.

    Raises:
        ValueError: If there is nothing to draw, or the rows have different numbers of images.

    Example:
        >>> import tempfile, torch
        >>> path = os.path.join(tempfile.mkdtemp(), "rows.png")
        >>> draw_rows(path, {"before": torch.rand(3, 8, 8, 1), "after": torch.rand(3, 8, 8, 3)}, "Noise")
        >>> os.path.exists(path)
        True
    """
    counts = {label: len(images) for label, images in rows.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"the numbers of images are {counts}, expected one number for all, at least 1")
    count = next(iter(counts.values()))
    figure = Figure(figsize=(max(count, LEAST_WIDTH), 1.08 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images.detach().cpu().clamp(0, 1), strict=True):
            ax.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize="medium")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
