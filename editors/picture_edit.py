"""Editing pictures of any size through the weights of the INRs of their tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from editors.chosen_edit import ChosenEdit
from editors.edit_family import VariedEdit
from editors.editor import Editor, check_strength
from editors.edits import find_edit
from editors.tiling import TiledPicture, fit_picture

__all__ = ["PictureEdit", "edit_picture", "edit_tiles", "parameter_sweep", "strength_sweep"]

OneEdit: TypeAlias = "Editor | ChosenEdit"
"""An editor of one edit, or one edit of an editor of several."""


@dataclasses.dataclass(frozen=True)
class PictureEdit:
    """What :func:`edit_picture` made.

    Attributes:
        original: The picture, values in [0, 1], shape (H, W, C).
        edited: The edited picture, likewise.
        reconstructed: The picture as its INRs hold it before the edit, likewise.
        exact: The exact edit of the picture, at strength 1, likewise; None if an editor learned a function that is
            not in `editors.EDITS`.
        before: The INRs before the edit.
        after: The INRs after it.
        strength: Strength of the edit.
        psnr: Mean PSNR of the INRs against their tiles, in dB; NaN if it is not known.
        tiles: Number of INRs.
        error: Mean squared error of ``edited`` to ``exact``, values in [0, 1]; None if that is None.
        no_edit_error: The same for the unedited picture.
    """

    original: Tensor
    edited: Tensor
    reconstructed: Tensor
    exact: Tensor | None
    before: TiledPicture
    after: TiledPicture
    strength: float
    psnr: float
    tiles: int
    error: float | None
    no_edit_error: float | None


def check_editors(editors: OneEdit | Sequence[OneEdit]) -> tuple[OneEdit, ...]:
    """One editor or several as a tuple, checked: at least one, each of one edit, and all for the same INRs.

    Raises:
        ValueError: Naming the first editor of several edits, or that is for other INRs than the first of all, or that
            makes other INRs than the next one can edit.
    """
    chain = (editors,) if isinstance(editors, (Editor, ChosenEdit)) else tuple(editors)
    if not chain:
        raise ValueError("there is no editor, expected at least one")
    first = chain[0].config
    for number, editor in enumerate(chain):
        config = editor.config
        if config.family is not None:
            raise ValueError(
                f"editor {number + 1} learned several edits, {config.edit}, expected one of them to be chosen, as in "
                f"ChosenEdit(editor, {str(config.family.examples[0])!r})"
            )
        if (config.siren, config.image_size) != (first.siren, first.image_size):
            raise ValueError(
                f"editor {number + 1} of the chain ({config.edit!r}) is for INRs {config.siren} of {config.image_size} "
                f"pixels, expected {first.siren} of {first.image_size} as for the first ({first.edit!r}): the weights "
                "that one makes are edited by the next; train both for the same INRs, or edit the picture twice"
            )
        if config.outputs > 1 and number + 1 < len(chain):
            raise ValueError(
                f"editor {number + 1} of the chain ({config.edit!r}) has {config.outputs} outputs and makes INRs "
                f"{config.edited_siren}, expected {config.siren} as the next one edits; let it be the last, or edit "
                "the picture twice"
            )
    return chain


def exact_edit(picture: Tensor, editors: Sequence[OneEdit]) -> Tensor | None:
    """The exact edits of a picture (H, W, C), one after the other; None if one is not in `editors.EDITS`."""
    for editor in editors:
        edit = find_edit(editor.config.edit)
        if edit is None:
            return None
        picture = edit(picture[None])[0]
    return picture


def _exact_edit(picture: Tensor, held: TiledPicture, editors: Sequence[OneEdit]) -> Tensor | None:
    """The exact edits of a picture in the channels in which INRs hold it; a gray one is gray after it."""
    exact = exact_edit(picture.expand(held.shape), editors)
    return exact.mean(-1, keepdim=True) if exact is not None and held.gray else exact


def _check_local(editors: Sequence[OneEdit], size: tuple[int, int]) -> None:
    """Refuse edits that cannot be made tile by tile on a picture that is not one tile."""
    for editor in editors:
        edit, tile = find_edit(editor.config.edit), editor.config.image_size
        if edit is not None and not edit.local and size != tile:
            raise ValueError(
                f"the edit {str(edit)!r} depends on places or distant pixels and cannot be made tile by tile: the "
                f"picture is {size[0]} x {size[1]}, expected {tile[0]} x {tile[1]} as in training; resize it"
            )


def edit_tiles(
    tiled: TiledPicture, editors: OneEdit | Sequence[OneEdit], strength: float = 1.0
) -> TiledPicture:
    """Edit the weights of all INRs of a picture.

    Args:
        tiled: The picture.
        editors: The editor, or several that are applied one after the other.
        strength: Of each of them, 0 (no edit) to 1 (the whole edit).

    Raises:
        ValueError: If the INRs or the editors do not fit each other, or an edit cannot be made tile by tile, or the
            strength is out of range.
    """
    chain = check_editors(editors)
    check_strength(strength)
    _check_local(chain, tiled.shape[:2])
    if tiled.inrs.image_size != chain[0].config.image_size:
        raise ValueError(
            f"the INRs are of tiles of {tiled.inrs.image_size} pixels, expected {chain[0].config.image_size} as the "
            "editor was trained with; fit the picture again"
        )
    inrs = tiled.inrs
    for editor in chain:
        inrs = editor(inrs, strength)
    return tiled.with_inrs(inrs)


def strength_sweep(
    tiled: TiledPicture,
    editors: OneEdit | Sequence[OneEdit],
    strengths: Sequence[float],
    *,
    whole: TiledPicture | None = None,
) -> Iterator[TiledPicture]:
    """The edited picture at each of some strengths, one after the other.

    Args:
        tiled: The picture before the edit.
        editors: As for :func:`edit_tiles`.
        strengths: Each 0 to 1.
        whole: The picture at strength 1, if it is known already.

    Yields:
        The edited picture, to be rendered at any resolution.

    Raises:
        ValueError: As :func:`edit_tiles`.
    """
    chain = check_editors(editors)
    none, whole = edit_tiles(tiled, chain, 0.0), whole or edit_tiles(tiled, chain)
    for strength in strengths:
        check_strength(strength)
        if len(chain) > 1:
            yield edit_tiles(tiled, chain, strength)
            continue
        # One editor changes the weights in proportion to its strength.
        before, after = none.inrs.params, whole.inrs.params
        params = {name: torch.lerp(before[name], after[name], strength) for name in before}
        yield none.with_inrs(none.inrs.with_params(params))


def parameter_sweep(
    tiled: TiledPicture,
    editor: Editor,
    edits: str | Sequence[str],
    fractions: Sequence[float],
    strength: float = 1.0,
) -> Iterator[TiledPicture]:
    """The edited picture while parameters go through their ranges, one after the other.

    Args:
        tiled: The picture before the edit.
        editor: An editor of several edits.
        edits: One of its edits with a range, such as ``"blur(sigma=0.5..2)"``, or several, which edit the weights one
            after the other, all at the same fraction of their ranges.
        fractions: Each 0 (the least value) to 1 (the greatest).
        strength: Strength of each edit.

    Yields:
        The edited picture, to be rendered at any resolution.

    Raises:
        ValueError: As :func:`edit_tiles`, or if the editor has not learned an edit.
    """
    varied = [VariedEdit.read(each) for each in ([edits] if isinstance(edits, str) else edits)]
    for fraction in fractions:
        now = [str(each.at([fraction] * len(each.ranges))) for each in varied]
        yield edit_tiles(tiled, [ChosenEdit(editor, edit) for edit in now], strength)


def edit_picture(
    picture: Tensor | TiledPicture,
    editors: OneEdit | Sequence[OneEdit],
    *,
    strength: float = 1.0,
    overlap: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PictureEdit:
    """Fit INRs to a picture, edit their weights and render the edited picture.

    A picture larger than the editor's images is cut into overlapping tiles. An editor of gray INRs edits the
    channels of a colour picture one by one; an editor of colour INRs edits colour tiles, and a gray picture as one
    with three equal channels, of which the mean is shown.

    Args:
        picture: Pixel values in [0, 1], shape (H, W, C); or a picture whose INRs are fitted already, which stands
            for the pixels that these show.
        editors: The editor, or several of the same INRs, which then edit the weights one after the other. Of an editor
            of several edits one is chosen by :class:`~editors.chosen_edit.ChosenEdit`.
        strength: 0 (no edit) to 1 (the whole edit), of each editor.
        overlap: Pixels that neighbouring tiles share; half a tile if not given.
        seed: Seed of the INRs' initial parameters.
        progress: Show a progress bar of the fit.

    Raises:
        ValueError: If the picture is not (H, W, C) in [0, 1], the editors do not fit each other or the INRs, an edit
            cannot be made tile by tile, or the strength or the overlap is out of range.
    """
    check_strength(strength)
    chain = check_editors(editors)
    if isinstance(picture, TiledPicture):
        before, given = picture, picture.render()
    else:
        config = chain[0].config
        if picture.ndim == 3:
            _check_local(chain, (picture.shape[0], picture.shape[1]))
        before = fit_picture(
            picture, config.siren, config.image_size, overlap=overlap, seed=seed, progress=progress
        )
        given = picture
    after = edit_tiles(before, chain, strength)
    edited = after.render()
    exact = _exact_edit(given, before, chain)
    return PictureEdit(
        original=given,
        edited=edited,
        reconstructed=before.render(),
        exact=exact,
        before=before,
        after=after,
        strength=strength,
        psnr=before.inrs.psnr.mean().item(),
        tiles=len(before.inrs),
        error=None if exact is None else (edited - exact).square().mean().item(),
        no_edit_error=None if exact is None else (given - exact).square().mean().item(),
    )
