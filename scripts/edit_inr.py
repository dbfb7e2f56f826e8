#!/usr/bin/env python
"""Edit a picture through the weights of INRs: fit, edit the weights, render.

Example:
    python scripts/edit_inr.py photo.jpg --edit dilate -o edited.png
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from editors import Editor, edit_picture, find_edit, pretrained_editors
from nfn_opt.data import read_image, write_image
from nfn_opt.data.pictures import is_picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditInrConfig:
    """What to edit and how.

    Attributes:
        image: Picture to edit: PNG, JPEG or whatever else Pillow reads, gray or colour, any size.
        edit: The edit, such as dilate or blur(sigma=2). Its pretrained editor is used, unless --editor gives another.
        out: PNG file to write.
        editor: File of an editor to use, such as runs/quickstart/editor.safetensors.
        strength: Strength of the edit, 0 (none) to 1 (whole).
        overlap: Pixels that neighbouring tiles share; half a tile if not given.
        seed: Seed of the INRs' initial parameters.
    """

    image: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    edit: str = "dilate"
    editor: Path | None = None
    strength: float = 1.0
    overlap: int | None = None
    seed: int = 0


def edit_inr(config: EditInrConfig) -> str:
    """Edit one picture; what was done, in one paragraph."""
    if not is_picture(config.out):
        raise ValueError(f"out is {config.out}, expected the name of a picture; let it end in .png or .jpg")
    picture = read_image(config.image)
    edit = str(find_edit(config.edit) or config.edit)
    editor = Editor.load(config.editor) if config.editor else Editor.pretrained(edit)
    if config.editor and editor.config.edit != edit:
        raise ValueError(
            f"the editor {config.editor} has learned {editor.config.edit!r}, expected {edit!r}; give "
            f"--edit {shlex.quote(editor.config.edit)}, or another editor"
        )
    started = time.perf_counter()
    done = edit_picture(
        picture, editor, strength=config.strength, overlap=config.overlap, seed=config.seed, progress=True
    )
    write_image(config.out, done.edited)
    height, width, channels = picture.shape
    text = (
        f"{config.image} ({width} x {height}, {channels} channels): {done.tiles} INRs at {done.psnr:.1f} dB, edited "
        f"and rendered in {time.perf_counter() - started:.0f} s"
    )
    if config.strength == 1.0 and done.error is not None:
        text += (
            f"\nmean squared error to the exact {edit}: {done.error:.5f} (without edit "
            f"{done.no_edit_error:.5f}), values in [0, 1]"
        )
    return f"{text}\nwritten: {config.out}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    description = f"{__doc__}\nPretrained editors: {', '.join(pretrained_editors()) or 'none'}."
    config = tyro.cli(EditInrConfig, args=arguments, prog="edit_inr.py", description=description)
    try:
        print(edit_inr(config))
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
