"""Networks trained under masks that were generated for their initial weights, beside pruned, random and no masks.

python -m benchmarks.winning_tickets --network mlp|cnn [--images FILE] [--quick] --out FOLDER

The last experiment of arXiv:2302.14040. Networks are pruned to 95 % by iterative magnitude pruning, whose masks a
conditional variational autoencoder learns to predict from the initial weights, with NP, HNP and pointwise bodies. For
initial weights that it has not seen it draws masks, or gives the most likely ones; networks are trained under these and
others from the same initial weights, on the same images in the same order, and scored on held-out images. The masks
beside the generated ones are: those of pruning itself (IMP); of the largest initial weights; random ones of as many
weights; random ones with as many weights in each layer as IMP keeps, and even at each input (pixel, kernel position),
for the same initial weights. The last two know more than a mask of that sparsity.

The network of the paper is not known. Here: an MLP 784-64-10 on images in [0, 1], or a CNN of three convolutions of 16
channels on colour images. Intervals are for the mean over initial weights, 95 % (Student's t); those of generated masks
are of the means over the trainings of the generator. What is complete in FOLDER is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.winning_tickets_report import draw, rows_of, table
from nfn_opt.data import load_images
from nfn_opt.data.tickets import (
    Architecture,
    Masks,
    MlpArchitecture,
    PruningOptions,
    TicketSet,
    TrainOptions,
    accuracy,
    build_tickets,
    magnitude_masks,
    overlap,
    prunable,
    random_masks,
    random_masks_like,
    ticket_data,
    train_masked,
)
from nfn_opt.data.zoos import CnnArchitecture
from nfn_opt.data.zoos.training import ZooData
from nfn_opt.mask_generator import MaskGenerator, MaskGeneratorConfig, evidence_bound, train_mask_generator
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.training import TrainingConfig

SOURCES = {"mlp": "mnist_784", "cnn": "CIFAR_10"}
"""Where the images come from, if no file is given."""

TEST_FRACTION = 1 / 6

MOST_LIKELY = ", most likely"
"""Masks without the noise of the draw: the most likely weights, given a latent vector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Sizes.

    Attributes:
        architecture: The networks.
        training: How each is trained, under any mask.
        bodies: The generators, by name.
        counts: Networks for training the generators, for choosing their weights, and for the scores.
        pruning: Sparsity, rounds and scope.
        generator: How generators are trained.
        seeds: Trainings of each generator.
        score_images: Held-out images of the scores.
        chunk: Networks trained in step.
    """

    architecture: Architecture
    training: TrainOptions
    bodies: Mapping[str, MaskGeneratorConfig]
    counts: tuple[int, int, int] = (60, 6, 20)
    pruning: PruningOptions = dataclasses.field(default_factory=PruningOptions)
    generator: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(steps=150, batch_size=4, lr=1e-2, warmup=10, validate_every=30)
    )
    seeds: int = 3
    score_images: int = 10_000
    chunk: int = 4


PROTOCOLS = {
    "mlp": Protocol(
        architecture=MlpArchitecture(),
        training=TrainOptions(epochs=1, learning_rate=1e-2),
        bodies={
            "NP": MaskGeneratorConfig(body="np"),
            "HNP": MaskGeneratorConfig(body="hnp", hidden_channels=2, latent_channels=2),
            "pointwise": MaskGeneratorConfig(body="pointwise"),
        },
    ),
    "cnn": Protocol(
        architecture=CnnArchitecture(in_channels=3),
        training=TrainOptions(epochs=3, batch_size=64, learning_rate=1e-2),
        bodies={
            name: MaskGeneratorConfig(body=name.lower(), hidden_channels=8)  # type: ignore[arg-type]
            for name in ("NP", "HNP", "pointwise")
        },
    ),
}


def quick(protocol: Protocol) -> Protocol:
    """A few networks and steps: whether it runs."""
    return dataclasses.replace(
        protocol,
        counts=(6, 2, 3),
        training=dataclasses.replace(protocol.training, epochs=0.02),
        generator=dataclasses.replace(protocol.generator, steps=3, validate_every=3),
        seeds=1,
        score_images=200,
    )


def parts_of(tickets: TicketSet, counts: Sequence[int]) -> dict[str, TicketSet]:
    """Networks for training, for choosing, for the scores."""
    ends = [sum(counts[:number]) for number in range(4)]
    return {
        name: tickets[slice(start, end)]
        for name, start, end in zip(("train", "validation", "test"), ends, ends[1:], strict=False)
    }


def plain_masks(test: TicketSet, protocol: Protocol) -> dict[str, Masks]:
    """The masks that no generator draws."""
    sparsity, scope = protocol.pruning.sparsity, protocol.pruning.scope
    generator = seeded_generator(0, "winning tickets/random masks")
    return {
        "IMP": dict(test.masks),
        "largest initial weights": magnitude_masks(test.params, sparsity, scope=scope),
        "random": random_masks(prunable(test.architecture), len(test), sparsity, generator),
        "random, layers as IMP": random_masks_like(test.masks, generator),
        "random, inputs as IMP": random_masks_like(test.masks, generator, axes="inputs"),
    }


def generator_of(
    name: str, seed: int, protocol: Protocol, parts: Mapping[str, TicketSet], folder: Path
) -> tuple[MaskGenerator, float]:
    """Train a generator, or read the one that was trained before; with the seconds of its training."""
    place = folder / "generators" / f"{name.lower()}_{seed}"
    path = place.with_suffix(".safetensors")
    seconds = place.with_suffix(".json")
    if not (path.exists() and seconds.exists()):
        model = MaskGenerator(
            protocol.architecture,
            protocol.bodies[name],
            generator=seeded_generator(seed, f"generator/{name}"),
        )
        config = dataclasses.replace(protocol.generator, seed=seed)
        result = train_mask_generator(
            model, parts["train"], parts["validation"], config=config, folder=place, resume=True
        )
        model.save(path, {"best_step": result.best_step, "bound": result.best_score})
        write_json(seconds, {"seconds": result.seconds, "best_step": result.best_step})
    return MaskGenerator.load(path), float(json.loads(seconds.read_text())["seconds"])


def accuracies(
    test: TicketSet, masks: Mapping[str, Tensor] | None, data: ZooData, protocol: Protocol
) -> Tensor:
    """Accuracy on held-out images of each network, trained under a mask, shape (N,)."""
    found = []
    for start in range(0, len(test), protocol.chunk):
        some = slice(start, start + protocol.chunk)
        params = {name: value[some] for name, value in test.params.items()}
        kept = None if masks is None else {name: mask[some] for name, mask in masks.items()}
        order = seeded_generator(start, "winning tickets/order")
        trained = train_masked(params, kept, data, protocol.architecture, protocol.training, order)
        found.append(accuracy(trained, data, protocol.architecture, protocol.score_images))
    return torch.cat(found)


class Record:
    """The scores of each kind of mask, kept in a file as they come.

    Args:
        path: The file.
        key: What decides the scores; those of another key are not used.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self.key = path, json.loads(json.dumps(key))
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.scores: dict[str, dict[str, Any]] = stored["scores"] if stored.get("key") == self.key else {}

    def of(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The scores of one kind, measured if they are not there."""
        if name not in self.scores:
            self.scores[name] = measure()
            write_json(self.path, {"key": self.key, "scores": self.scores})
        print(f"{name}: accuracy {torch.tensor(self.scores[name]['accuracy']).mean():.4f}", flush=True)
        return self.scores[name]


def measured(
    test: TicketSet, masks: Masks | None, data: ZooData, protocol: Protocol, **more: float
) -> dict[str, Any]:
    """Scores of networks trained under masks."""
    found: dict[str, Any] = {"accuracy": accuracies(test, masks, data, protocol).tolist(), **more}
    if masks is not None:
        found["overlap"] = overlap(masks, test.masks).mean().item()
        found["layers"] = {name: mask.float().mean().item() for name, mask in masks.items()}
    return found


def generated(
    name: str,
    seed: int,
    temperature: float,
    protocol: Protocol,
    parts: Mapping[str, TicketSet],
    data: ZooData,
    folder: Path,
) -> tuple[Masks, Callable[[], dict[str, Any]]]:
    """The masks that one generator gives, and what measures them."""
    model, seconds = generator_of(name, seed, protocol, parts, folder)
    test, pruning = parts["test"], protocol.pruning
    draws = seeded_generator(seed, "winning tickets/draws")
    masks = model.generate(test.params, pruning.sparsity, draws, temperature=temperature, scope=pruning.scope)
    bound = evidence_bound(model, test)
    return masks, lambda: measured(test, masks, data, protocol, bound=bound, seconds=seconds)


def run(options: argparse.Namespace, protocol: Protocol) -> dict[str, Any]:
    """Prune, train the generators and the networks, write table, pictures and numbers."""
    options.out.mkdir(parents=True, exist_ok=True)
    images = load_images(options.images or SOURCES[options.network])
    path = options.out / f"tickets_{options.network}.safetensors"
    tickets = build_tickets(
        images,
        path,
        count=sum(protocol.counts),
        architecture=protocol.architecture,
        pruning=protocol.pruning,
        training=protocol.training,
        test_fraction=TEST_FRACTION,
        score_images=protocol.score_images,
        chunk_size=protocol.chunk,
        resume=path.exists() or Path(f"{path}.parts").exists(),
        progress=True,
    )
    dealt = images.split({"train": 1 - TEST_FRACTION, "test": TEST_FRACTION}, seed=0)
    data = ticket_data(dealt["train"], dealt["test"], protocol.architecture)
    parts = parts_of(tickets, protocol.counts)
    settings = dataclasses.asdict(protocol)
    key = {"protocol": settings, "images": images.checksum}
    record = Record(options.out / "scores.json", key)
    started = time.perf_counter()
    pictures: dict[str, Masks] = {}
    record.of("dense", lambda: measured(parts["test"], None, data, protocol))
    for name, masks in plain_masks(parts["test"], protocol).items():
        pictures[name] = masks
        record.of(name, lambda masks=masks: measured(parts["test"], masks, data, protocol))  # type: ignore[misc]
    for name in protocol.bodies:
        for row, temperature in ((name, 1.0), (name + MOST_LIKELY, 0.0)):
            for seed in range(protocol.seeds):
                masks, measure = generated(name, seed, temperature, protocol, parts, data, options.out)
                pictures.setdefault(row, masks)
                record.of(f"{row}/{seed}", measure)
    rows = rows_of(record.scores)
    text = table(rows)
    print(text)
    (options.out / "winning_tickets.md").write_text(text)
    draw(options.out / "winning_tickets.png", rows, pictures, protocol.architecture)
    result = {
        "config": {"network": options.network, "images": images.source, **settings},
        "environment": environment(),
        "seconds": time.perf_counter() - started,
        "metrics": {f"{name}/{what}": value for name, row in rows.items() for what, value in row.items()},
        "scores": record.scores,
    }
    write_json(options.out / "result.json", result)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=sorted(PROTOCOLS), default="mlp")
    parser.add_argument("--images", help="file of images; downloaded from OpenML if not given")
    parser.add_argument("--quick", action="store_true", help="a few networks and steps: whether it runs")
    parser.add_argument("--counts", type=int, nargs=3, help="networks for training, choosing, scores")
    parser.add_argument("--seeds", type=int, help="trainings of each generator")
    parser.add_argument("--steps", type=int, help="steps of the training of a generator")
    parser.add_argument("--epochs", type=float, help="passes over the images in the training of a network")
    parser.add_argument("--rounds", type=int, help="rounds of pruning")
    parser.add_argument("--out", type=Path, default=Path("runs/winning_tickets"), help="folder to write to")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    protocol = PROTOCOLS[given.network]
    protocol = quick(protocol) if given.quick else protocol
    if given.counts:
        protocol = dataclasses.replace(protocol, counts=tuple(given.counts))
    if given.seeds:
        protocol = dataclasses.replace(protocol, seeds=given.seeds)
    if given.steps:
        protocol = dataclasses.replace(
            protocol, generator=dataclasses.replace(protocol.generator, steps=given.steps)
        )
    if given.epochs:
        protocol = dataclasses.replace(
            protocol, training=dataclasses.replace(protocol.training, epochs=given.epochs)
        )
    if given.rounds:
        protocol = dataclasses.replace(
            protocol, pruning=dataclasses.replace(protocol.pruning, rounds=given.rounds)
        )
    run(given, protocol)


if __name__ == "__main__":
    main()
