"""How far rendered edited INRs are from edited images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from editors.averaging import mean_of_groups
from editors.editor import Editor
from editors.inr_set import InrSet
from editors.named_edit import Edit
from editors.siren import coordinates, siren_apply

__all__ = ["editing_error", "editing_errors", "editing_scores", "no_edit_error", "score_table"]

INRS_PER_CHUNK = 1024
"""INRs rendered at once."""


def as_targets(inrs: InrSet, targets: Tensor) -> Tensor:
    """Edited images in [0, 1] as what an INR should predict: (B, P, C) in [-1, 1]."""
    expected = (len(inrs), *inrs.image_size, inrs.config.out_channels)
    if tuple(targets.shape) != expected:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, expected {expected}: the edited image of every INR, "
            "(B, H, W, C) with values in [0, 1]"
        )
    return (2 * targets - 1).flatten(1, 2)


def squared_errors(inrs: InrSet, params: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Squared errors of rendered INRs, not clamped, differentiable.

    Args:
        inrs: INRs whose architecture and image size count.
        params: Weights ``{name: (B * count, *shape)}``; the mean of what each `count` neighbours show is the picture.
        targets: What it should be, in [-1, 1], shape (B, P, C).

    Returns:
        Shape (B, P, C), image values in [-1, 1].
    """
    coords = coordinates(*inrs.image_size, device=targets.device, dtype=targets.dtype)
    shown = mean_of_groups(siren_apply(params, coords, inrs.config), len(targets))
    return (shown - targets).square()


@torch.no_grad()
def no_edit_error(inrs: InrSet, targets: Tensor) -> float:
    """Error of leaving the INRs as they are; see :func:`editing_error`."""
    return _mean_error(inrs, inrs.params, targets)


def editing_error(
    editor: Editor,
    inrs: InrSet,
    targets: Tensor,
    strength: float = 1.0,
    edits: str | Edit | Sequence[str | Edit] | None = None,
) -> float:
    """Mean squared error between rendered edited INRs and edited images.

    Args:
        editor: The editor.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C).
        strength: Strength of the edit.
        edits: For an editor of several edits the one that is meant, or one for each INR.

    Returns:
        The error with image values in [-1, 1], as the NFN and NFT papers give it: 4 times that of [0, 1].
    """
    return _mean_error(inrs, editor.edited_weights(inrs, strength, edits), targets)


@torch.no_grad()
def editing_errors(
    editor: Editor | None,
    inrs: InrSet,
    targets: Tensor,
    strength: float = 1.0,
    edits: str | Edit | Sequence[str | Edit] | None = None,
) -> Tensor:
    """The error of each image, of which :func:`editing_error` is the mean.

    Args:
        editor: The editor; None stands for no edit.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C).
        strength: Strength of the edit.
        edits: For an editor of several edits the one that is meant, or one for each INR.

    Returns:
        Mean squared errors, image values in [-1, 1], shape (B,).

    Example:
        >>> from editors import fit
        >>> images = torch.rand(3, 6, 6, 1, generator=torch.Generator().manual_seed(0))
        >>> errors = editing_errors(None, fit(images), images)
        >>> errors.shape, bool((errors < 1e-3).all())
        (torch.Size([3]), True)
    """
    params = inrs.params if editor is None else editor.edited_weights(inrs, strength, edits)
    return torch.cat([part.mean((1, 2)) for part in _chunks(inrs, params, targets)])


@torch.no_grad()
def _mean_error(inrs: InrSet, params: Mapping[str, Tensor], targets: Tensor) -> float:
    """Mean over the images of the error of weights, see :func:`squared_errors`."""
    means = [(len(part), float(part.mean())) for part in _chunks(inrs, params, targets)]
    return sum(count / max(len(inrs), 1) * mean for count, mean in means)


def _chunks(inrs: InrSet, params: Mapping[str, Tensor], targets: Tensor) -> Iterator[Tensor]:
    """Squared errors of some INRs after others."""
    wanted = as_targets(inrs, targets)
    each = len(params["layers.0.bias"]) // max(len(inrs), 1)
    for start in range(0, max(len(inrs), 1), INRS_PER_CHUNK):
        part = slice(start * each, (start + INRS_PER_CHUNK) * each)
        some = {name: value[part] for name, value in params.items()}
        yield squared_errors(inrs, some, wanted[start : start + INRS_PER_CHUNK])


def editing_scores(
    editor: Editor,
    inrs: InrSet,
    targets: Tensor,
    edits: str | Edit | Sequence[str | Edit] | None = None,
) -> dict[str, float]:
    """What is told of an editor on held-out INRs.

    Args:
        editor: The editor.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C).
        edits: For an editor of several edits the one that is meant, or one for each INR.

    Returns:
        ``images`` (their number); ``error`` (mean over the images), ``error_of_mean`` (standard error of this mean),
        ``median_error``, ``worst_error``; ``no_edit_error``; ``share``, the error by that of no edit; and
        ``inr_psnr_db``, how well the INRs fit the images before the edit. Errors as in :func:`editing_error`.
    """
    return scores_of_edited(editor(inrs, 1.0, edits), inrs, targets)


def scores_of_edited(edited: InrSet, inrs: InrSet, targets: Tensor) -> dict[str, float]:
    """The scores of INRs that are edited already.

    Args:
        edited: The INRs after the edit.
        inrs: The INRs before it.
        targets: The edited images, values in [0, 1], shape (B, H, W, C).

    Returns:
        See :func:`editing_scores`.
    """
    errors, without = editing_errors(None, edited, targets), no_edit_error(inrs, targets)
    error = no_edit_error(edited, targets)
    return {
        "images": len(inrs),
        "error": error,
        "error_of_mean": (errors.std(correction=min(1, len(errors) - 1)) / len(errors) ** 0.5).item(),
        "median_error": errors.median().item(),
        "worst_error": errors.max().item(),
        "no_edit_error": without,
        "share": error / without if without else float(error > 0),
        "inr_psnr_db": inrs.psnr.mean().item(),
    }


def score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Scores of :func:`editing_scores` as a text, one line for each set of INRs.

    Example:
        >>> one = {"images": 9, "error": 0.01, "error_of_mean": 0.001, "median_error": 0.008, "worst_error": 0.1}
        >>> print(score_table({"test": one | {"no_edit_error": 0.04, "share": 0.25}}))
              images   error      +-  median   worst  no edit  share
        test       9  0.0100  0.0010  0.0080  0.1000   0.0400    25%
    """
    width = max(map(len, scores), default=0)
    lines = [f"{'':{width}}  images   error      +-  median   worst  no edit  share"]
    for name, one in scores.items():
        keys = ("error", "error_of_mean", "median_error", "worst_error")
        errors = "".join(f"{one[key]:8.4f}" for key in keys)
        lines.append(
            f"{name:{width}}{one['images']:8.0f}{errors}{one['no_edit_error']:9.4f}{one['share']:7.0%}"
        )
    return "\n".join(lines)
