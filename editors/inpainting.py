"""Filling a rectangle of images from the pixels around it, batched."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

__all__ = ["inpaint"]


def inpaint(images: Tensor, *, top: float, left: float, height: float, width: float) -> Tensor:
    """Replace a rectangle by the harmonic function that continues the pixels around it.

    Every filled pixel is the mean of its (two to four) neighbours: the discrete Laplace equation, solved directly. The
    rectangle is given in fractions of the sides; a pixel belongs to it if its centre does.

    Args:
        images: Pixel values in [0, 1], shape (B, H, W, C).
        top: Upper border, in [0, 1].
        left: Left border, in [0, 1].
        height: Height, in [0, 1]; what reaches beyond the image does not count.
        width: Width, likewise.

    Returns:
        The filled images, of the same shape.

    Raises:
        ValueError: If the rectangle leaves no pixel to fill it from.

    Example:
        >>> ramp = torch.linspace(0, 1, 9).expand(1, 9, 9).unsqueeze(-1).clone()
        >>> scratched = ramp.clone()
        >>> scratched[0, 3:6, 3:6] = 0
        >>> torch.allclose(inpaint(scratched, top=0.3, left=0.3, height=0.4, width=0.4), ramp)
        True
    """
    rows, columns = _pixels(top, height, images.shape[1]), _pixels(left, width, images.shape[2])
    hidden = torch.zeros(images.shape[1:3], dtype=torch.bool)
    hidden[rows, columns] = True
    if hidden.all():
        raise ValueError(
            f"inpaint hides all pixels of images of {images.shape[1]} x {images.shape[2]}, expected at least one left "
            "to fill from; choose a smaller rectangle or larger images"
        )
    filled = images.clone()
    if hidden.any():
        around = (slice(None), _grown(rows), _grown(columns))  # no other pixels matter
        filled[around] = _fill(images[around], hidden[around[1:]].numpy())
    return filled


def _pixels(start: float, length: float, side: int) -> slice:
    """Pixels whose centres lie in a part of a side."""
    first, end = (min(math.ceil(edge * side - 0.5), side) for edge in (start, start + length))
    return slice(first, end)


def _grown(pixels: slice) -> slice:
    """One pixel more at either end; slices may reach beyond the last pixel by themselves."""
    return slice(max(pixels.start - 1, 0), pixels.stop + 1)


def _fill(images: Tensor, hidden: np.ndarray) -> Tensor:
    """Images (B, H, W, C) with the pixels of a mask (H, W) filled."""
    laplacian = scipy.sparse.kronsum(
        *(_path_laplacian(side) for side in reversed(hidden.shape)), format="csr"
    )
    inside, outside = np.flatnonzero(hidden), np.flatnonzero(~hidden)
    equations = laplacian[inside]
    values = images.movedim(0, 2).flatten(2).flatten(0, 1).to("cpu", torch.float64, copy=True).numpy()
    values[inside] = scipy.sparse.linalg.splu(equations[:, inside].tocsc()).solve(
        -equations[:, outside] @ values[outside]
    )
    height, width = hidden.shape
    filled = torch.from_numpy(values).view(height, width, len(images), -1).movedim(2, 0)
    return filled.clamp(0, 1).to(images)


def _path_laplacian(length: int) -> scipy.sparse.spmatrix:
    """Number of neighbours on the diagonal and -1 for each neighbour, of pixels in a row."""
    links = np.ones(length - 1)
    return scipy.sparse.diags([-links, np.append(links, 0) + np.append(0, links), -links], [-1, 0, 1])
