#!/usr/bin/env python
"""Predict how good your own networks are, from their checkpoints alone.

Example:
    python scripts/predict.py runs/checkpoints --predictor runs/predictor/predictor.safetensors --known activation=relu
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from nfn_opt.artifacts import atomic_write
from nfn_opt.predictors import Predictor, list_predictors
from nfn_opt.predictors.checkpoints import Checkpoint, Reading, read_folder
from nfn_opt.predictors.tables import LISTED, table_inputs

MOST_BARS = 40
"""Networks whose names are shown in the picture; of more, only the order is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictRun:
    """A prediction for every network of a folder.

    Attributes:
        folder: Folder of .pt, .pth and .safetensors files, each with the state dict of one network.
        predictor: File of a predictor, or the name of one that ships: mnist-accuracy.
        known: What the weights do not say and the predictor asks for, the same for all networks, as
            activation=relu, dropout=0.1, or for networks of many architectures activations=relu-tanh-relu, one of each
            layer or one of all.
        table: CSV file that says it for each network: a column "file", and one for each thing that is known.
        out: Write the table (.csv) and the picture (.png) under this name; by default "predictions" in the folder.
    """

    folder: tyro.conf.Positional[Path]
    predictor: str
    known: tuple[str, ...] = ()
    table: Path | None = None
    out: Path | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is said of one network.

    Attributes:
        file: Its file.
        value: The prediction, in the unit of the target; the number of the class for classes.
        outside: In what it is unlike all training networks.
    """

    file: Path
    value: float
    outside: Sequence[str]


def find_predictor(name: str) -> Predictor:
    """The predictor of a file, or the one that ships under a name."""
    if name in list_predictors():
        return Predictor.pretrained(name)
    if not Path(name).exists():
        raise FileNotFoundError(
            f"there is no file {name!r}, and no predictor of that name ships; expected a file of "
            f"scripts/train_predictor.py, or {', '.join(list_predictors())}"
        )
    return Predictor.load(name)


def known_inputs(run: PredictRun, predictor: Predictor, file: Path) -> Tensor:
    """The numbers beside the weights of one network, shape (1, I).

    Raises:
        ValueError: If something that the predictor asks for is not known, or is nothing that it knows.
    """
    asked = sorted({name.partition("=")[0] for name in predictor.config.inputs})
    for word in run.known:
        column, equals, _ = word.partition("=")
        if not equals or column not in asked:
            raise ValueError(
                f"--known says {word!r}, expected NAME=VALUE of what the predictor asks for: "
                f"{', '.join(asked) or 'nothing'}"
            )
    known = {
        **dict(word.partition("=")[::2] for word in run.known),
        **_table(run.table).get(file.name, {}),
    }
    words = predictor.metadata.get("words", {})
    values = []
    for name in predictor.config.inputs:
        column, _, word = name.partition("=")
        if column not in known:
            forms = {"activation": "relu", LISTED: "relu-tanh-relu (of each layer, or one of all)"}
            what = f"{column}={forms.get(column, '...')}"
            raise ValueError(
                f"{column} of {file.name} is not known: weights do not say it, and the predictor asks for it; give "
                f"--known {what}, or a --table with a column {column!r}"
            )
        said = known[column]
        values.append(_share(said, name, words.get(column), file) if word else _number(said, column, file))
    return torch.tensor([values])


def _share(said: str, name: str, words: Sequence[str] | None, file: Path) -> float:
    """Share of the words said of a network that are the one of an input; of a single word 1 or 0.

    Args:
        said: What is said of the network: a word, or one of each layer, joined by hyphens.
        name: Of the input, as "activation=tanh".
        words: Those of the training networks, if they are known.
        file: Where the network lies.

    Raises:
        ValueError: If the training networks had no such word.
    """
    column, _, word = name.partition("=")
    several = column == LISTED
    parts = said.split("-") if several else [said]
    if not said or (words and not set(parts) <= set(words)):
        raise ValueError(
            f"{column} of {file.name} is {said!r}, expected {', '.join(words or [word])}, which the training networks "
            f"had{', joined by hyphens' if several else ''}"
        )
    return table_inputs({column: (said,)}, [name]).item()


def _number(said: str, column: str, file: Path) -> float:
    try:
        return float(said)
    except ValueError:
        raise ValueError(f"{column} of {file.name} is {said!r}, expected a number") from None


def _table(path: Path | None) -> Mapping[str, Mapping[str, str]]:
    if path is None:
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "file" not in rows[0]:
        raise ValueError(f"{path} has no column 'file', expected one with the name of each network's file")
    return {row["file"]: row for row in rows}


def predict(run: PredictRun, predictor: Predictor, checkpoint: Checkpoint) -> Prediction:
    """The prediction for one network."""
    params = {name: value.unsqueeze(0) for name, value in checkpoint.params.items()}
    space = checkpoint.space if predictor.shared else None
    inputs = known_inputs(run, predictor, checkpoint.file)
    found = predictor.predict(params, inputs, space).flatten()[0].item()
    outside = [] if predictor.range is None else predictor.range.outside(params, checkpoint.space)[0]
    return Prediction(checkpoint.file, found, outside)


def column_name(predictor: Predictor) -> str:
    """What is predicted."""
    return str(predictor.metadata.get("column", predictor.config.target)).replace("_", " ")


def report(found: Sequence[Prediction], reading: Reading, predictor: Predictor) -> str:
    """All predictions, best first, and all that was not predicted."""
    width = max((len(one.file.name) for one in found), default=0)
    lines = [f"predicted {column_name(predictor)}"] if found else []
    for one in sorted(found, key=lambda one: -one.value):
        note = "  OUTSIDE the training range" if one.outside else ""
        lines.append(f"  {one.file.name:<{width}}  {_shown(one.value, predictor)}{note}")
    for one in found:
        lines += [f"{one.file.name}: {text}" for text in one.outside]
    outside = sum(bool(one.outside) for one in found)
    if outside:
        lines.append(
            f"{outside} of {len(found)} networks are unlike all networks that the predictor was trained on: their "
            "predictions are guesses"
        )
    renamed = [one.file.name for one in reading.checkpoints if one.renamed]
    if renamed:
        lines.append(f"tensors matched by order and shape, not by name: {', '.join(renamed)}")
    if reading.failed:
        names = ", ".join(file.name for file in reading.failed)
        lines.append(f"{len(reading.failed)} skipped, their weights are not finite: {names}")
    lines += [f"not supported: {file.name}: {why}" for file, why in reading.unsupported.items()]
    return "\n".join(lines)


def _shown(value: float, predictor: Predictor) -> str:
    """A prediction as text; the name of the class, if classes are predicted and have names."""
    if predictor.config.target != "class":
        return f"{value:.3f}"
    names = predictor.metadata.get("classes", [])
    return str(names[int(value)]) if names else str(int(value))


def write_table(path: Path, found: Sequence[Prediction], reading: Reading, predictor: Predictor) -> None:
    """One line for each file of the folder, those without a prediction included."""
    rows = [[one.file.name, _shown(one.value, predictor), "; ".join(one.outside), ""] for one in found]
    rows += [[file.name, "", "", "weights are not finite"] for file in reading.failed]
    rows += [[file.name, "", "", why] for file, why in reading.unsupported.items()]
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "predicted", "outside_training_range", "not_predicted"])
        writer.writerows(rows)


def draw(path: Path, found: Sequence[Prediction], predictor: Predictor) -> None:
    """All predictions, best on top; networks outside the training range are hollow."""
    ranked = sorted(found, key=lambda one: one.value)
    named = len(ranked) <= MOST_BARS
    height = 1.4 + 0.22 * len(ranked) if named else 4.2
    figure = Figure(figsize=(6.4, height), layout="constrained")
    ax = figure.subplots()
    for inside, label in ((True, "inside the training range"), (False, "outside: a guess")):
        chosen = [(one.value, place) for place, one in enumerate(ranked) if bool(one.outside) != inside]
        if chosen:
            face = "tab:blue" if inside else "none"
            values, places = zip(*chosen, strict=True)
            ax.scatter(values, places, s=28, facecolors=face, edgecolors="tab:blue", label=label)
    ax.set(xlabel=f"predicted {column_name(predictor)}", ylabel="" if named else "rank of the network")
    if named:
        ax.set_yticks(range(len(ranked)), [one.file.name for one in ranked], fontsize="small")
    if predictor.config.target == "score":
        ax.set_xlim(0, 1)
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", fontsize="small", ncols=2)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def run_predict(run: PredictRun) -> int:
    """Predict, tell and write; 0 if there is a prediction for one network at least."""
    predictor = find_predictor(run.predictor)
    reading = read_folder(run.folder, predictor)
    found = [predict(run, predictor, one) for one in reading.checkpoints]
    print(report(found, reading, predictor))
    if not found:
        supported = ", ".join(f"{s.name} {'x'.join(map(str, s.shape))}" for s in predictor.space.parameters)
        print(f"no network was predicted; the predictor reads {supported}", file=sys.stderr)
        return 2
    out = run.out or run.folder / "predictions"
    write_table(out.with_suffix(".csv"), found, reading, predictor)
    draw(out.with_suffix(".png"), found, predictor)
    print(f"written: {out.with_suffix('.csv')}, {out.with_suffix('.png')}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from command-line arguments, those of the process by default; the exit status."""
    try:
        run = tyro.cli(
            PredictRun,
            args=None if arguments is None else list(arguments),
            prog="predict.py",
            description=inspect.getdoc(sys.modules[__name__]),
        )
        return run_predict(run)
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
