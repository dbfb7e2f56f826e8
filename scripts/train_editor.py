#!/usr/bin/env python
"""Train an editor of INR weights.

Example:
    python scripts/train_editor.py --edit dilate --images photos --out runs/dilate.safetensors
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro

from editors import (
    Editor,
    EditorConfig,
    TrainEditorConfig,
    editing_error,
    fit,
    get_edit,
    no_edit_error,
    train_editor,
)
from nfn_opt.data import ImageData, load_images, load_photo_patches
from nfn_opt.meta.run_folder import environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainEditorRun:
    """A training run.

    Attributes:
        out: File of the editor to write; refused if it exists.
        edit: The image edit, such as dilate or blur(sigma=2); docs/edits.md lists them.
        images: "photos" (patches of the photographs that ship with scikit-learn), or any source of
            nfn_opt.data.load_images, turned gray.
        size: Height and width of the images, in pixels.
        inrs: INRs to train on; as many as there are images if those are fewer.
        held_out: INRs for choosing the best weights, and as many again for the reported error.
        training: Steps, batch size and learning rate.
        seed: Seed of the images, INRs and initial weights.
        threads: CPU threads; PyTorch's choice if not given.
    """

    out: Path
    edit: str = "dilate"
    images: str = "photos"
    size: int = 16
    inrs: int = 4000
    held_out: int = 250
    training: TrainEditorConfig = dataclasses.field(default_factory=lambda: TrainEditorConfig(steps=2000))
    seed: int = 0
    threads: int | None = None


def load(run: TrainEditorRun) -> dict[str, ImageData]:
    """Disjoint gray images for training, validation and the reported error."""
    if run.images == "photos":
        data = load_photo_patches(run.inrs + 2 * run.held_out, run.size, seed=run.seed)
    else:
        data = load_images(run.images, size=run.size, gray=True)
    if len(data) <= 2 * run.held_out:
        raise ValueError(
            f"{run.images} has {len(data)} images, expected more than 2 * held_out = {2 * run.held_out}"
        )
    sizes = {
        "validation": run.held_out,
        "test": run.held_out,
        "train": min(run.inrs, len(data) - 2 * run.held_out),
    }
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(run.seed))[
        : sum(sizes.values())
    ]
    return {
        part: data.subset(index) for part, index in zip(sizes, order.split(list(sizes.values())), strict=True)
    }


def train(run: TrainEditorRun, command: str) -> str:
    """Fit, train, measure and save; what was done."""
    if run.out.exists():
        raise FileExistsError(f"{run.out} exists, expected a new file; give another name")
    if run.inrs < 1 or run.held_out < 1:
        raise ValueError(f"inrs is {run.inrs} and held_out {run.held_out}, expected at least 1 each")
    started = time.perf_counter()
    edit, parts = get_edit(run.edit), load(run)
    targets = {part: edit(images.images) for part, images in parts.items()}
    sets = {
        part: fit(images, seed=run.seed + i, progress=True) for i, (part, images) in enumerate(parts.items())
    }
    inrs = sets["train"]
    config = EditorConfig(siren=inrs.config, edit=run.edit, image_size=inrs.image_size)
    editor = Editor(config, generator=torch.Generator().manual_seed(run.seed))
    validation = (sets["validation"], targets["validation"])
    history = train_editor(
        editor, inrs, targets["train"], config=run.training, validation=validation, progress=True
    )
    scores = {
        "error": editing_error(editor, sets["test"], targets["test"]),
        "no_edit_error": no_edit_error(sets["test"], targets["test"]),
        "inr_psnr_db": sets["test"].psnr.mean().item(),
    }
    editor.save(
        run.out,
        {
            "command": command,
            "data": parts["train"].source,
            "inrs": len(inrs),
            "training": dataclasses.asdict(run.training),
            "scores": scores,
            "history": history,
            "wall_time_s": round(time.perf_counter() - started, 1),
            "environment": environment(),
        },
    )
    return (
        f"held-out error {scores['error']:.4f}, without edit {scores['no_edit_error']:.4f} (mean squared, values in "
        f"[-1, 1], {run.held_out} images)\nwritten: {run.out}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    run = tyro.cli(TrainEditorRun, args=words, prog="train_editor.py", description=__doc__)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    try:
        print(train(run, shlex.join(["python", "scripts/train_editor.py", *words])))
    except (OSError, ValueError, TypeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
