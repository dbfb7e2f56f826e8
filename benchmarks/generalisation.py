"""Predicting the accuracy of CNNs from their weights: every kind of predictor, and that of the ``nfn`` package.

python -m benchmarks.generalisation [--quick] [--zoo FILE] [--images mnist_784 --networks 2000] --out FOLDER

The networks are those of a zoo (`scripts/build_zoo.py`), which is built first if none is given. As in arXiv:2302.14040,
half of them are for testing, and of the others a fifth chooses the best weights of a predictor. All predictors are
trained on the same networks for the same number of steps of the same batch size, those of this package by AdamW with
a cosine schedule, the reference as its authors do: Adam, learning rate 1e-3, batches of 8, binary cross-entropy,
channels 16, 16, 5.

The best weight-space predictor, which is compared with StatNN and the reference, is the one of the best correlation on
the validation networks. Finished trainings stay in the folder: the same command goes on where it was stopped.

Predictors read the weights alone. Only "probing" is told the activation of each network, because it runs it; with
`--told` all of this package's are. "+ statistics" is a predictor whose head reads StatNN's statistics too, "+ spectrum"
the singular values of every weight.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.generalisation_reference import train_reference
from benchmarks.generalisation_report import (
    Trained,
    difference_line,
    draw,
    draw_taus,
    in_words,
    published_table,
    stacked,
    table,
    taus,
)
from benchmarks.kept_trainings import KeptTrainings
from nfn_opt.artifacts import atomic_write
from nfn_opt.data import load_images
from nfn_opt.data.zoos import Zoo, ZooOptions, build_zoo
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.predictors import (
    KINDS,
    NetworkGroup,
    Predictor,
    PredictorConfig,
    bootstrap_tau_difference,
    kendall_tau,
    train_on_groups,
    zoo_data,
)
from nfn_opt.predictors.config import WEIGHT_SPACE_KINDS
from nfn_opt.training import TrainingConfig, TrainingResult

REFERENCE = "nfn package, HNP"
WITH_STATISTICS = " + statistics"
AND_SPECTRUM = " + spectrum"
BASELINE = "statnn"
COMPARED = (f"hnp{WITH_STATISTICS}{AND_SPECTRUM}", f"np{WITH_STATISTICS}{AND_SPECTRUM}", BASELINE, REFERENCE)
"""Predictors of which most seeds are trained."""

SIZES = {"train": 0.4, "val": 0.1, "test": 0.5}
"""Shares of the networks."""

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Sizes.

    Attributes:
        steps: Training steps of every predictor.
        batch_size: Networks a step.
        validate_every: Steps between two validations.
        lr: Learning rate of this package's predictors.
        seeds: Trainings of each predictor of `COMPARED`.
        other_seeds: Trainings of each other predictor.
        told: Whether all of this package's predictors are told the activation.
    """

    steps: int = 3000
    batch_size: int = 8
    validate_every: int = 200
    lr: float = 3e-3
    seeds: int = 3
    other_seeds: int = 1
    told: bool = False


QUICK = Protocol(steps=20, validate_every=10, seeds=1)


def configs() -> dict[str, PredictorConfig]:
    """Every kind of predictor, and those that read the statistics too."""
    plain: dict[str, PredictorConfig] = {kind: PredictorConfig(kind=kind) for kind in KINDS}
    joined = {kind + WITH_STATISTICS: PredictorConfig(kind=kind, statistics=True) for kind in ("np", "hnp")}
    spectra: dict[str, PredictorConfig] = {
        f"{kind}{WITH_STATISTICS}{AND_SPECTRUM}": PredictorConfig(kind=kind, statistics=True, spectrum=True)
        for kind in ("np", "hnp")
    }
    return (
        plain
        | joined
        | spectra
        | {f"{BASELINE}{AND_SPECTRUM}": PredictorConfig(kind="statnn", spectrum=True)}
    )


def is_weight_space(name: str) -> bool:
    """Whether a predictor has equivariant layers and reads weights alone."""
    return name.removesuffix(AND_SPECTRUM).removesuffix(WITH_STATISTICS) in WEIGHT_SPACE_KINDS


def train_timed(
    predictor: Predictor, parts: Mapping[str, Sequence[NetworkGroup]], protocol: Any, seed: int
) -> tuple[TrainingResult, float]:
    """Train a predictor on the part "train", choose its weights on "val"; with the processor seconds.

    Args:
        predictor: The predictor.
        parts: The networks.
        protocol: Has `steps`, `batch_size`, `lr` and `validate_every`.
        seed: Seed of the order.
    """
    training = TrainingConfig(
        steps=protocol.steps,
        batch_size=protocol.batch_size,
        lr=protocol.lr,
        validate_every=protocol.validate_every,
        warmup=min(100, protocol.steps // 10),
        seed=seed,
    )
    start = time.process_time()
    result = train_on_groups(predictor, parts["train"], parts["val"], config=training)
    return result, time.process_time() - start


def train_ours(
    zoo: Zoo, config: PredictorConfig, protocol: Protocol, seed: int
) -> tuple[Trained, Predictor, NetworkGroup]:
    """Train a predictor of this package; the training, the predictor and the test networks."""
    told = protocol.told or config.kind == "probing"
    data = zoo_data(zoo, beside=("activation",) if told else ())
    parts = data.split(SIZES, seed=0)
    predictor = Predictor(
        data.architecture, data.config(config), generator=torch.Generator().manual_seed(seed)
    )
    result, seconds = train_timed(predictor, parts, protocol, seed)
    (test,) = parts["test"]
    predicted = predictor.predict(test.params, test.inputs)[:, 0]
    trained = Trained(predicted, seconds, count(predictor), result.best_step, result.best_score)
    return trained, predictor, test


def train_other(zoo: Zoo, protocol: Protocol, seed: int) -> Trained:
    """Train the reference on the same networks for the same steps."""
    parts = zoo_data(zoo, beside=()).split(SIZES, seed=0)
    (train,), (val,), (test,) = (parts[name] for name in SIZES)
    names = list(zoo.architecture.parameter_shapes)  # in the order of the layers, which files do not keep
    train, val, test = (
        dataclasses.replace(one, params={name: one.params[name] for name in names})
        for one in (train, val, test)
    )
    predictor, seconds = train_reference(
        train,
        lambda one: kendall_tau(one.predict(val.params), val.targets),
        steps=protocol.steps,
        batch_size=protocol.batch_size,
        validate_every=protocol.validate_every,
        seed=seed,
    )
    return Trained(predictor.predict(test.params), seconds, count(predictor))


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def make_zoo(given: argparse.Namespace) -> Zoo:
    """The zoo of the file, or a new one, whose file is kept."""
    path = given.zoo or given.out / "zoo.safetensors"
    if given.zoo is None and not path.is_file():
        options = ZooOptions(epochs=tuple(given.epochs), batch_size=given.zoo_batch_size)
        images = load_images(given.images, gray=True, size=given.size)
        build_zoo(images, path, count=given.networks, options=options, progress=True)
    return Zoo.load(path)


def compare(
    zoo: Zoo, protocol: Protocol, names: Sequence[str], kept: KeptTrainings
) -> tuple[dict[str, list[Trained]], torch.Tensor]:
    """Train all of some predictors; the trainings, and the accuracies of the test networks."""
    found: dict[str, list[Trained]] = {}
    targets = zoo_data(zoo, beside=()).split(SIZES, seed=0)["test"][0].targets

    def make(name: str, seed: int) -> dict[str, Any]:
        if name == REFERENCE:
            return train_other(zoo, protocol, seed).record()
        return train_ours(zoo, configs()[name], protocol, seed)[0].record()

    for seed in range(max(protocol.seeds, protocol.other_seeds)):
        for name in names:
            if seed >= (protocol.seeds if name in COMPARED else protocol.other_seeds):
                continue
            one = Trained.of_record(kept.once(name, seed, lambda name=name, seed=seed: make(name, seed)))  # type: ignore[misc]
            found.setdefault(name, []).append(one)
            print(
                f"{name}, seed {seed}: Kendall's tau {kendall_tau(one.predicted, targets):.3f}, "
                f"{one.seconds:.0f} s, best step {one.best_step or '-'}",
                flush=True,
            )
    return found, targets


def report(
    out: Path,
    found: Mapping[str, Sequence[Trained]],
    targets: torch.Tensor,
    zoo: Zoo,
    config: Mapping[str, Any],
) -> str:
    """Write table, figures, predictions and numbers; the table."""
    means = {name: statistics.mean(taus(some, targets)) for name, some in found.items()}
    ranked = sorted(means, key=lambda name: -means[name])
    chosen = {name: statistics.mean(one.validation or 0.0 for one in some) for name, some in found.items()}
    readers = [name for name in found if is_weight_space(name)]
    best = max(readers, key=lambda name: chosen[name]) if readers else ranked[0]
    text = f"{zoo!r}\n\n{table(found, targets)}\n"
    differences = {}
    generator = torch.Generator().manual_seed(0)
    for other in (BASELINE, REFERENCE):
        if other in found and other != best:
            difference = bootstrap_tau_difference(
                stacked(found[best]), stacked(found[other]), targets, generator=generator, resamples=RESAMPLES
            )
            differences[other] = difference
            text += difference_line(best, other, difference, len(targets)) + "\n"
    text += published_table()
    with atomic_write(out / "generalisation.md") as temporary:
        temporary.write_text(text)
    others = [name for name in (BASELINE, REFERENCE) if name in found and name != best]
    draw(out / "generalisation.png", found, targets, [best, *others], in_words(zoo))
    draw_taus(out / "taus.png", found, targets)
    _write_predictions(out / "predictions.csv", found, targets)
    metrics = {f"tau/{name}": mean for name, mean in means.items()}
    for other, difference in differences.items():
        metrics |= {f"{best} minus {other}/{key}": value for key, value in difference._asdict().items()}
    record = {"config": config, "environment": environment(), "best": best, "metrics": metrics}
    runs = {
        name: [
            {"tau": tau, "seconds": one.seconds, "parameters": one.parameters, "best_step": one.best_step}
            for tau, one in zip(taus(some, targets), some, strict=True)
        ]
        for name, some in found.items()
    }
    write_json(out / "result.json", {**record, "runs": runs})
    return text


def _write_predictions(path: Path, found: Mapping[str, Sequence[Trained]], targets: torch.Tensor) -> None:
    columns = {"test_accuracy": targets}
    for name, some in found.items():
        columns |= {f"{name}, seed {seed}": one.predicted for seed, one in enumerate(some)}
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps and networks: whether it runs")
    parser.add_argument("--zoo", type=Path, help="a zoo that is built already")
    parser.add_argument("--images", default="mnist_784", help="images of a zoo that is to be built")
    parser.add_argument("--size", type=int, help="height and width of these")
    parser.add_argument("--networks", type=int, default=2000, help="networks of a zoo that is to be built")
    parser.add_argument("--epochs", type=float, nargs=2, default=(0.2, 2.2), help="range of their training")
    parser.add_argument("--zoo-batch-size", type=int, default=64, help="images in a step of their training")
    parser.add_argument("--only", nargs="+", help=f"some of {', '.join([*configs(), REFERENCE])}")
    parser.add_argument("--steps", type=int, help="steps of every predictor")
    parser.add_argument("--batch-size", type=int, help="networks a step")
    parser.add_argument("--lr", type=float, help="learning rate of this package's predictors")
    parser.add_argument("--seeds", type=int, help=f"trainings of {', '.join(COMPARED)}")
    parser.add_argument("--other-seeds", type=int, help="trainings of each other predictor")
    parser.add_argument(
        "--told", action="store_true", default=None, help="tell the activation of every network"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/generalisation"), help="folder to write to")
    given = parser.parse_args(arguments)
    known = [*configs(), REFERENCE]
    if given.only and not set(given.only) <= set(known):
        parser.error(f"--only has {', '.join(given.only)}, expected some of {', '.join(known)}")
    if given.quick and given.zoo is None:
        given.networks, given.epochs, given.zoo_batch_size = 24, (0.02, 0.1), 16
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all predictors, and write table, figures and numbers."""
    given = parse(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    started = time.perf_counter()
    protocol = QUICK if given.quick else Protocol()
    names = [field.name for field in dataclasses.fields(Protocol)]
    chosen = {name: getattr(given, name, None) for name in names}
    protocol = dataclasses.replace(
        protocol, **{name: value for name, value in chosen.items() if value is not None}
    )
    given.out.mkdir(parents=True, exist_ok=True)
    zoo = make_zoo(given)
    conditions = {**dataclasses.asdict(protocol), "zoo": zoo.meta.get("run", {}), "networks": len(zoo)}
    del conditions["seeds"], conditions["other_seeds"]
    kept = KeptTrainings(given.out / "trainings.json", conditions)
    found, targets = compare(zoo, protocol, given.only or [*configs(), REFERENCE], kept)
    record = {
        "zoo": str(given.zoo or given.images),
        "networks": len(zoo),
        **dataclasses.asdict(protocol),
        "seconds": time.perf_counter() - started,
    }
    print(report(given.out, found, targets, zoo, record))


if __name__ == "__main__":
    main()
