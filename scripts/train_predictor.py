#!/usr/bin/env python
"""Train a predictor: of the accuracy of networks, of how they were trained, of what an INR shows.

Example:
    python scripts/train_predictor.py --networks runs/zoo.safetensors --out runs/predictor
    python scripts/train_predictor.py --networks runs/zoo.safetensors --column learning_rate --log --out runs/rate
    python scripts/train_predictor.py --networks cifar10 --out runs/public --predictor.kind np
    python scripts/train_predictor.py --networks runs/varied.safetensors --predictor.kind relation --out runs/varied
    python scripts/train_predictor.py --networks runs/inrs.safetensors --out runs/digits
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from editors import InrSet, Siren
from editors.siren import coordinates
from nfn_opt.artifacts import atomic_write, read_header
from nfn_opt.data.zoos import VariedZoo, Zoo, load_small_cnn_zoo
from nfn_opt.meta.config import plain_record
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.predictors import (
    NetworkGroup,
    Predictor,
    PredictorConfig,
    PredictorData,
    failed_networks,
    zoo_data,
)
from nfn_opt.predictors.report import draw_predictions, draw_training, score_report
from nfn_opt.predictors.training import SCORE_NAMES, predictions, train_on_groups
from nfn_opt.training import TrainingConfig, TrainingResult
from nfn_opt.weight_space import WeightSpace

PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorRun:
    """A training run.

    Attributes:
        networks: File of a zoo, or several, which are joined if they have the same columns; file of a set of INRs with
            labels; or the unpacked folder of a set of the public Small CNN Zoo.
        out: Folder to write to.
        column: Column of the zoo that is predicted; words are predicted as classes. None: the score of the networks,
            such as the accuracy on test images. Of INRs it is the label.
        log: Predict the logarithm of the column.
        beside: Columns that are given to the predictor beside the weights. "auto": the activations, which weights do
            not say, where they vary. None: only weights.
        limit: Use the first so many networks; all if not given.
        val_fraction: Share of the networks that chooses the best weights.
        test_fraction: Share of the networks that is kept for the reported scores.
        split_seed: Seed by which networks are dealt to training, validation and test.
        predictor: The predictor. Its inputs, and for classes its target and outputs, follow from the networks, whatever
            is given here.
        training: Steps, batch size, learning rate, validations.
        seed: Seed of the predictor's initial weights.
        device: "cpu", "cuda", or another device of PyTorch's.
        quiet: Show no progress bar.
    """

    networks: tuple[Path, ...]
    out: Path
    column: str | None = None
    log: bool = False
    beside: tuple[str, ...] | Literal["auto"] | None = "auto"
    limit: int | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.25
    split_seed: int = 0
    predictor: PredictorConfig = dataclasses.field(
        default_factory=lambda: PredictorConfig(statistics=True, spectrum=True)
    )
    training: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(lr=3e-3, validate_every=100, patience=8)
    )
    seed: int = 0
    device: str = "cpu"
    quiet: bool = False

    def __post_init__(self) -> None:
        if not (self.val_fraction > 0 < self.test_fraction and self.val_fraction + self.test_fraction < 1):
            raise ValueError(
                f"val_fraction is {self.val_fraction} and test_fraction {self.test_fraction}, expected positive "
                "numbers that leave networks to train on"
            )
        if self.limit is not None and self.limit < 3:
            raise ValueError(f"limit is {self.limit}, expected at least 3: one network for each part")

    @property
    def sizes(self) -> dict[str, float]:
        """Shares of the parts."""
        rest = 1 - self.val_fraction - self.test_fraction
        return dict(zip(PARTS, (rest, self.val_fraction, self.test_fraction), strict=True))

    @property
    def source(self) -> str:
        """Where the networks come from, in words."""
        return ", ".join(map(str, self.networks))

    def record(self) -> dict[str, Any]:
        """What a resumed run must share, as JSON values; the configuration of the training comes on top."""
        record = plain_record(self)
        return {name: record[name] for name in record if name not in ("training", "predictor", "quiet")}


def read_networks(run: PredictorRun) -> tuple[PredictorData, dict[str, Any]]:
    """The networks of a run, and what a predictor of kind "probing" needs beside them.

    Raises:
        ValueError: If the file is of no kind that predictors are trained on, or lacks the column.
    """
    if not run.networks:
        raise ValueError("networks is empty, expected at least one file; give --networks FILE")
    first = run.networks[0]
    if len(run.networks) == 1 and first.is_dir():
        return _of_zoo(load_small_cnn_zoo(first, limit=run.limit), run), {}
    kinds = [read_header(path)[0] for path in run.networks]
    if set(kinds) in ({"zoo"}, {"varied_zoo"}):
        zoo: Zoo | VariedZoo
        if kinds[0] == "zoo":
            zoo = Zoo.concat([Zoo.load(path) for path in run.networks])
        else:
            zoo = VariedZoo.concat([VariedZoo.load(path) for path in run.networks])
        if len(run.networks) > 1:
            check_distinct(zoo, run.source)
        return _of_zoo(zoo if run.limit is None else zoo[: run.limit], run), {}
    if kinds == ["inr_set"]:
        return _of_inrs(InrSet.load(first), run)
    found = ", ".join(f"{path} holds a {kind!r}" for path, kind in zip(run.networks, kinds, strict=True))
    raise ValueError(f"{found}; expected a zoo, several of one kind, or a set of INRs")


def check_distinct(zoo: Zoo | VariedZoo, source: str) -> None:
    """Refuse joined zoos that share networks, which might be trained on and scored with.

    Raises:
        ValueError: If a network is there twice.
    """
    groups = [zoo.params] if isinstance(zoo, Zoo) else [group.params for group in zoo.groups()]
    twice = 0
    for params in groups:
        rows = torch.cat([value.flatten(1) for value in params.values()], 1).numpy()
        twice += len(rows) - len({row.tobytes() for row in rows})
    if twice:
        raise ValueError(
            f"{twice} networks are there more than once in {source}, expected different ones; build zoos with "
            "different --seed"
        )


def _of_zoo(zoo: Zoo | VariedZoo, run: PredictorRun) -> PredictorData:
    beside = None if run.beside == "auto" else run.beside or ()
    if isinstance(zoo, VariedZoo) and run.predictor.kind != "relation":
        raise ValueError(
            f"{run.source} has networks of many architectures, expected one for kind {run.predictor.kind!r}; take "
            "--predictor.kind relation"
        )
    found = zoo_data(zoo, run.column, beside, run.source, symmetry=run.predictor.symmetry)
    if not run.log:
        return found
    if found.classes or not all(bool((group.targets > 0).all()) for group in found.groups):
        raise ValueError(
            f"the column {found.column!r} has words or numbers that are not positive: no logarithm"
        )
    logs = [dataclasses.replace(group, targets=group.targets.log10()) for group in found.groups]
    return dataclasses.replace(found, groups=logs, column=f"log10({found.column})")


def _of_inrs(inrs: InrSet, run: PredictorRun) -> tuple[PredictorData, dict[str, Any]]:
    if inrs.labels is None:
        raise ValueError(
            f"{run.source} has INRs without labels, expected the class of each; fit labelled images"
        )
    if run.column is not None or run.log or run.beside != "auto":
        raise ValueError(
            f"{run.source} has INRs, whose label is predicted; leave out --column, --log and --beside, which are for "
            "zoos"
        )
    inrs = inrs[: run.limit]
    failed = failed_networks(inrs.params)
    inrs = inrs[~failed]
    labels = inrs.labels
    assert labels is not None
    if int(labels.min()) < 0:
        raise ValueError(f"{run.source} has the label {int(labels.min())}, expected labels of 0 or more")
    network, coords = Siren(inrs.config), coordinates(*inrs.image_size)
    space = WeightSpace.from_module(network, coords[:2], symmetry=run.predictor.symmetry)
    params = {name: inrs.params[name] for name in space.names}
    classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    group = NetworkGroup(params, labels)
    data = PredictorData(space, [group], "label", (), classes, run.source, int(failed.sum()))
    start = coords[torch.linspace(0, len(coords) - 1, run.predictor.probes).long()]
    return data, {"network": network, "probes": start} if run.predictor.kind == "probing" else {}


def make_predictor(run: PredictorRun, data: PredictorData, extra: dict[str, Any]) -> Predictor:
    """The predictor before its training."""
    config = data.config(run.predictor)
    targets = torch.cat([group.targets for group in data.groups])
    if config.target == "score" and not bool(((targets >= 0) & (targets <= 1)).all()):
        config = dataclasses.replace(config, target="value")  # a column that is no score
    generator = torch.Generator().manual_seed(run.seed)
    return Predictor(data.architecture, config, generator=generator, **extra).to(run.device)


def report(
    run: PredictorRun,
    data: PredictorData,
    predictor: Predictor,
    result: TrainingResult,
    test: Sequence[NetworkGroup],
    command: str,
) -> dict[str, Any]:
    """Score the predictor on the test networks, and write it with its scores, predictions and pictures."""
    predicted, targets = predictions(predictor, test)
    scores = score_report(predicted, targets, predictor.config.target)
    name = SCORE_NAMES[predictor.config.target]
    title = f"{predictor.config.kind} on {len(data):,} networks: {data.column}"
    draw_training(run.out / "curves.png", result.history, score=name, title=title)
    if predictor.config.target != "class":
        draw_predictions(
            run.out / "test.png",
            predicted[:, 0],
            targets[:, 0],
            name=data.column.replace("_", " "),
            title=f"{len(targets):,} test networks, {predictor.config.kind}",
        )
    _write_predictions(run.out / "test.csv", predicted, targets)
    about = {
        "column": data.column,
        "classes": list(data.classes),
        "words": {name: list(words) for name, words in data.words.items()},
        "networks": {"source": data.source, "count": len(data), "left_out": data.left_out, **run.sizes},
        "best_step": result.best_step,
        "steps": result.steps,
        "training_seconds": result.seconds,
        "test": scores,
    }
    predictor.cpu().save(
        run.out / "predictor.safetensors", command=command, environment=environment(), **about
    )
    write_json(run.out / "scores.json", {"command": command, "environment": environment(), **about})
    return scores


def _write_predictions(path: Path, predicted: torch.Tensor, targets: torch.Tensor) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = 1 if predicted.ndim == 1 else predicted.shape[1]
        numbers = [""] if columns == 1 else [f"_{number}" for number in range(columns)]
        writer.writerow([f"{what}{number}" for what in ("predicted", "true") for number in numbers])
        both = torch.cat([predicted.reshape(len(targets), -1), targets.reshape(len(targets), -1)], 1)
        writer.writerows(both.tolist())


def run_training(run: PredictorRun, *, resume: bool, command: str) -> tuple[TrainingResult, str]:
    """Read the networks, train, report; the result, and what to say of it."""
    data, extra = read_networks(run)
    parts = data.split(run.sizes, run.split_seed)
    counts = ", ".join(f"{sum(map(len, parts[name])):,} {name}" for name in PARTS)
    print(f"{len(data):,} networks ({counts}), {data.left_out} left out that are not finite", flush=True)
    predictor = make_predictor(run, data, extra)
    result = train_on_groups(
        predictor,
        parts["train"],
        parts["val"],
        config=run.training,
        folder=run.out,
        resume=resume,
        record=run.record(),
        command=command,
        progress=not run.quiet,
    )
    if result.stopped_by is not None:
        return result, ""
    scores = report(run, data, predictor, result, parts["test"], command)
    shown = {name: value for name, value in scores.items() if isinstance(value, float)}
    best = f"best weights after step {result.best_step} of {result.steps}, {result.seconds:.0f} s"
    return result, f"test: {', '.join(f'{name} {value:.3f}' for name, value in shown.items())}\n{best}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "scripts/train_predictor.py", *words])
    going_on = command if "--resume" in words else f"{command} --resume"
    missing: Any = tyro.MISSING

    def start(
        run: Annotated[PredictorRun, tyro.conf.arg(name="")] = PredictorRun(networks=missing, out=missing),
        resume: bool = False,
        threads: int | None = None,
    ) -> int:
        """Run.

        Args:
            run: The run.
            resume: Go on with the run in the folder given by --out; all other options as at its start.
            threads: Number of CPU threads; PyTorch's choice if not given.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        result, text = run_training(run, resume=resume, command=command)
        if result.stopped_by is not None:
            name = signal.Signals(result.stopped_by).name
            print(
                f"stopped by {name} after step {result.steps}; everything is saved. To go on:\n  {going_on}"
            )
            return 128 + result.stopped_by
        files = ("predictor.safetensors", "scores.json", "test.csv", "curves.png", "test.png")
        print(text)
        print("written: " + ", ".join(str(run.out / name) for name in files if (run.out / name).exists()))
        return 0

    try:
        return tyro.cli(
            start, args=words, prog="train_predictor.py", description=inspect.getdoc(sys.modules[__name__])
        )
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
