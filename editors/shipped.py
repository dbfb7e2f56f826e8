"""Editors that ship with the package: which there are, and which one a name means."""

from __future__ import annotations

from pathlib import Path

from editors.edits import find_edit
from editors.named_edit import closest

__all__ = ["pretrained_editors", "pretrained_path"]

FOLDER = Path(__file__).parent / "pretrained"

KINDS = {
    "colour": "32 x 32 colour images, and tiles of pictures of any size",
    "mnist": "28 x 28 gray digits",
}
"""What there are editors for. The first that has an editor of an edit is meant by the edit's name alone."""


def pretrained_editors() -> list[str]:
    """Names of the editors that ship, such as ``"colour-blur"``: what they edit, and the edit.

    Example:
        >>> "mnist-dilate" in pretrained_editors()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def pretrained_path(name: str) -> Path:
    """File of the editor that a name means.

    Args:
        name: One of :func:`pretrained_editors`, or an edit alone.

    Raises:
        ValueError: If none ships under that name; the message suggests the closest one.
    """
    kind, _, edit = name.partition("-")
    wanted = [name] if kind not in KINDS else [f"{kind}-{find_edit(edit) or edit}"]
    if kind not in KINDS:
        wanted = [f"{kind}-{find_edit(name) or name}" for kind in KINDS]
    for stem in wanted:
        if (path := FOLDER / f"{stem}.safetensors").is_file():
            return path
    known = pretrained_editors()
    others = [each for each in known if edit and each.endswith(f"-{edit}")]
    edits = [each.partition("-")[2] for each in known]
    hint = f"; did you mean {others[0]!r}?" if others else closest(name, [*known, *edits])
    raise ValueError(
        f"no pretrained editor for {name!r}{hint} There are {', '.join(known) or 'none'}. "
        "Train one with scripts/train_editor.py, and give its file: Editor.load(FILE), or --edit FILE"
    )
