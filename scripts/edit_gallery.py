#!/usr/bin/env python
"""Write the page of the named image edits: docs/edits.md, and docs/edits.png with each edit applied to a few images.

Example:
    python scripts/edit_gallery.py
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from editors import EDITS, Edit
from editors.named_edit import write_value
from nfn_opt.artifacts import atomic_write
from nfn_opt.data import load_images
from nfn_opt.data.images import resize_images

SIZE = 64
"""Height and width of the photographs, in pixels; a digit of 16 x 16 is drawn four times as large."""

COLUMNS = 4
"""Edits in a line of the picture."""

PAGE = """# Edits of images

The named edits, as `editors.get_edit` finds them. All keep the shape of the images, (B, H, W, C) with values in [0, 1].
A text stands for an edit with its parameters, in Python, on command lines and in the files of editors:

```python
from editors import get_edit

edited = get_edit("blur(sigma=2)")(images)  # as get_edit("blur", sigma=2)
get_edit("rotate(angle=-10)").inverse  # rotate(angle=10)
```

```bash
python scripts/train_editor.py --edit "blur(sigma=2)" --images photos --out runs/blur2
```

A name alone has the defaults, as in the picture: a digit of 16 x 16 pixels and two photographs of 64 x 64.

![Each edit applied to a digit and two photographs](edits.png)

| edit | what it does | parameters and their defaults | local | undone by |
|---|---|---|---|---|
{rows}

*Local* edits depend only on pixels near by, as near as the parameters say, so that a picture of any size can be edited
tile by tile. What undoes an edit is the same edit with other parameters, up to rounding. Channels are edited one by
one, except in `contrast`, which edits the lightness, and in edits for *colour only*, which refuse gray images (in the
picture, they are given the digit as a colour image).

`get_edit` also takes any function from images to images, and `Edit` any such function with parameters.

This page and the picture are written by `python scripts/edit_gallery.py`. The digit and the photographs (CC BY 2.0, by
the flickr users danielbuechele and vultilion) come with scikit-learn.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditGalleryConfig:
    """What to write.

    Attributes:
        out: Folder of the page and the picture.
    """

    out: Path = Path(__file__).parents[1] / "docs"


def describe_edits() -> str:
    """The page, in Markdown."""
    return PAGE.format(rows="\n".join(map(_row, EDITS.values())))


def _row(edit: Edit) -> str:
    """An edit's line in the table."""
    parameters = [
        f"`{parameter.name}={write_value(parameter.default)}`: {parameter.doc}; {parameter.expected}"
        for parameter in edit.parameters
    ]
    doc = f"{edit.doc}; colour only" if edit.color_only else edit.doc
    undone_by = edit.undone_by.doc if edit.undone_by else ""
    cells = (f"`{edit.name}`", doc, "<br>".join(parameters), "yes" if edit.local else "no", undone_by)
    return "| " + " | ".join(cells) + " |"


def draw_gallery(path: Path) -> None:
    """Draw each edit, with its defaults, of a digit and two photographs."""
    images = _images()
    panels = {"no edit": _strip(images)} | {
        name: _strip([edit(_fitting(image, edit)) for image in images]) for name, edit in EDITS.items()
    }
    lines = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(2.3 * COLUMNS, 1.0 * lines), layout="constrained")
    axes = figure.subplots(lines, COLUMNS).flatten()
    for ax in axes:
        ax.axis("off")
    for ax, (name, strip) in zip(axes, panels.items(), strict=False):
        ax.imshow(strip.numpy(), interpolation="nearest")
        ax.set_title(name, fontsize=10, pad=3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _images() -> list[Tensor]:
    """A digit (1, 16, 16, 1) and two photographs (1, SIZE, SIZE, 3)."""
    from sklearn.datasets import load_sample_images

    tower, flower = (torch.tensor(photo)[None] / 255 for photo in load_sample_images().images)
    return [
        load_images("digits", size=16).images[13:14],
        resize_images(tower[:, 20:404, 20:404], (SIZE, SIZE)),
        resize_images(flower[:, 60:380, 150:470], (SIZE, SIZE)),
    ]


def _fitting(image: Tensor, edit: Edit) -> Tensor:
    """The image, coloured if the edit needs it."""
    return image.expand(-1, -1, -1, 3) if edit.color_only else image


def _strip(images: Sequence[Tensor]) -> Tensor:
    """Images (1, h, w, C) side by side at one size, with gray frames and white between them: (SIZE + 2, W, 3)."""
    squares = [image[0].repeat_interleave(SIZE // image.shape[1], 0) for image in images]
    squares = [square.repeat_interleave(SIZE // square.shape[1], 1).expand(-1, -1, 3) for square in squares]
    framed = [F.pad(square, (0, 0, 1, 1, 1, 1), value=0.7) for square in squares]
    return torch.cat([F.pad(square, (0, 0, 2, 2), value=1.0) for square in framed], 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    config = tyro.cli(EditGalleryConfig, args=arguments, prog="edit_gallery.py", description=__doc__)
    try:
        draw_gallery(config.out / "edits.png")
        with atomic_write(config.out / "edits.md") as temporary:
            temporary.write_text(describe_edits(), encoding="utf-8")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {config.out / 'edits.md'}, {config.out / 'edits.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
