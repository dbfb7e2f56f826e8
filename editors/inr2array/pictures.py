"""Pictures of arrays: what they show, which INRs are neighbours, and a map of all."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from editors.inr2array.model import Inr2Array
from editors.inr_set import InrSet
from editors.pictures import draw_rows
from nfn_opt.artifacts import atomic_write

__all__ = ["draw_map", "draw_neighbours", "draw_reconstructions", "map_arrays", "nearest", "one_of_each"]

PRINCIPAL = 50
"""Principal components that the map is made of, as is usual for t-SNE."""


def nearest(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """The arrays of a gallery that are nearest to each query, by the cosine of the angle to the gallery's mean.

    Args:
        queries: Arrays ``(Q, latents, latent_channels)``.
        gallery: Arrays ``(N, latents, latent_channels)``.
        count: How many.

    Returns:
        Their numbers in the gallery, nearest first, int64, shape ``(Q, count)``.

    Raises:
        ValueError: If the gallery has fewer.

    Example:
        >>> gallery = torch.eye(4).view(4, 2, 2)
        >>> nearest(gallery[2:3] + 0.1, gallery, 1).tolist()
        [[2]]
    """
    if not 1 <= count <= len(gallery):
        raise ValueError(f"count is {count}, expected 1 to {len(gallery)}, the arrays of the gallery")
    center = gallery.flatten(1).mean(0)
    own, others = (F.normalize(some.flatten(1) - center, dim=1) for some in (queries, gallery))
    return (own @ others.T).topk(count, dim=1).indices


def one_of_each(labels: Tensor, count: int) -> Tensor:
    """Places of the first of each class, then of the others, `count` in all.

    Example:
        >>> one_of_each(torch.tensor([1, 1, 0, 2, 0]), 4).tolist()
        [2, 0, 3, 1]
    """
    firsts = torch.stack([torch.nonzero(labels == number)[0, 0] for number in labels.unique()])
    others = torch.ones(len(labels), dtype=torch.bool)
    others[firsts] = False
    return torch.cat([firsts, torch.nonzero(others).squeeze(1)])[:count]


def draw_reconstructions(
    path: str | os.PathLike[str], model: Inr2Array, inrs: InrSet, title: str, count: int = 10
) -> None:
    """Draw what INRs show above what their arrays show.

    Args:
        path: PNG file to write.
        model: The Inr2Array.
        inrs: INRs, of which the first are drawn.
        title: Over all.
        count: How many.
    """
    some = inrs[:count]
    draw_rows(path, {"INR": some.render(), "its array": model.reconstruct(some)}, title)


def draw_neighbours(
    path: str | os.PathLike[str], queries: InrSet, gallery: InrSet, indices: Tensor, title: str
) -> None:
    """Draw INRs, each above its nearest in a gallery.

    Args:
        path: PNG file to write.
        queries: INRs, Q of them.
        gallery: INRs.
        indices: Numbers of the nearest, ``(Q, count)``, of :func:`nearest`.
        title: Over all.
    """
    rows = {"INR": queries.render()}
    for place, some in enumerate(indices.T):
        rows[f"nearest {place + 1}"] = gallery[some].render()
    draw_rows(path, rows, title)


def map_arrays(arrays: Tensor, *, seed: int = 0) -> Tensor:
    """Places of arrays on a plane, by t-SNE of their principal components.

    Args:
        arrays: ``(N, latents, latent_channels)``, at least 8 of them.
        seed: Seed of t-SNE.

    Returns:
        Shape ``(N, 2)``.

    Raises:
        ValueError: If there are too few.
    """
    from sklearn.decomposition import PCA  # takes a second, so not at import
    from sklearn.manifold import TSNE

    if len(arrays) < 8:
        raise ValueError(f"there are {len(arrays)} arrays, expected at least 8 for a map")
    flat = arrays.detach().cpu().flatten(1).double().numpy()
    components = min(PRINCIPAL, *flat.shape)
    reduced = PCA(components, random_state=seed).fit_transform(flat)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    placed = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return torch.from_numpy(placed)


def draw_map(
    path: str | os.PathLike[str], places: Tensor, labels: Tensor, class_names: Sequence[str], title: str
) -> None:
    """Draw a map, one colour for each class.

    Args:
        path: PNG file to write.
        places: Of :func:`map_arrays`, ``(N, 2)``.
        labels: Class of each, ``(N,)``.
        class_names: Names of the classes.
        title: Over all.
    """
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(class_names):
        some = places[labels == number]
        axes.scatter(some[:, 0], some[:, 1], s=6, color=f"C{number % 10}", label=name)
    axes.set(xticks=[], yticks=[], title=title)
    axes.title.set_fontsize("medium")
    axes.legend(fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
