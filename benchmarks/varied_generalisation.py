"""Predicting the accuracy of CNNs of many architectures: one predictor for all of them.

python -m benchmarks.varied_generalisation [--quick] [--zoo FILE] [--images mnist_784 --networks 600] --out FOLDER

The networks are those of a varied zoo (`scripts/build_zoo.py --kind varied-cnn`), which is built first if none is
given. They are dealt out in two ways: at random, so that most architectures of the test networks were seen in training,
and by architecture, so that none was.

"relation" is a predictor whose NF-Layers are shared by what tensors are to each other, so that it reads networks of
any architecture; it reads weights alone. "relation, told activations" is also given the share of layers with each
activation. Beside them stand what can be said without the order of anything: "statistics" are StatNN's of the first
layer, of all layers between, and of the last; "architecture" knows depth, parameters, residual connections and
activations, and no weight. Finished trainings stay in the folder: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.generalisation import train_timed
from benchmarks.generalisation_report import Trained, difference_line, draw, in_words, stacked, table, taus
from benchmarks.kept_trainings import KeptTrainings
from nfn_opt.artifacts import atomic_write
from nfn_opt.data import load_images
from nfn_opt.data.zoos import VariedOptions, VariedZoo, build_varied_zoo
from nfn_opt.layers import StatisticsFeatures
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.predictors import (
    NetworkGroup,
    Predictor,
    PredictorConfig,
    PredictorData,
    bootstrap_tau_difference,
    zoo_data,
)
from nfn_opt.predictors.training import predictions
from nfn_opt.weight_space import WeightSpace

SIZES = {"train": 0.6, "val": 0.1, "test": 0.3}
"""Shares of the networks, or of the architectures."""

SPLITS = {"architectures seen in training": False, "new architectures": True}
"""Whether whole architectures are dealt out."""

RELATION, TOLD, STATISTICS, ARCHITECTURE = (
    "relation",
    "relation, told activations",
    "statistics",
    "architecture",
)

METHODS = (RELATION, TOLD, STATISTICS, ARCHITECTURE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Sizes.

    Attributes:
        steps: Training steps of every predictor.
        batch_size: Networks a step.
        validate_every: Steps between two validations.
        lr: Learning rate.
        seeds: Trainings of every predictor.
        resamples: Of each bootstrap.
    """

    steps: int = 2000
    batch_size: int = 16
    validate_every: int = 200
    lr: float = 3e-3
    seeds: int = 3
    resamples: int = 1000


def statistics_of(zoo: VariedZoo) -> Tensor:
    """StatNN's statistics of first layer, layers between and last layer, weights and biases apart, shape (N, 42)."""
    rows = torch.zeros(len(zoo), 6 * 7)
    for group in zoo.groups():
        last = len(group.architecture.widths) - 1
        between = range(1, last + 1) if last else range(1)
        names = (["layers.0"], [f"layers.{number}" for number in between], ["fc"])
        sets = {
            f"{number}.{kind}": torch.cat([group.params[f"{name}.{kind}"].flatten(1) for name in some], 1)
            for number, some in enumerate(names)
            for kind in ("weight", "bias")
        }
        space = WeightSpace.independent({name: value[0] for name, value in sets.items()})
        found = StatisticsFeatures(space)({name: value.unsqueeze(-1) for name, value in sets.items()})
        rows[group.rows] = torch.asinh(100 * found)
    return rows


def architecture_of(zoo: VariedZoo, activations: Sequence[str]) -> Tensor:
    """What is known of a network without its weights, shape (N, numbers)."""
    data = zoo_data(zoo, inputs=("depth", "parameters", "residual_connections", *activations))
    inputs = torch.cat([group.inputs for group in data.groups if group.inputs is not None])
    rows = torch.empty_like(inputs)
    rows[torch.cat([group.rows for group in zoo.groups()])] = inputs
    rows[:, 1] = rows[:, 1].log()
    return rows


def as_groups(zoo: VariedZoo, name: str, activations: Sequence[str]) -> PredictorData:
    """The networks as a method reads them; `activations` are the names of the shares of layers with each."""
    if name in (RELATION, TOLD):
        return zoo_data(zoo, inputs=activations if name == TOLD else ())
    accuracy = zoo.table["test_accuracy"]
    assert isinstance(accuracy, Tensor)
    numbers = statistics_of(zoo) if name == STATISTICS else architecture_of(zoo, activations)
    space = WeightSpace.independent({"numbers": numbers[0]})
    return PredictorData(space, [NetworkGroup({"numbers": numbers}, accuracy.float())], "test_accuracy")


def in_order(zoo: VariedZoo, name: str, values: Tensor) -> Tensor:
    """Values of networks group after group, in the order of the zoo."""
    if name not in (RELATION, TOLD):
        return values
    ordered = torch.empty_like(values)
    ordered[torch.cat([group.rows for group in zoo.groups()])] = values
    return ordered


def train_one(
    parts: Mapping[str, VariedZoo], name: str, activations: Sequence[str], protocol: Protocol, seed: int
) -> Trained:
    """Train one predictor, and let it predict the accuracies of the test networks."""
    data = {part: as_groups(zoo, name, activations) for part, zoo in parts.items()}
    kind: Any = "relation" if name in (RELATION, TOLD) else "mlp"
    config = data["train"].config(PredictorConfig(kind=kind))
    generator = torch.Generator().manual_seed(seed)
    predictor = Predictor(data["train"].architecture, config, generator=generator)
    groups = {part: one.groups for part, one in data.items()}
    result, seconds = train_timed(predictor, groups, protocol, seed)
    predicted = in_order(parts["test"], name, predictions(predictor, data["test"].groups)[0][:, 0])
    parameters = sum(p.numel() for p in predictor.parameters())
    return Trained(predicted, seconds, parameters, result.best_step, result.best_score)


def make_zoo(given: argparse.Namespace) -> VariedZoo:
    """The zoo of the file, or a new one, whose file is kept."""
    path = given.zoo or given.out / "varied_zoo.safetensors"
    if given.zoo is None and not path.is_file():
        images = load_images(given.images, gray=True, size=given.size)
        options = VariedOptions(epochs=tuple(given.epochs))
        stopped = Path(f"{path}.parts").exists()
        build_varied_zoo(
            images,
            path,
            count=given.networks,
            options=options,
            score_images=2000,
            resume=stopped,
            progress=True,
        )
    return VariedZoo.load(path)


def run(zoo: VariedZoo, protocol: Protocol, out: Path, config: Mapping[str, Any]) -> str:
    """Train all, write table, figures and numbers; the table."""
    conditions = {**dataclasses.asdict(protocol), "zoo": zoo.meta.get("run", {}), "networks": len(zoo)}
    del conditions["seeds"], conditions["resamples"]
    kept = KeptTrainings(out / "trainings.json", conditions)
    text = f"{zoo!r}\n\n"
    metrics: dict[str, float] = {}
    activations = zoo_data(zoo).inputs  # of all networks: a part need not have all of them
    for split, by_architecture in SPLITS.items():
        parts = zoo.split(SIZES, seed=0, by_architecture=by_architecture)
        targets = torch.as_tensor(parts["test"].table["test_accuracy"]).float()
        found: dict[str, list[Trained]] = {}
        for seed in range(protocol.seeds):
            for name in METHODS:

                def make(name: str = name, seed: int = seed, parts: Any = parts) -> dict[str, Any]:
                    return train_one(parts, name, activations, protocol, seed).record()

                found.setdefault(name, []).append(
                    Trained.of_record(kept.once(f"{split}, {name}", seed, make))
                )
                print(f"{split}, {name}, seed {seed}: tau {taus(found[name], targets)[-1]:.3f}", flush=True)
        counts = ", ".join(
            f"{len(part):,} {name} of {len(part.members)} architectures" for name, part in parts.items()
        )
        text += f"### {split[0].upper()}{split[1:]}\n\n{counts}\n\n{table(found, targets)}\n"
        for other in (STATISTICS, ARCHITECTURE):
            difference = bootstrap_tau_difference(
                stacked(found[RELATION]),
                stacked(found[other]),
                targets,
                generator=torch.Generator().manual_seed(0),
                resamples=protocol.resamples,
            )
            text += difference_line(RELATION, other, difference, len(targets)) + "\n"
            metrics |= {f"{split}/{RELATION} minus {other}/{k}": v for k, v in difference._asdict().items()}
        for name, some in found.items():
            metrics[f"{split}/tau/{name}"] = statistics.mean(taus(some, targets))
        path = out / f"varied_{'new' if by_architecture else 'seen'}.png"
        draw(path, found, targets, [RELATION, STATISTICS], f"{in_words(zoo)}; {split}")
    with atomic_write(out / "varied_generalisation.md") as temporary:
        temporary.write_text(text)
    write_json(
        out / "result.json", {"config": dict(config), "environment": environment(), "metrics": metrics}
    )
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train all predictors, and write table, figures and numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps and networks: whether it runs")
    parser.add_argument("--zoo", type=Path, help="a varied zoo that is built already")
    parser.add_argument("--images", default="mnist_784", help="images of a zoo that is to be built")
    parser.add_argument("--size", type=int, help="height and width of these")
    parser.add_argument("--networks", type=int, default=600, help="networks of a zoo that is to be built")
    parser.add_argument("--epochs", type=float, nargs=2, default=(0.05, 0.5), help="range of their training")
    parser.add_argument("--seeds", type=int, help="trainings of every predictor")
    parser.add_argument("--steps", type=int, help="steps of every predictor")
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if not given")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/varied_generalisation"), help="folder to write to"
    )
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    protocol = Protocol(steps=20, validate_every=10, seeds=1, resamples=50) if given.quick else Protocol()
    if given.quick and given.zoo is None:
        given.networks, given.epochs = 40, (0.02, 0.1)
    chosen = {name: getattr(given, name) for name in ("seeds", "steps") if getattr(given, name) is not None}
    protocol = dataclasses.replace(protocol, **chosen)
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    zoo = make_zoo(given)
    config = {"zoo": str(given.zoo or given.images), **dataclasses.asdict(protocol)}
    print(run(zoo, protocol, given.out, config))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
