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
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.inr_editing_bodies import DEFAULT, Params, Reference, bodies
from benchmarks.inr_editing_report import Trained, draw, table
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
        warmup: Steps of the reference's warm-up.
    """

    counts: tuple[int, int, int] = (5000, 500, 1000)
    steps: int = 1000
    batch_size: int = 32
    seeds: int = 3
    timed_seeds: int = 3
    body_seeds: int = 1
    warmup: int = 1000


QUICK = Protocol(counts=(200, 50, 50), steps=20, seeds=1, timed_seeds=1, warmup=20)
FULL = Protocol(counts=(45_000, 5_000, 10_000), steps=50_000)


@dataclasses.dataclass(frozen=True)
class Problem:
    """INRs and the images that they are to become, by part."""

    inrs: Mapping[str, InrSet]
    targets: Mapping[str, Tensor]

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
    editor, shape = make(torch.Generator().manual_seed(seed)), problem.inrs["train"].image_size
    images = ((problem.targets["train"] + 1) / 2).unflatten(1, shape)
    history = train_editor(editor, problem.inrs["train"], images, config=config)
    wanted = ((problem.targets["test"] + 1) / 2).unflatten(1, shape)
    found = editing_error(editor, problem.inrs["test"], wanted)
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


def compare(
    problem: Problem, config: EditorConfig, protocol: Protocol, report: Callable[[str, Trained], None]
) -> Editor | None:
    """Train the reference and the default editor in turn; the default editor trained last."""
    editor, default = None, bodies(config)[DEFAULT]
    for seed in range(protocol.seeds):
        reference = train_reference(problem, seed, protocol)
        report("nfn NP", reference)
        same, editor = train_ours(default, problem, seed, recipe(protocol, protocol.steps, seed))
        report("default, same steps", same)
        if seed < protocol.timed_seeds:
            steps = max(1, int(protocol.steps * reference.seconds / same.seconds))
            longer, editor = train_ours(default, problem, seed, recipe(protocol, steps, seed))
            report("default, same seconds", longer)
    if protocol.seeds:
        quicker = dataclasses.replace(protocol, warmup=protocol.warmup // 10)
        report(f"nfn NP, warm-up of {quicker.warmup} steps", train_reference(problem, 0, quicker))
    return editor


def run(options: argparse.Namespace, protocol: Protocol) -> None:
    """Train all and write table, pictures and numbers."""
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    problem = make_problem(
        options.edit, options.images or SOURCES[options.edit], protocol.counts, options.out
    )
    test, shape = problem.inrs["test"], problem.inrs["test"].image_size
    images = ((problem.targets["test"] + 1) / 2).unflatten(1, shape)
    no_edit = no_edit_error(test, images)
    config = EditorConfig(siren=test.config, edit=options.edit, image_size=shape)

    found: dict[str, list[Trained]] = {}

    def report(name: str, one: Trained) -> None:
        found.setdefault(name, []).append(one)
        print(
            f"{name}: error {one.error:.4f}, {one.error / no_edit:.3f} of no edit, {one.steps} steps in "
            f"{one.seconds:.0f} s",
            flush=True,
        )

    editor = compare(problem, config, protocol, report)
    for name, make in bodies(config).items():
        for seed in range(protocol.body_seeds):
            one, trained = train_ours(make, problem, seed, recipe(protocol, protocol.steps, seed))
            report(name, one)
            editor = editor or trained  # the first body is the default
    if editor is None:
        raise ValueError("seeds and body_seeds are 0, expected one of them to be at least 1")
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
    editor.save(options.out / "editor.safetensors")
    draw(options.out / "inr_editing.png", found, refitted, no_edit, edit_ms)
    some = test[:10]
    rows = {
        "INR": some.render(),
        "exact edit": images[:10],
        "learned edit": editor(some).render(),
        "4x pixels": editor(some).render((4 * shape[0], 4 * shape[1])),
    }
    draw_rows(options.out / "examples.png", rows, f"{options.edit} of held-out INRs, default editor")
    write_json(
        options.out / "result.json",
        {
            "config": {"edit": options.edit, "images": options.images, **dataclasses.asdict(protocol)},
            "environment": environment(),
            "seconds": time.perf_counter() - started,
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
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/inr_editing"), help="folder to write to")
    options = parser.parse_args(arguments)
    protocol = QUICK if options.quick else FULL if options.full else Protocol()
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("steps", "seeds", "timed_seeds", "body_seeds")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    run(options, dataclasses.replace(protocol, **given))


if __name__ == "__main__":
    main()
