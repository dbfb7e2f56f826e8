#!/usr/bin/env python
"""The main job on real images: find a symmetry, meta-train an optimizer and use it, train an INR editor and use it.

Example:
    ./scripts/quickstart
    ./scripts/quickstart --images my_images.npz --out runs/mine
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from editors import (
    Editor,
    EditorConfig,
    InrSet,
    TrainEditorConfig,
    draw_rows,
    editing_error,
    fit,
    get_edit,
    no_edit_error,
    train_editor,
)
from nfn_opt import LearnedOptimizer, WeightSpace
from nfn_opt.artifacts import atomic_write
from nfn_opt.data import ImageData, load_images
from nfn_opt.meta import (
    ADAM_LEARNING_RATES,
    InnerConfig,
    MetaTrainConfig,
    OuterConfig,
    TaskConfig,
    meta_train,
)
from nfn_opt.meta.run import split_images
from nfn_opt.meta.run_folder import RunFolder, environment, write_json
from nfn_opt.optim import UpdateRule, make_rule

DEFAULT_OUT = Path("runs/quickstart")

TRUNCATION = 10
"""Updates of the classifier between two outer steps of the meta-training, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The main job.

    Attributes:
        out: Folder that everything is written to; by default a new one, runs/quickstart or runs/quickstart-2 ...
        images: "digits", an .npz file with images and labels, a folder with one sub-folder a class, or a name
            that scikit-learn's fetch_openml downloads: mnist_784, Fashion-MNIST, CIFAR_10.
        edit: The image edit that the INR editor learns.
        rule: Kind of update rule that is meta-trained: "nfn" or "mlp".
        hidden: Hidden neurons of the classifier.
        batch_size: Images in a minibatch of the classifier's training.
        inner_steps: Updates of one classifier training: up to 10, or a multiple of 10.
        meta_steps: Outer steps of the meta-training.
        classifier_seeds: Number of seeds of the comparison with Adam.
        inrs: INRs that the editor is trained on.
        editor_steps: Steps of the editor's training.
        seed: Seed of everything else.
        threads: CPU threads. One is fastest for tensors as small as those of the meta-training.
    """

    out: Path | None = None
    images: str = "digits"
    edit: str = "dilate"
    rule: str = "nfn"
    hidden: int = 32
    batch_size: int = 128
    inner_steps: int = 100
    meta_steps: int = 300
    classifier_seeds: int = 5
    inrs: int = 1297
    editor_steps: int = 200
    seed: int = 0
    threads: int = 1

    def record(self) -> dict[str, Any]:
        """All options as JSON values."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}


def check(config: QuickstartConfig, data: ImageData) -> None:
    """Refuse what a later part could not work with, before anything is written.

    Raises:
        ValueError: Naming the option.
    """
    for name in (
        "hidden",
        "batch_size",
        "inner_steps",
        "meta_steps",
        "threads",
        "classifier_seeds",
        "inrs",
        "editor_steps",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, expected at least 1")
    if config.inner_steps > TRUNCATION and config.inner_steps % TRUNCATION:
        raise ValueError(
            f"inner_steps is {config.inner_steps}, expected up to {TRUNCATION} or a multiple of it"
        )
    height, width = data.images.shape[1:3]
    if len(data) < 10 or min(height, width) < 2:
        raise ValueError(
            f"{config.images} has {len(data)} images of {height} x {width} pixels, expected at least 10 of at least "
            "2 x 2; give another set"
        )
    get_edit(config.edit)(data.images[:1])
    make_rule(config.rule)


# (a) Symmetry


def find_symmetry(folder: Path, data: ImageData, seed: int) -> dict[str, float]:
    """Print the weight space of a small CNN, and how much permuting its neurons changes its outputs."""
    channels = data.images.shape[-1]
    with torch.random.fork_rng(devices=[]):  # torch's layers draw their initial weights from the global state
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, len(data.class_names)),
        )
    pictures = data.images[:16].permute(0, 3, 1, 2)
    space = WeightSpace.from_module(model, pictures)
    change = space.verify(model, pictures, generator=torch.Generator().manual_seed(seed))
    text = (
        f"{space}\nlargest relative change of an output under random permutations, in float64: {change:.1e}\n"
    )
    print(text)
    with atomic_write(folder / "symmetry.txt") as path:
        path.write_text(f"{model}\n\n{text}")
    return {"symmetry/output_change": change}


# (b) Learned optimizer


@dataclasses.dataclass
class Training:
    """One training of the classifier: minibatch losses, final training loss (nats), accuracy on unseen images."""

    losses: list[float]
    final: float
    accuracy: float


def train_classifier(
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    train: ImageData,
    test: ImageData,
    config: QuickstartConfig,
    seed: int,
) -> Training:
    """An ordinary training script; only the optimizer differs between calls of one seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    inputs, classes = train.images.flatten(1), len(train.class_names)
    layers = nn.Linear(inputs.shape[1], config.hidden), nn.Linear(config.hidden, classes)
    with torch.no_grad():
        for layer in layers:
            bound = layer.in_features**-0.5
            for tensor in (layer.weight, layer.bias):
                tensor.uniform_(-bound, bound, generator=generator)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    optimizer = make_optimizer(model)
    losses = []
    for _ in range(config.inner_steps):
        index = torch.randint(len(train), (config.batch_size,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[index]), train.labels[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        final = nn.functional.cross_entropy(model(inputs), train.labels).item()
        accuracy = (model(test.images.flatten(1)).argmax(1) == test.labels).float().mean().item()
    return Training(losses, final, accuracy)


def classifier_task(config: QuickstartConfig) -> TaskConfig:
    """The inner problem of the meta-training; half of the images are kept for the comparison."""
    return TaskConfig(
        images=(config.images,), held_out=0.5, widths=(config.hidden,), batch_size=config.batch_size
    )


def learn_optimizer(folder: Path, config: QuickstartConfig, command: str, resume: bool) -> UpdateRule:
    """Meta-train an update rule on half of the images."""
    run = MetaTrainConfig(
        out=folder / "optimizer",
        rule=config.rule,
        task=classifier_task(config),
        inner=InnerConfig(
            tasks=4, horizon=config.inner_steps, truncation=min(TRUNCATION, config.inner_steps)
        ),
        outer=OuterConfig(steps=config.meta_steps, lr=5e-3),
        evaluate_every=max(1, config.meta_steps // 2),
        seed=config.seed,
    )
    result = meta_train(run, resume=resume and (folder / "optimizer").exists(), command=command)
    if result.stopped_by is not None:
        raise KeyboardInterrupt
    return result.rule


def compare_optimizers(folder: Path, rule: UpdateRule, config: QuickstartConfig) -> dict[str, float]:
    """Train the classifier with the rule and with Adam on images that the rule has not seen; draw the curves."""
    _, unseen = split_images(classifier_task(config), config.images)
    parts = unseen.split({"train": 0.7, "test": 0.3}, seed=config.seed)
    train, test = parts["train"], parts["test"]
    inputs = train.images.flatten(1)[:2]

    def learned(model: nn.Module) -> torch.optim.Optimizer:
        return LearnedOptimizer(
            model.named_parameters(), rule=rule, space=WeightSpace.from_module(model, inputs)
        )

    def adam(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
        return lambda model: torch.optim.Adam(model.parameters(), lr=lr)

    seeds = range(config.classifier_seeds)
    runs = {
        lr: [train_classifier(adam(lr), train, test, config, seed) for seed in seeds]
        for lr in ADAM_LEARNING_RATES
    }
    best = min(runs, key=lambda lr: _mean([run.final for run in runs[lr]]))
    ours = [train_classifier(learned, train, test, config, seed) for seed in seeds]
    label = f"Adam, best of {len(runs)} learning rates: {best:g}"
    _draw_trainings(
        folder / "optimizer.png", {label: runs[best], f"meta-trained {config.rule} rule": ours}, config, train
    )
    metrics = {"optimizer/adam_best_lr": best}
    for name, some in (("adam", runs[best]), ("learned", ours)):
        metrics[f"optimizer/{name}_final_loss"] = _mean([run.final for run in some])
        metrics[f"optimizer/{name}_final_loss_max"] = max(run.final for run in some)
        metrics[f"optimizer/{name}_accuracy"] = _mean([run.accuracy for run in some])
    return metrics


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _draw_trainings(
    path: Path, trainings: dict[str, list[Training]], config: QuickstartConfig, train: ImageData
) -> None:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    for (label, runs), color in zip(trainings.items(), ("tab:gray", "tab:blue"), strict=True):
        losses = np.array([run.losses for run in runs])
        steps = range(losses.shape[1])
        ax.fill_between(steps, losses.min(0), losses.max(0), color=color, alpha=0.2, linewidth=0)
        final = _mean([run.final for run in runs])
        ax.plot(steps, losses.mean(0), color=color, label=f"{label}\n(final training loss {final:.2g})")
    ax.set(xlabel="step", ylabel="minibatch loss (nats)", yscale="log")
    ax.set_title(
        f"Classifier {train.images[0].numel()}-{config.hidden}-{len(train.class_names)} on {_name(config.images)}, "
        f"same initial weights\n(mean and range of {config.classifier_seeds} seeds, {len(train)} images)",
        fontsize="medium",
    )
    ax.legend()
    ax.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


# (c) INR editor


def learn_edit(folder: Path, config: QuickstartConfig, resume: bool) -> dict[str, float]:
    """Fit INRs, train an editor on them, and draw held-out images with their learned and true edits."""
    data = load_images(config.images)
    rest = min(500, (len(data) - 1) // 3)
    sizes = {
        "validation": 2 * rest // 5,
        "test": rest - 2 * rest // 5,
        "train": min(config.inrs, len(data) - rest),
    }
    parts = _take(data, sizes, config.seed)
    edit = get_edit(config.edit)
    sets: dict[str, InrSet] = {}
    for number, (part, images) in enumerate(parts.items()):
        path = folder / f"inrs_{part}.safetensors"
        if not (resume and path.exists()):
            fit(images, seed=config.seed + number, progress=True).save(path)
        sets[part] = InrSet.load(path)
    targets = {part: edit(images.images) for part, images in parts.items()}
    path = folder / "editor.safetensors"
    if resume and path.exists():
        editor = Editor.load(path)
    else:
        editor = _train_editor(path, sets, targets, config)
    before = no_edit_error(sets["test"], targets["test"])
    after = editing_error(editor, sets["test"], targets["test"])
    mean_image = targets["train"].mean(0, keepdim=True)
    metrics = {
        "editor/inr_psnr_db": sets["test"].psnr.mean().item(),
        "editor/no_edit_error": before,
        "editor/mean_image_error": 4 * (mean_image - targets["test"]).square().mean().item(),
        "editor/learned_edit_error": after,
        "editor/share_of_no_edit": after / before,
    }
    _draw_edits(folder / "editor.png", parts["test"], editor, sets["test"], targets["test"], metrics, config)
    return metrics


def _take(data: ImageData, sizes: dict[str, int], seed: int) -> dict[str, ImageData]:
    """Disjoint random parts of the given sizes."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    chunks = order[: sum(sizes.values())].split(list(sizes.values()))
    return {part: data.subset(chunk) for part, chunk in zip(sizes, chunks, strict=True)}


def _train_editor(
    path: Path, sets: dict[str, InrSet], targets: dict[str, Tensor], config: QuickstartConfig
) -> Editor:
    generator = torch.Generator().manual_seed(config.seed)
    inrs = sets["train"]
    editor = Editor(
        EditorConfig(siren=inrs.config, edit=config.edit, image_size=inrs.image_size), generator=generator
    )
    training = TrainEditorConfig(steps=config.editor_steps, seed=config.seed)
    validation = (sets["validation"], targets["validation"])
    history = train_editor(
        editor, inrs, targets["train"], config=training, validation=validation, progress=True
    )
    editor.save(
        path, {"config": config.record(), "training": dataclasses.asdict(training), "history": history}
    )
    return editor


def _draw_edits(
    path: Path,
    images: ImageData,
    editor: Editor,
    inrs: InrSet,
    targets: Tensor,
    metrics: dict[str, float],
    config: QuickstartConfig,
) -> None:
    count = min(10, len(inrs))
    some = inrs[:count]
    rows = {
        "original": images.images[:count],
        "INR": some.render(),
        "learned edit,\nhalf strength": editor(some, 0.5).render(),
        "learned edit": editor(some).render(),
        "true edit": targets[:count],
    }
    title = (
        f"Held-out {_name(config.images)}, edit {config.edit!r} applied to the weights. Mean squared error, values in "
        f"[-1, 1]:\nno edit {metrics['editor/no_edit_error']:.3f}, learned edit "
        f"{metrics['editor/learned_edit_error']:.3f} ({len(inrs)} images)"
    )
    draw_rows(path, rows, title)


# All of it


def _name(images: str) -> str:
    return Path(images).stem


def free_folder(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def quickstart(config: QuickstartConfig, folder: Path, *, resume: bool, command: str) -> None:
    """Do all three parts and say what was made."""
    data = load_images(config.images)
    check(config, data)
    torch.set_num_threads(config.threads)
    run = RunFolder(folder)
    if resume:
        run.reopen(config.record())
    else:
        run.claim(config.record(), command)
    started = time.perf_counter()
    seconds: dict[str, float] = {}

    def part(title: str, name: str, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        tqdm.write(f"\n== {title}")
        begin = time.perf_counter()
        found = work()
        seconds[f"seconds/{name}"] = round(time.perf_counter() - begin, 1)
        return found

    def optimizer() -> dict[str, float]:
        return compare_optimizers(folder, learn_optimizer(folder, config, command, resume), config)

    metrics = part("Symmetry of a small CNN", "symmetry", lambda: find_symmetry(folder, data, config.seed))
    metrics |= part("A learned optimizer", "optimizer", optimizer)
    metrics |= part(
        f"A learned edit of INR weights: {config.edit}", "editor", lambda: learn_edit(folder, config, resume)
    )
    metrics |= seconds
    wall = time.perf_counter() - started
    result = {
        "command": command,
        "config": config.record(),
        "environment": environment(),
        "wall_time_s": round(wall, 1),
        "metrics": metrics,
    }
    write_json(run.result, result)
    print(summary(folder, metrics, wall, config))


def summary(folder: Path, m: dict[str, float], wall: float, config: QuickstartConfig) -> str:
    """The last lines: what was made and where."""
    return f"""
== Done in {wall:.0f} s. In {folder}:
symmetry.txt   the permutation groups of a small CNN; outputs change by {m["symmetry/output_change"]:.1e} under them
optimizer.png  final training loss, mean of {config.classifier_seeds} seeds: meta-trained {config.rule} rule \
{m["optimizer/learned_final_loss"]:.3g}, Adam at its best learning rate ({m["optimizer/adam_best_lr"]:g}) \
{m["optimizer/adam_final_loss"]:.3g}; accuracy on other images {m["optimizer/learned_accuracy"]:.1%} and \
{m["optimizer/adam_accuracy"]:.1%}
editor.png     held-out error: learned edit {m["editor/learned_edit_error"]:.3g}, no edit \
{m["editor/no_edit_error"]:.3g}, the mean edited image {m["editor/mean_image_error"]:.3g}
use them again: LearnedOptimizer(params, rule="{folder}/optimizer/rule.safetensors")
                Editor.load("{folder}/editor.safetensors")
config.json, result.json: the resolved configuration, versions, hardware and all numbers"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["./scripts/quickstart", *words])

    def run(config: Annotated[QuickstartConfig, tyro.conf.arg(name="")], resume: bool = False) -> int:
        """Run.

        Args:
            config: The job.
            resume: Go on with the run in the folder given by --out; all other options as at its start.
        """
        if resume and config.out is None:
            print("error: --resume needs the folder of the run to go on with; give --out", file=sys.stderr)
            return 2
        folder = config.out or free_folder(DEFAULT_OUT)
        try:
            quickstart(dataclasses.replace(config, out=folder), folder, resume=resume, command=command)
        except (OSError, ValueError, TypeError, FloatingPointError, json.JSONDecodeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            more = ([] if config.out else ["--out", str(folder)]) + ([] if resume else ["--resume"])
            again = shlex.join(["./scripts/quickstart", *words, *more])
            print(f"\nstopped; what is complete is kept. To go on:\n  {again}", file=sys.stderr)
            return 130
        return 0

    return tyro.cli(run, args=words, prog="quickstart", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
