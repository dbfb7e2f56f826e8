"""Learned edits of INRs beside those of the ``nfn`` package, on the same INRs.

python -m benchmarks.inr_editing [--edit dilate|contrast] [--images FILE] [--quick | --full] --out FOLDER

One SIREN is fitted to each image, from initial weights of its own. The error is the mean square between rendered edited
INR and edited image, values in [-1, 1] as in arXiv:2302.14040 and arXiv:2305.13546 (four times that of [0, 1]), on INRs
of held-out images. The reference is the NP editor of the ``nfn`` package as its authors set it up for this task:
Fourier features of 128 frequencies at scale 3, sinusoidal position encoding, three hidden layers of 128, Adam at 1e-3
after a linear warm-up of 1,000 steps, batches of 32. The default editor is trained twice, for as many steps and for
as many seconds as the reference, each in turn on the machine; the other bodies for as many steps. Seconds
are those of training steps. Editors that read weights only are reported apart from those that render the INR (no
editor sees the edited image). Refit goes on optimising each INR on the edited image itself.

Comparison and ablation can be run one by one: ``--body-seeds 0`` leaves out the bodies, ``--seeds 0`` the reference.
Fitted INRs and finished trainings stay in the folder: the same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inr_editing_bodies import DEFAULT, Params, Reference, bodies
from benchmarks.inr_editing_records import Records, Trained
from benchmarks.inr_editing_report import draw, table
from editors import (
    Editor,
    EditorConfig,
    FitOptions,
    InrSet,
    TrainEditorConfig,
    coordinates,
    draw_rows,
    editing_error,
    fit,
    get_edit,
    no_edit_error,
    siren_apply,
    train_editor,
)
from editors.stacked import fit_chunk
from nfn_opt.data import load_images
from nfn_opt.meta.run_folder import environment, write_json

PARTS = ("train", "validation", "test")
SOURCES = {"dilate": "mnist_784", "contrast": "CIFAR_10"}
"""Where the images of an edit come from, if no file is given."""

REFITS = (1, 2, 5, 10, 20, 50, 100)
CHUNK = 100
"""INRs that are edited, rendered or refitted at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Sizes.

    Attributes:
        counts: INRs for training, for choosing the weights that are kept, and for the error.
        steps: Training steps.
        batch_size: INRs a step.
        seeds: Trainings of the reference, and of the default for as many steps.
        timed_seeds: Trainings of the default for as many seconds, at most `seeds`.
        body_seeds: Trainings of each body.
        warmup_seeds: Trainings of the reference with a tenth of its warm-up.
        warmup: Steps of the reference's warm-up.
    """

    counts: tuple[int, int, int] = (5000, 500, 1000)
    steps: int = 1000
    batch_size: int = 32
    seeds: int = 3
    timed_seeds: int = 3
    body_seeds: int = 1
    warmup_seeds: int = 1
    warmup: int = 1000

    def conditions(self) -> dict[str, Any]:
        """What every training depends on: all but how many there are."""
        return {name: value for name, value in dataclasses.asdict(self).items() if not name.endswith("seeds")}


QUICK = Protocol(counts=(200, 50, 50), steps=20, seeds=1, timed_seeds=1, warmup=20)
FULL = Protocol(counts=(45_000, 5_000, 10_000), steps=50_000)


@dataclasses.dataclass(frozen=True)
class Problem:
    """INRs and the images that they are to become, by part."""

    inrs: Mapping[str, InrSet]
    targets: Mapping[str, Tensor]

    def images(self, part: str) -> Tensor:
        """The edited images, values in [0, 1], shape (B, H, W, C)."""
        return ((self.targets[part] + 1) / 2).unflatten(1, self.inrs[part].image_size)

    def error(self, edit: Callable[[Params], Params], part: str = "test") -> float:
        """Mean squared error of an edit of weights, values in [-1, 1]."""
        inrs, wanted, total = self.inrs[part], self.targets[part], 0.0
        with torch.no_grad():
            for start in range(0, len(inrs), CHUNK):
                some = inrs[slice(start, start + CHUNK)]
                found = render(inrs, edit(some.params))
                total += (found - wanted[start : start + CHUNK]).square().mean().item() * len(some)
        return total / len(inrs)


def render(inrs: InrSet, params: Params) -> Tensor:
    """Values in [-1, 1], not clamped, ``(B, P, C)``."""
    return siren_apply(params, coordinates(*inrs.image_size), inrs.config)


def make_problem(edit: str, images: str, counts: Sequence[int], folder: Path) -> Problem:
    """Fit the INRs, or read those that were fitted before."""
    data = load_images(images)
    if edit == "dilate":
        data = data.gray()
    if len(data) < sum(counts):
        raise ValueError(
            f"{images} has {len(data)} images, expected {sum(counts)} or more; give another file"
        )
    parts = data.split(dict(zip(PARTS, counts, strict=True)), seed=0)
    inrs, targets = {}, {}
    for seed, (part, some) in enumerate(parts.items()):
        path = folder / f"inrs_{edit}_{part}_{len(some)}.safetensors"
        if not path.is_file():
            fit(some, seed=seed, progress=True).save(path)
        inrs[part] = InrSet.load(path)
        targets[part] = (2 * get_edit(edit)(some.images) - 1).flatten(1, 2)
    return Problem(inrs, targets)


def train_ours(
    make: Callable[[torch.Generator], Editor], problem: Problem, seed: int, config: TrainEditorConfig
) -> tuple[Trained, Editor]:
    """Train an editor as users do; the seconds are without validations."""
    editor = make(torch.Generator().manual_seed(seed))
    history = train_editor(editor, problem.inrs["train"], problem.images("train"), config=config)
    found = editing_error(editor, problem.inrs["test"], problem.images("test"))
    return Trained(found, history[-1]["seconds"], config.steps, count(editor)), editor


def train_reference(problem: Problem, seed: int, protocol: Protocol) -> Trained:
    """Train the reference as its authors do."""
    torch.manual_seed(seed)
    inrs, wanted = problem.inrs["train"], problem.targets["train"]
    editor = Reference(inrs)
    optimizer = torch.optim.Adam(editor.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(protocol.steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / protocol.warmup)
        index = torch.randint(len(inrs), (protocol.batch_size,), generator=order)
        edited = editor.edit_params({name: value[index] for name, value in inrs.params.items()})
        loss = (render(inrs, edited) - wanted[index]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    return Trained(problem.error(editor.edit_params), seconds, protocol.steps, count(editor))


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def refits(problem: Problem, lr: float = 4e-3) -> dict[int, tuple[float, float]]:
    """Error and milliseconds for each INR after so many steps of Adam on the edited images themselves."""
    inrs, wanted, found = problem.inrs["test"], problem.targets["test"], {}
    coords = coordinates(*inrs.image_size)
    for steps in REFITS:
        total, seconds = 0.0, 0.0
        for start in range(0, len(inrs), CHUNK):
            # In the order of the layers, which files do not keep.
            params = {
                name: inrs.params[name][start : start + CHUNK].clone()
                for name in inrs.config.parameter_shapes
            }
            targets = wanted[start : start + CHUNK].mT.contiguous()
            begin = time.perf_counter()
            fit_chunk(params, targets, coords, inrs.config, FitOptions(steps=steps, lr=lr))
            seconds += time.perf_counter() - begin
            total += (render(inrs, params) - targets.mT).square().mean().item() * len(targets)
        found[steps] = total / len(inrs), 1e3 * seconds / len(inrs)
    return found


def milliseconds(editor: Editor, problem: Problem, repeats: int = 5) -> float:
    """Median time of one edit in batches, rendering included, as a refit's; for each INR."""
    inrs, times = problem.inrs["test"][:CHUNK], []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            render(inrs, editor.edit_params(inrs.params))
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:]) / len(inrs)


def recipe(protocol: Protocol, steps: int, seed: int) -> TrainEditorConfig:
    """How editors of this package are trained."""
    return TrainEditorConfig(steps=steps, batch_size=protocol.batch_size, seed=seed, validate_every=steps)


def compare(problem: Problem, config: EditorConfig, protocol: Protocol, records: Records, path: Path) -> None:
    """Train the reference and the default editor in turn; the default editor of the last training is saved."""
    default = bodies(config)[DEFAULT]

    def trained(name: str, seed: int, steps: int) -> Trained:
        def make() -> Trained:
            one, editor = train_ours(default, problem, seed, recipe(protocol, steps, seed))
            editor.save(path)
            return one

        return records.once(name, seed, make)

    def reference(name: str, seed: int, of: Protocol) -> Trained:
        return records.once(name, seed, lambda: train_reference(problem, seed, of))

    for seed in range(protocol.seeds):
        theirs = reference("nfn NP", seed, protocol)
        same = trained("default, same steps", seed, protocol.steps)
        if seed < protocol.timed_seeds:
            steps = max(1, int(protocol.steps * theirs.seconds / same.seconds))
            trained("default, same seconds", seed, steps)
    quicker = dataclasses.replace(protocol, warmup=protocol.warmup // 10)
    for seed in range(protocol.warmup_seeds):
        reference(f"nfn NP, warm-up of {quicker.warmup} steps", seed, quicker)


def ablate(problem: Problem, config: EditorConfig, protocol: Protocol, records: Records, path: Path) -> None:
    """Train each of the bodies; the default is saved, if none is there."""
    for name, body in bodies(config).items():
        for seed in range(protocol.body_seeds):

            def make(name: str = name, body: Any = body, seed: int = seed) -> Trained:
                one, editor = train_ours(body, problem, seed, recipe(protocol, protocol.steps, seed))
                if name == DEFAULT and not path.exists():
                    editor.save(path)
                return one

            records.once(name, seed, make)


def run(options: argparse.Namespace, protocol: Protocol) -> None:
    """Train all and write table, pictures and numbers."""
    if not protocol.seeds and not protocol.body_seeds:
        raise ValueError("seeds and body_seeds are 0, expected one of them to be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    source = options.images or SOURCES[options.edit]
    problem = make_problem(options.edit, source, protocol.counts, options.out)
    test = problem.inrs["test"]
    no_edit = no_edit_error(test, problem.images("test"))
    conditions = {"edit": options.edit, "images": str(source), **protocol.conditions()}
    records = Records(options.out / "trainings.json", conditions, no_edit)
    config = EditorConfig(siren=test.config, edit=options.edit, image_size=test.image_size)
    path = options.out / "editor.safetensors"
    compare(problem, config, protocol, records, path)
    ablate(problem, config, protocol, records, path)
    write(options, protocol, problem, records, Editor.load(path))


def write(
    options: argparse.Namespace, protocol: Protocol, problem: Problem, records: Records, editor: Editor
) -> None:
    """Measure what is quickly measured, and write it with all that was trained."""
    test, no_edit, found = problem.inrs["test"], records.no_edit, records.found
    refitted, edit_ms = refits(problem), milliseconds(editor, problem)
    lines = [
        table(found, no_edit),
        f"One edit takes {edit_ms:.2f} ms in batches of {CHUNK}.\n",
        "| refit steps | ms for one INR | held-out error |",
        "|---|---|---|",
    ]
    lines += [f"| {steps} | {ms:.2f} | {error:.5f} |" for steps, (error, ms) in refitted.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    (options.out / "inr_editing.md").write_text(text)
    draw(options.out / "inr_editing.png", found, refitted, no_edit, edit_ms)
    some, (height, width) = test[:10], test.image_size
    rows = {
        "INR": some.render(),
        "exact edit": problem.images("test")[:10],
        "learned edit": editor(some).render(),
        "4x pixels": editor(some).render((4 * height, 4 * width)),
    }
    draw_rows(options.out / "examples.png", rows, f"{options.edit} of held-out INRs, default editor")
    write_json(
        options.out / "result.json",
        {
            "config": {"edit": options.edit, "images": options.images, **dataclasses.asdict(protocol)},
            "environment": environment(),
            "no_edit": no_edit,
            "psnr_db": test.psnr.mean().item(),
            "editors": {name: [dataclasses.asdict(one) for one in some] for name, some in found.items()},
            "refit": {str(steps): {"error": error, "ms": ms} for steps, (error, ms) in refitted.items()},
            "edit_ms": edit_ms,
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edit", choices=sorted(SOURCES), default="dilate")
    parser.add_argument("--images", help="file of images; downloaded from OpenML if not given")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few INRs and steps: whether it runs")
    size.add_argument("--full", action="store_true", help="the papers' protocol: 60,000 INRs, 50,000 steps")
    parser.add_argument("--steps", type=int, help="training steps, in place of the protocol's")
    parser.add_argument("--seeds", type=int, help="trainings of reference and default, likewise")
    parser.add_argument("--timed-seeds", type=int, help="trainings for as many seconds, likewise")
    parser.add_argument("--body-seeds", type=int, help="trainings of each body, likewise")
    parser.add_argument("--warmup-seeds", type=int, help="trainings with a quicker warm-up, likewise")
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/inr_editing"), help="folder to write to")
    options = parser.parse_args(arguments)
    protocol = QUICK if options.quick else FULL if options.full else Protocol()
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("steps", "seeds", "timed_seeds", "body_seeds", "warmup_seeds")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    run(options, dataclasses.replace(protocol, **given))


if __name__ == "__main__":
    main()
