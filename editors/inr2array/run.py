"""A whole run: fit INRs with views, train an Inr2Array, embed, train a classifier of its arrays, draw, score."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from editors.fit_options import FitOptions
from editors.inr2array.classifier import InrClassifier
from editors.inr2array.data import InrParts, fit_parts
from editors.inr2array.decoder import DecoderConfig
from editors.inr2array.model import Inr2Array, Inr2ArrayConfig
from editors.inr2array.pictures import (
    draw_map,
    draw_neighbours,
    draw_reconstructions,
    map_arrays,
    nearest,
    one_of_each,
)
from editors.inr2array.training import (
    accuracy,
    check_labels,
    check_mixing,
    train_array_classifier,
    train_inr2array,
)
from editors.siren import SirenConfig
from nfn_opt.data import load_images
from nfn_opt.functionals import (
    ArrayClassifier,
    ArrayClassifierConfig,
    BodyConfig,
    LatentEncoderConfig,
    NeuronMessagesConfig,
)
from nfn_opt.meta.config import plain_record
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.training import TrainingConfig, TrainingResult

__all__ = ["ArrayTraining", "Inr2ArrayRun", "Inr2ArrayRunResult", "run_inr2array", "train_head"]

SHOWN_ON_MAP = 1000
"""INRs on the map, at most: t-SNE takes a second for every hundred."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayTraining:
    """How a classifier of arrays is trained.

    Attributes:
        classifier: Its sizes.
        training: Steps and learning rate.
        mixup: Parameter of the beta distribution by which arrays are mixed; 0 mixes none.
        smoothing: Share of a label that is spread over all classes.
    """

    classifier: ArrayClassifierConfig = dataclasses.field(default_factory=ArrayClassifierConfig)
    training: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(
            steps=3000, batch_size=128, lr=1e-3, weight_decay=0.1, validate_every=250
        )
    )
    mixup: float = 0.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_mixing(self.mixup, self.smoothing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inr2ArrayRun:
    """Everything that a run can be told.

    Attributes:
        images: Any source of nfn_opt.data.load_images: a name, an .npz file, a folder of pictures.
        out: Folder to write to. With `resume` what it holds of the same run is read, not made again; INRs always are.
        size: Height and width to resize the images to, in pixels.
        gray: Turn the images gray.
        counts: Images of training, validation and test.
        views: Further fits of each training image.
        fit: How INRs are fitted.
        body: What reads the weights; messages: between neurons, the cheapest; np, hnp: NF-Layers (arXiv:2302.14040);
            nft: NF-Transformer blocks, as in arXiv:2305.13546.
        channels: Channels of the body.
        read_channels: Channels to which these are widened before latents attend to them; not at all if not given.
        body_layers: Hidden layers of a body of NF-Layers or blocks.
        latent_channels: Channels of a latent.
        grid: Rows and columns of the array.
        decoder: How patches are made from latents.
        training: How the Inr2Array is trained; its seed is `seed`.
        pixels: Pixels that a step compares; all if not given.
        arrays: How the classifier of its arrays is trained; its seed is `seed`, and places, latent channels and classes
            follow from the rest.
        seed: Seed of both trainings' initial weights and orders.
        resume: Go on with a training that was stopped.
    """

    images: str
    out: Path
    size: int | None = None
    gray: bool = False
    counts: tuple[int, int, int] = (8000, 500, 1500)
    views: int = 2
    fit: FitOptions = dataclasses.field(default_factory=FitOptions)
    body: Literal["messages", "np", "hnp", "nft"] = "messages"
    channels: int = 96
    read_channels: int | None = 256
    body_layers: int = 3
    latent_channels: int = 64
    grid: tuple[int, int] = (4, 4)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    training: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(
            steps=6000, batch_size=64, lr=2e-3, weight_decay=0.01, validate_every=1000
        )
    )
    pixels: int | None = None
    arrays: ArrayTraining = dataclasses.field(default_factory=ArrayTraining)
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.body not in ("messages", "np", "hnp", "nft"):
            raise ValueError(f"body is {self.body!r}, expected messages, np, hnp or nft")

    def model(self, siren: SirenConfig, image_size: tuple[int, int]) -> Inr2ArrayConfig:
        """The Inr2Array of INRs of one architecture."""
        return Inr2ArrayConfig(
            siren=siren,
            image_size=image_size,
            grid=self.grid,
            encoder=LatentEncoderConfig(
                body=self.body_config(),
                read_channels=self.read_channels,
                latent_channels=self.latent_channels,
            ),
            decoder=self.decoder,
            symmetry="hidden" if self.body in ("messages", "hnp") else "all",
        )

    def body_config(self) -> BodyConfig | NeuronMessagesConfig:
        """The body of the encoder."""
        if self.body == "messages":
            return NeuronMessagesConfig(channels=self.channels)
        return BodyConfig(
            hidden_channels=self.channels,
            hidden_layers=self.body_layers,
            fourier_frequencies=16,
            fourier_scale=0.5,
            position_bands=3,
            norm=self.body != "nft",
            mixing="attention" if self.body == "nft" else "linear",
        )


@dataclasses.dataclass(frozen=True)
class Inr2ArrayRunResult:
    """What a run has made.

    Attributes:
        model: The Inr2Array.
        classifier: The classifier of INRs through its arrays.
        scores: ``accuracy`` and ``neighbour_accuracy`` (share of INRs whose nearest training INR has their class)
            in [0, 1], and ``reconstruction_mse``, values in [-1, 1], all on the test INRs.
        finished: Whether both trainings are at their end.
    """

    model: Inr2Array
    classifier: InrClassifier | None
    scores: dict[str, float]
    finished: bool = True


def run_inr2array(
    run: Inr2ArrayRun,
    *,
    command: str = "",
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> Inr2ArrayRunResult:
    """Make a run, or go on with one.

    Args:
        run: The run.
        command: How it was started, kept in the files.
        say: Told about the progress.
        progress: Show progress bars.

    Returns:
        What it has made; it is in the folder as well: ``inr2array.safetensors``, ``classifier.safetensors``,
        ``reconstructions.png``, ``neighbours.png``, ``map.png``, ``result.json``.

    Raises:
        ValueError: If an option is out of range, or the folder holds a run with other options.
        FileExistsError: If the folder holds a training and `resume` is not asked for.
    """
    started = time.perf_counter()
    images = load_images(run.images, size=run.size, gray=run.gray)
    if len(images.class_names) < 2:
        raise ValueError(
            f"{run.images} has {len(images.class_names)} classes, expected 2 or more for the classifier of arrays; "
            "give labelled images, such as a folder with one folder for each class"
        )
    parts = fit_parts(images, run.counts, run.out, views=run.views, options=run.fit, progress=progress)
    say(f"{len(parts.train)} INRs to train on, {parts.validation!r}")
    first = parts.views[0]
    model = Inr2Array(
        run.model(first.config, first.image_size), generator=torch.Generator().manual_seed(run.seed)
    )
    options: dict[str, Any] = {"resume": run.resume, "command": command, "progress": progress}
    result = train_inr2array(
        model,
        parts.train,
        parts.validation,
        config=dataclasses.replace(run.training, seed=run.seed),
        pixels=run.pixels,
        folder=run.out / "autoencoder",
        **options,
    )
    if result.stopped_by is not None:
        return Inr2ArrayRunResult(model, None, {}, finished=False)
    say(f"mean squared error {-result.best_score:.4f} on validation INRs, {result.seconds:.0f} s")
    head, trained = train_head(model, parts, run.arrays, run.seed, folder=run.out / "head", **options)
    if trained.stopped_by is not None:
        return Inr2ArrayRunResult(model, None, {}, finished=False)
    classifier = InrClassifier.on_array(model, head)
    scores = _finish(run, model, classifier, parts)
    record = {"command": command, "run": plain_record(run), "environment": environment(), "scores": scores}
    model.save(run.out / "inr2array.safetensors", record)
    classifier.save(run.out / "classifier.safetensors", record)
    write_json(
        run.out / "result.json", {**record, "metrics": scores, "seconds": time.perf_counter() - started}
    )
    return Inr2ArrayRunResult(model, classifier, scores)


def train_head(
    model: Inr2Array, parts: InrParts, how: ArrayTraining, seed: int, **options: Any
) -> tuple[ArrayClassifier, TrainingResult]:
    """A classifier trained on what an Inr2Array makes of labelled INRs; the Inr2Array stays as it is.

    Args:
        model: The Inr2Array.
        parts: The INRs; all views of the training images are used.
        how: How the classifier is trained.
        seed: Seed of its initial weights and of the order.
        **options: ``folder``, ``resume``, ``command`` and ``progress`` of :func:`nfn_opt.training.train`.

    Raises:
        ValueError: If the INRs have no labels.
    """
    train, classes = parts.train, len(parts.class_names)
    labels, wanted = (check_labels(some, classes) for some in (train, parts.validation))
    config = dataclasses.replace(
        how.classifier,
        places=model.config.encoder.latents,
        latent_channels=model.config.encoder.latent_channels,
        classes=classes,
    )
    head = ArrayClassifier(config, generator=torch.Generator().manual_seed(seed))
    result = train_array_classifier(
        head,
        model.embed(train),
        labels,
        (model.embed(parts.validation), wanted),
        config=dataclasses.replace(how.training, seed=seed),
        mixup=how.mixup,
        smoothing=how.smoothing,
        **options,
    )
    return head, result


def _finish(
    run: Inr2ArrayRun, model: Inr2Array, classifier: InrClassifier, parts: InrParts
) -> dict[str, float]:
    """Draw, and measure on the test INRs."""
    test, gallery = parts.test, parts.views[0]
    arrays, others = model.embed(test), model.embed(gallery)
    labels, known = (check_labels(some, len(parts.class_names)) for some in (test, gallery))
    near = nearest(arrays, others, 3)
    scores = {
        "accuracy": accuracy(classifier.predict(test), labels),
        "neighbour_accuracy": accuracy(known[near[:, 0]], labels),
        "reconstruction_mse": 4 * (model.reconstruct(test) - test.render()).square().mean().item(),
    }
    some = one_of_each(labels, 10)
    title = f"Test INRs, mean squared error {scores['reconstruction_mse']:.4f}, values in [-1, 1]"
    draw_reconstructions(run.out / "reconstructions.png", model, test[some], title)
    share = f"{scores['neighbour_accuracy']:.1%}"
    title = f"Test INRs and the training INRs of the nearest arrays; the first is of their class in {share}"
    draw_neighbours(run.out / "neighbours.png", test[some], gallery, near[some], title)
    shown = slice(0, SHOWN_ON_MAP)
    places = map_arrays(arrays[shown], seed=run.seed)
    draw_map(
        run.out / "map.png",
        places,
        labels[shown],
        parts.class_names,
        f"t-SNE of the arrays of {len(places)} test INRs",
    )
    return scores
