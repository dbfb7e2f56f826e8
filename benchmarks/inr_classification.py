"""Classes of images from the weights of their INRs: directly, and through Inr2Array.

python -m benchmarks.inr_classification --data mnist [--images FILE] [--quick | --full] --out FOLDER
python -m benchmarks.inr_classification --data cifar [--images FILE] [--quick | --full] --out FOLDER

One SIREN is fitted to each image from initial weights of its own, and further ones to the training images only
(views). All classifiers see the same INRs, brought to one representative of the signs and phases of their sines, each
parameter divided by its size. The weights of the best validation accuracy are scored on INRs of other images.

Inr2Array (arXiv:2305.13546) learns without labels to show what an INR shows, from its weights; a Transformer is then
trained on its frozen arrays. Its processor time is that of both; that of the direct NP classifier (arXiv:2302.14040)
stands beside it, and --direct-steps changes it. One row reads the weights by the networks of Inr2Array without the
training to show the picture, so that the two can be told apart. The last row renders the INR, and reads no weights.

Fitted INRs and finished trainings stay in the folder: the same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.inr_classification_methods import (
    DIRECT,
    DIRECT_METHODS,
    INR2ARRAY,
    Sizes,
    train_arrays,
    train_direct,
)
from benchmarks.inr_classification_report import PUBLISHED, metrics, table
from benchmarks.kept_trainings import KeptTrainings
from editors.inr2array import Inr2Array
from editors.inr2array.data import InrParts, fit_parts
from editors.inr2array.pictures import (
    draw_map,
    draw_neighbours,
    draw_reconstructions,
    map_arrays,
    nearest,
    one_of_each,
)
from nfn_opt.artifacts import atomic_write
from nfn_opt.data import load_images
from nfn_opt.functionals import ArrayClassifierConfig, BodyConfig, LatentEncoderConfig
from nfn_opt.meta.config import plain_record
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.training import TrainingConfig

SOURCES = {"mnist": "mnist_784", "cifar": "CIFAR_10"}
"""Where the images come from, if no file is given."""

SHOWN_ON_MAP = 1000
"""INRs on the map, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is compared on what.

    Attributes:
        counts: Images of training, validation and test.
        views: Further INRs of each training image.
        seeds: Trainings of Inr2Array and of the direct NP classifier.
        other_seeds: Trainings of each other classifier; 0 leaves them out.
        others: Names of these.
        sizes: Sizes and lengths of the trainings.
    """

    counts: tuple[int, int, int] = (8000, 500, 2000)
    views: int = 1
    seeds: int = 3
    other_seeds: int = 1
    others: tuple[str, ...] = tuple(name for name in DIRECT_METHODS if name != DIRECT)
    sizes: Sizes = dataclasses.field(default_factory=Sizes)

    def conditions(self) -> dict[str, Any]:
        """What every training depends on: all but how many there are."""
        how_many = ("seeds", "other_seeds", "others")
        return {name: value for name, value in plain_record(self).items() if name not in how_many}


def _short(steps: int) -> TrainingConfig:
    return TrainingConfig(steps=steps, batch_size=16, warmup=2, validate_every=steps)


def quick() -> Protocol:
    """A few INRs and steps: whether it runs."""
    usual = Sizes()
    sizes = dataclasses.replace(
        usual,
        channels=4,
        head_width=16,
        direct=_short(4),
        attention=_short(2),
        autoencoder=_short(4),
        arrays=dataclasses.replace(usual.arrays, training=_short(4)),
    )
    return Protocol(counts=(60, 20, 40), views=1, seeds=2, sizes=sizes)


def full(data: str) -> Protocol:
    """The papers' protocol: 60,000 INRs with 10 or 20 further views, 200,000 steps, networks as wide as theirs."""
    encoder = LatentEncoderConfig(
        body=BodyConfig(
            mixing="attention",
            hidden_layers=7,
            hidden_channels=256,
            fourier_frequencies=128,
            fourier_scale=3.0,
        ),
        latent_channels=256,
        blocks=0,
    )
    usual = Sizes()
    arrays = dataclasses.replace(
        usual.arrays,
        classifier=ArrayClassifierConfig(width=512, layers=12),
        training=TrainingConfig(steps=35_000, batch_size=128, lr=1e-4, weight_decay=0.1, validate_every=1000),
    )
    direct = TrainingConfig(steps=200_000, batch_size=32, lr=1e-4, warmup=10_000, validate_every=3000)
    sizes = Sizes(
        channels=512,
        head_width=1000,
        direct=direct,
        attention=direct,
        encoder=encoder,
        autoencoder=TrainingConfig(
            steps=200_000, batch_size=64, lr=1e-4, warmup=10_000, weight_decay=0.01, validate_every=3000
        ),
        arrays=arrays,
    )
    views = {"mnist": 10, "cifar": 20}[data]
    return Protocol(counts=(45_000, 5_000, 10_000), views=views, other_seeds=3, sizes=sizes)


def run(options: argparse.Namespace, protocol: Protocol) -> str:
    """Train all, and write table, pictures and numbers; the table."""
    started, out = time.perf_counter(), options.out
    images = load_images(options.images or SOURCES[options.data], gray=options.data == "mnist")
    parts = fit_parts(images, protocol.counts, out, views=protocol.views, progress=True)
    conditions = {"data": options.data, "images": images.checksum, **protocol.conditions()}
    kept = KeptTrainings(out / "trainings.json", conditions)
    found = compare(parts, protocol, kept, out)
    text = "\n".join(
        [
            f"{sum(protocol.counts):,} images ({options.data}), {len(parts.train):,} INRs to train on "
            f"({protocol.views} further views of each image), {len(parts.test):,} to test; "
            f"{parts.test.psnr.mean():.1f} dB.\n",
            table(found, DIRECT, PUBLISHED[options.data]),
        ]
    )
    with atomic_write(out / "inr_classification.md") as temporary:
        temporary.write_text(text)
    scores = metrics(found, INR2ARRAY, DIRECT)
    if protocol.seeds:
        scores |= draw(parts, out)
    result = {
        "config": {"data": options.data, "images": options.images, **plain_record(protocol)},
        "environment": environment(),
        "seconds": time.perf_counter() - started,
        "metrics": scores,
        "trainings": found,
    }
    write_json(out / "result.json", result)
    return text


def compare(
    parts: InrParts, protocol: Protocol, kept: KeptTrainings, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Records of all trainings, by name; Inr2Array and the direct NP classifier in turn, then the others."""
    found: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, seed: int) -> None:
        def make() -> dict[str, Any]:
            if name == INR2ARRAY:
                return train_arrays(parts, seed, protocol.sizes, out)
            return train_direct(name, parts, seed, protocol.sizes)

        one = kept.once(name, seed, make)
        found.setdefault(name, []).append(one)
        print(
            f"{name}, seed {seed}: {one['accuracy']:.1%} of the test INRs ({one['validation_accuracy']:.1%} of the "
            f"validation INRs), {one['steps']} steps, {one['processor_seconds']:.0f} s of processor time",
            flush=True,
        )

    for seed in range(protocol.seeds):
        add(INR2ARRAY, seed)
        add(DIRECT, seed)
    for seed in range(protocol.other_seeds):
        for name in protocol.others:
            add(name, seed)
    return found


def draw(parts: InrParts, out: Path) -> dict[str, float]:
    """Pictures of the arrays of seed 0, and how often the nearest training INR is of the same class."""
    model = Inr2Array.load(out / "inr2array.safetensors")
    test, gallery = parts.test, parts.views[0]
    assert test.labels is not None
    assert gallery.labels is not None
    arrays = model.embed(test)
    near = nearest(arrays, model.embed(gallery), 3)
    share = (gallery.labels[near[:, 0]] == test.labels).float().mean().item()
    some = one_of_each(test.labels, 10)
    draw_reconstructions(
        out / "reconstructions.png", model, test[some], "Test INRs, and what their arrays show"
    )
    title = (
        f"Test INRs and the training INRs of the nearest arrays; the first is of their class in {share:.0%}"
    )
    draw_neighbours(out / "neighbours.png", test[some], gallery, near[some], title)
    places = map_arrays(arrays[:SHOWN_ON_MAP])
    title = f"t-SNE of the arrays of {len(places)} test INRs, learned without labels"
    draw_map(out / "map.png", places, test.labels[:SHOWN_ON_MAP], parts.class_names, title)
    return {"neighbour_accuracy": share}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=sorted(SOURCES), default="mnist")
    parser.add_argument("--images", help="file of images; downloaded from OpenML if not given")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few INRs and steps: whether it runs")
    size.add_argument("--full", action="store_true", help="the papers' protocol; days on a GPU")
    parser.add_argument("--counts", type=int, nargs=3, help="images of training, validation and test")
    parser.add_argument("--views", type=int, help="further INRs of each training image")
    parser.add_argument("--seeds", type=int, help="trainings of Inr2Array and of the direct NP classifier")
    parser.add_argument("--other-seeds", type=int, help="trainings of each other classifier")
    parser.add_argument(
        "--others", nargs="+", choices=Protocol().others, help="some of the other classifiers"
    )
    parser.add_argument("--direct-steps", type=int, help="steps of direct classifiers")
    parser.add_argument("--autoencoder-steps", type=int, help="steps of Inr2Array")
    parser.add_argument("--array-steps", type=int, help="steps of the Transformer on its arrays")
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if not given")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/inr_classification"), help="folder to write to"
    )
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    protocol = quick() if options.quick else full(options.data) if options.full else Protocol()
    print(run(options, chosen(protocol, options)))


def chosen(protocol: Protocol, options: argparse.Namespace) -> Protocol:
    """The protocol with what the command line says otherwise."""
    given = {name: getattr(options, name) for name in ("views", "seeds", "other_seeds")}
    given |= {
        name: None if getattr(options, name) is None else tuple(getattr(options, name))
        for name in ("counts", "others")
    }
    sizes = protocol.sizes

    def steps(config: TrainingConfig, count: int | None) -> TrainingConfig:
        return config if count is None else dataclasses.replace(config, steps=count)

    sizes = dataclasses.replace(
        sizes,
        direct=steps(sizes.direct, options.direct_steps),
        autoencoder=steps(sizes.autoencoder, options.autoencoder_steps),
        arrays=dataclasses.replace(sizes.arrays, training=steps(sizes.arrays.training, options.array_steps)),
    )
    kept = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(protocol, sizes=sizes, **kept)


if __name__ == "__main__":
    main()
