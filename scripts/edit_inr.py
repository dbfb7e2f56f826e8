#!/usr/bin/env python
"""Edit pictures through the weights of INRs: fit, edit the weights, render.

Examples:
    python scripts/edit_inr.py photo.jpg --edit dilate -o edited.png --report report.html
    python scripts/edit_inr.py photo.jpg --edit dilate --edit blur --scale 2 -o large.png --gif strength.gif
    python scripts/edit_inr.py a.jpg b.png --edit erode -o edited
    python scripts/edit_inr.py photo.jpg --strength 0 -o fitted.png --save-inr photo.safetensors
    python scripts/edit_inr.py photo.safetensors --edit blur -o blurred.png
    python scripts/edit_inr.py photo.jpg --editor many.safetensors --edit "blur(sigma=1.3)" --edit invert -o edited.png
    python scripts/edit_inr.py photo.jpg --editor many.safetensors --edit "blur(sigma=0.5..2)" -o b.png --gif sigma.gif
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from editors import (
    ChosenEdit,
    Editor,
    PictureEdit,
    TiledPicture,
    edit_picture,
    find_edit,
    parameter_sweep,
    pretrained_editors,
    strength_sweep,
    write_report,
)
from editors.edit_family import RANGE, VariedEdit
from editors.picture_edit import OneEdit
from editors.shipped import pretrained_path
from nfn_opt.data import read_image, write_animation, write_image
from nfn_opt.data.pictures import is_picture, picture_notes, picture_size

INRS = ".safetensors"
"""How the name of a file of INRs ends."""

OUTPUTS = {"out": ".png", "save_inr": INRS, "gif": ".gif", "report": ".html"}
"""What can be written, and how the names of the files in a folder end."""

GIF_FRAMES = 16
"""Strengths of an animation, from 0 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditInrConfig:
    """What to edit and how.

    Attributes:
        images: Pictures to edit: PNG, JPEG or whatever else Pillow reads, gray or colour, any size; or files
            written by --save-inr, which need no fit.
        out: PNG or JPEG file to write; a folder if there are several pictures.
        edit: Edit that has a pretrained editor, such as dilate, the name of such an editor, such as mnist-dilate, or
            file of an editor; dilate if not given. Given several times, the weights are edited by one after the other.
        editor: File of an editor, such as runs/quickstart/editor.safetensors; the same as --edit FILE. Of an editor
            that has learned several edits, --edit names the one to make, such as "blur(sigma=1.3)", or several to make
            one after the other; with a range, "blur(sigma=0.5..2)", the picture is that of its end, and the
            animation goes through the range.
        strength: Strength of every edit, 0 (none) to 1 (whole).
        scale: Render the picture this many times as high and wide, 1 to 64; an INR has no resolution.
        render_size: WIDTH HEIGHT in pixels to render at, at least those of the picture, instead of --scale.
        report: HTML file to write: the picture at all strengths, errors, what changed in the weights. Of an edit with
            a range, that of its end.
        gif: GIF file to write: the edit from strength 0 to 1 and back, or through the range of a parameter.
        save_inr: File to write the edited INRs to; editors.TiledPicture.load(FILE).render() draws them.
        overlap: Pixels that neighbouring tiles share; half a tile if not given.
        seed: Seed of the INRs' initial parameters.
        max_pixels: Refuse larger pictures. A pixel in colour costs about half a millisecond on one core.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    edit: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    editor: Path | None = None
    strength: float = 1.0
    scale: float = 1.0
    render_size: tuple[int, int] | None = None
    report: Path | None = None
    gif: Path | None = None
    save_inr: Path | None = None
    overlap: int | None = None
    seed: int = 0
    max_pixels: int = 2_000_000


def load_editors(config: EditInrConfig) -> list[OneEdit]:
    """The editors to apply, in order."""
    if config.editor is None:
        names = config.edit or ("dilate",)
        editors = [Editor.load(name) if name.endswith(INRS) else _shipped(name) for name in names]
        for name, editor in zip(names, editors, strict=True):
            _check_chosen(name, editor)
        return [*editors]
    editor = Editor.load(config.editor)
    if editor.family is not None and config.edit:
        for name in config.edit:
            ChosenEdit(editor, _within(name, 0.0))  # a range must have been learned from its start
        return [ChosenEdit(editor, _within(name, 1.0)) for name in config.edit]
    _check_chosen(config.editor, editor)
    learned, expected = editor.config.edit, [_named(name) for name in config.edit]
    if expected not in ([], [learned]):
        raise ValueError(
            f"the editor {config.editor} has learned {learned!r}, expected {', '.join(expected)!r}; give "
            f"--edit {shlex.quote(learned)}, or another editor (several: --edit FILE --edit FILE, without --editor)"
        )
    return [editor]


def _shipped(name: str) -> Editor:
    """The pretrained editor of a name, with a warning where an edit alone means one of digits."""
    found = pretrained_path(_named(name)).stem
    if found.startswith("mnist-") and not name.startswith("mnist-"):
        print(
            f"warning: no pretrained editor has learned {name!r} on colour pictures; {found} has seen gray digits "
            "only, and other pictures may come out badly: train one with scripts/train_editor.py --no-gray --size 32",
            file=sys.stderr,
        )
    return Editor.pretrained(found)


def _check_chosen(name: str | Path, editor: Editor) -> None:
    """Refuse an editor of several edits of which none is chosen."""
    if editor.family is not None:
        raise ValueError(
            f"the editor {name} has learned several edits, {editor.family}; say which to make, as in --editor {name} "
            f"--edit {shlex.quote(str(editor.family.examples[-1]))}"
        )


def _within(name: str, fraction: float) -> str:
    """An edit with the least (0) to the greatest (1) values of its ranges, if it has any."""
    if RANGE not in name:
        return name
    varied = VariedEdit.read(name)
    return str(varied.at([fraction] * len(varied.ranges)))


def _named(name: str) -> str:
    """An edit as editors are named by it, with its parameters in full."""
    return str(find_edit(name) or name)


def output_paths(config: EditInrConfig) -> list[dict[str, Path]]:
    """For each picture the files to write, by the name of the option, checked."""
    if not config.images:
        raise ValueError("there is no picture to edit; give the names of one or more")
    paths = [
        {name: _output_path(config, name, image) for name in OUTPUTS if getattr(config, name) is not None}
        for image in config.images
    ]
    seen: set[Path] = {image.resolve() for image in config.images}
    for path in (path for group in paths for path in group.values()):
        if path.resolve() in seen:
            raise ValueError(
                f"{path} would be written twice, or over a picture that is read; give another folder, or other names"
            )
        seen.add(path.resolve())
    return paths


def _output_path(config: EditInrConfig, name: str, image: Path) -> Path:
    """The file of one option for one picture."""
    given, suffix, option = Path(getattr(config, name)), OUTPUTS[name], name.replace("_", "-")
    fits = is_picture(given) if name == "out" else given.suffix.lower() == suffix
    if len(config.images) > 1 or given.is_dir():
        if fits and not given.is_dir():
            raise ValueError(f"{option} is {given}, expected a folder for {len(config.images)} pictures")
        return given / f"{image.stem}{suffix}"
    if not fits:
        what = "a picture; let it end in .png or .jpg" if name == "out" else f"a file that ends in {suffix}"
        raise ValueError(f"{option} is {given}, expected the name of {what}")
    return given


def read_input(image: Path, config: EditInrConfig) -> TiledPicture | Tensor:
    """A picture of pixels or of INRs; what is left out of it is said in a warning."""
    if image.suffix.lower() == INRS:
        return TiledPicture.load(image)
    height, width = picture_size(image)
    if height * width > config.max_pixels:
        raise ValueError(
            f"{image} has {width} x {height} pixels, more than --max-pixels {config.max_pixels}: it would take about "
            f"{math.ceil(height * width / 2000)} s of one core; shrink it, or raise --max-pixels"
        )
    for note in picture_notes(image):
        print(f"warning: {image}: {note}", file=sys.stderr)
    return read_image(image)


def rendered_size(config: EditInrConfig, image: Path, shape: Sequence[int]) -> tuple[int, int] | None:
    """(height, width) to render a picture of shape (H, W, C) at; None for its own."""
    height, width = shape[:2]
    if config.render_size is None:
        return None if config.scale == 1.0 else (round(height * config.scale), round(width * config.scale))
    if config.render_size[0] < width or config.render_size[1] < height:
        given = " ".join(map(str, config.render_size))
        raise ValueError(
            f"--render-size is {given}, expected at least {width} {height}, width and height of {image}: fewer samples "
            "would skip details; shrink the written picture instead"
        )
    return config.render_size[1], config.render_size[0]


def edit_inr(image: Path, outputs: dict[str, Path], config: EditInrConfig, editors: Sequence[OneEdit]) -> str:
    """Edit one picture and write everything about it; what was done, in one paragraph."""
    source = read_input(image, config)
    size = rendered_size(config, image, source.shape)
    started = time.perf_counter()
    done = edit_picture(
        source,
        editors,
        strength=config.strength,
        overlap=config.overlap,
        seed=config.seed,
        progress=True,
    )
    picture = done.edited if size is None else done.after.render(size)
    seconds = time.perf_counter() - started
    write_image(outputs["out"], picture)
    if "save_inr" in outputs:
        done.after.save(outputs["save_inr"])
    if "gif" in outputs:
        steps = [number / (GIF_FRAMES - 1) for number in range(GIF_FRAMES)]
        first = editors[0]
        if isinstance(first, ChosenEdit) and any(RANGE in name for name in config.edit):
            sweep = parameter_sweep(done.before, first.editor, config.edit, steps, config.strength)
        else:
            sweep = strength_sweep(done.before, editors, steps)
        write_animation(outputs["gif"], [each.render(size) for each in sweep])
    if "report" in outputs:
        write_report(outputs["report"], done, editors, name=image.name, seconds=seconds, size=size)
    written = "\n".join(f"written: {path}" for path in outputs.values())
    edits = ", then ".join(editor.config.edit for editor in editors)
    return f"{describe(image, done, edits, seconds)}\n{written}"


def describe(image: Path, done: PictureEdit, edits: str, seconds: float) -> str:
    """What was done, in one or two lines."""
    height, width, channels = done.original.shape
    quality = "" if math.isnan(done.psnr) else f" at {done.psnr:.1f} dB"
    text = (
        f"{image} ({width} x {height}, {'gray' if channels == 1 else 'colour'}): {done.tiles} "
        f"INR{'s' if done.tiles > 1 else ''}{quality}, edited and rendered in {seconds:.0f} s"
    )
    if done.strength == 1.0 and done.error is not None:
        text += (
            f"\nmean squared error to the exact {edits}: {done.error:.5f} (without edit {done.no_edit_error:.5f}), "
            "values in [0, 1]"
        )
        if done.no_edit_error is not None and done.error > done.no_edit_error:
            text += "; the edit made it worse: this editor does not suit this picture"
    return text


def check_options(config: EditInrConfig) -> None:
    """Refuse sizes out of range before anything is fitted."""
    if not 1.0 <= config.scale <= 64.0:
        raise ValueError(f"scale is {config.scale}, expected 1 to 64; shrink the written picture instead")
    if config.render_size is not None and config.scale != 1.0:
        raise ValueError("give --scale or --render-size, not both")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    description = f"{__doc__}\nPretrained editors: {', '.join(pretrained_editors()) or 'none'}."
    config = tyro.cli(EditInrConfig, args=arguments, prog="edit_inr.py", description=description)
    failed = False
    try:
        check_options(config)
        paths, editors = output_paths(config), load_editors(config)
        for image, outputs in zip(config.images, paths, strict=True):
            try:
                print(edit_inr(image, outputs, config, editors))
            except (OSError, ValueError, TypeError) as error:
                failed = True  # the other pictures are edited all the same
                print(f"error: {error}", file=sys.stderr)
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; every file is written whole or not at all", file=sys.stderr)
        return 130
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
