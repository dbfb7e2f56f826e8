"""Classifiers that :mod:`benchmarks.inr_classification` compares, and how each is trained."""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editors import InrSet, coordinates, siren_apply
from editors.inr2array import (
    Inr2Array,
    Inr2ArrayConfig,
    InrClassifier,
    InrClassifierConfig,
    accuracy,
    train_inr2array,
    train_inr_classifier,
)
from editors.inr2array.data import InrParts
from editors.inr2array.run import ArrayTraining, train_head
from nfn_opt.functionals import (
    BodyConfig,
    InvariantConfig,
    LatentEncoderConfig,
    NeuronMessagesConfig,
)
from nfn_opt.training import TrainingConfig
from nfn_opt.weight_space import Features

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package uses names that newer libraries have deprecated
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import GaussianFourierFeatureTransform, IOSinusoidalEncoding, NPLinear, NPPool, TupleOp

INR2ARRAY, DIRECT = "Inr2Array", "direct NP"
"""Names of the two whose difference is the result."""

ENCODING: dict[str, Any] = {"fourier_frequencies": 16, "fourier_scale": 0.5, "position_bands": 3}
"""Encodings of the weights' values and positions in all bodies of NF-Layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes and lengths of the trainings.

    Attributes:
        channels: Channels of the direct classifiers' NF-Layers.
        head_width: Neurons of the hidden layers of their MLPs.
        direct: How direct classifiers are trained.
        attention: How the direct NF-Transformer is trained, of which a step takes several times as long.
        encoder: Encoder of Inr2Array.
        autoencoder: How Inr2Array is trained.
        arrays: How the Transformer on its arrays is trained.
    """

    channels: int = 32
    head_width: int = 256
    direct: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(
            steps=5000, batch_size=32, lr=2e-3, weight_decay=0.05, validate_every=500
        )
    )
    attention: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(
            steps=1500, batch_size=32, lr=1e-3, weight_decay=0.05, validate_every=250
        )
    )
    encoder: LatentEncoderConfig = dataclasses.field(
        default_factory=lambda: LatentEncoderConfig(
            body=NeuronMessagesConfig(channels=96), read_channels=256, heads=8
        )
    )
    autoencoder: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(
            steps=2500, batch_size=64, lr=2e-3, weight_decay=0.01, validate_every=1000
        )
    )
    arrays: ArrayTraining = dataclasses.field(
        default_factory=lambda: ArrayTraining(
            training=TrainingConfig(steps=1500, batch_size=128, lr=1e-3, weight_decay=0.1, validate_every=250)
        )
    )


class Flat(nn.Module):
    """An MLP on all weights in a row, which knows no symmetry."""

    def __init__(self, weights: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise((weights, width, width, width)):
            layers += [nn.Linear(into, out), nn.ReLU(), nn.Dropout(0.1)]
        self.network = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, features: Features) -> Tensor:
        """Logits."""
        return self.network(torch.cat([value.flatten(1) for value in features.values()], 1))


class Reference(nn.Module):
    """The NP classifier of the ``nfn`` package, with the encodings and sizes of :func:`direct`."""

    def __init__(self, config: InvariantConfig, features: Features) -> None:
        super().__init__()
        self.names = list(features)
        spec = network_spec_from_wsfeat(self._of_nfn(features), set_all_dims=True)
        fourier = GaussianFourierFeatureTransform(
            spec, 1, config.fourier_frequencies, scale=config.fourier_scale
        )
        position = IOSinusoidalEncoding(spec)
        channels = config.hidden_channels
        sizes = [position.num_out_chan(fourier.out_channels), *config.hidden_layers * [channels]]
        hidden: list[nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            hidden += [NPLinear(spec, into, out), TupleOp(nn.ReLU())]
        self.network = nn.Sequential(fourier, position, *hidden, NPPool(spec), nn.Flatten())
        width = config.head_width
        self.head = nn.Sequential(
            nn.Linear(channels * NPPool.get_num_outs(spec), width),
            nn.ReLU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(width, config.out_features),
        )

    def forward(self, features: Features) -> Tensor:
        """Logits."""
        return self.head(self.network(self._of_nfn(features)))

    def _of_nfn(self, features: Mapping[str, Tensor]) -> Any:
        values = [features[name].movedim(-1, 1) for name in self.names]
        return WeightSpaceFeatures(values[::2], values[1::2])


class Picture(InrClassifier):
    """A small convolutional network on what the INR shows: it renders, and is no reader of weights."""

    def __init__(self, config: InrClassifierConfig, image_size: tuple[int, int]) -> None:
        super().__init__(config)
        self.image_size = image_size
        channels = config.siren.out_channels
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise((channels, 32, 64, 128)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(128, config.classes)

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """Logits."""
        with torch.no_grad():
            shown = siren_apply(params, coordinates(*self.image_size), self.config.siren)
        return self.head(self.body(shown.mT.unflatten(2, self.image_size)))


Make = Callable[[InrSet, int, Sizes, torch.Generator], InrClassifier]
"""A new classifier of INRs like the given ones, into so many classes."""


def functional(symmetry: Any, **options: Any) -> Make:
    """A direct classifier of NF-Layers."""

    def make(inrs: InrSet, classes: int, sizes: Sizes, generator: torch.Generator) -> InrClassifier:
        usual: dict[str, Any] = {
            "hidden_channels": sizes.channels,
            "hidden_layers": 3,
            "head_width": sizes.head_width,
            "head_dropout": 0.1,
            "norm": True,
        }
        body = InvariantConfig(**{**usual, **ENCODING, **options})
        config = InrClassifierConfig(siren=inrs.config, classes=classes, body=body, symmetry=symmetry)
        return InrClassifier(config, generator=generator)

    return make


def same_encoder(inrs: InrSet, classes: int, sizes: Sizes, generator: torch.Generator) -> InrClassifier:
    """The networks of Inr2Array, trained on the classes from the start."""
    symmetry: Any = symmetry_of(sizes.encoder)
    config = InrClassifierConfig(
        siren=inrs.config,
        classes=classes,
        body=sizes.encoder,
        head=sizes.arrays.classifier,
        symmetry=symmetry,
    )
    return InrClassifier(config, generator=generator)


def flat(inrs: InrSet, classes: int, sizes: Sizes, generator: torch.Generator) -> InrClassifier:
    """An MLP on the weights in a row."""
    classifier = functional("all")(inrs, classes, sizes, generator)
    weights = sum(spec.numel for spec in classifier.reader.space.parameters)
    torch.manual_seed(generator.initial_seed())
    classifier.body = Flat(weights, 2 * sizes.head_width, classes)
    return classifier


def reference(inrs: InrSet, classes: int, sizes: Sizes, generator: torch.Generator) -> InrClassifier:
    """The NP classifier of ``nfn``."""
    classifier = functional("all")(inrs, classes, sizes, generator)
    assert isinstance(classifier.config.body, InvariantConfig)
    torch.manual_seed(generator.initial_seed())
    classifier.body = Reference(classifier.config.body, classifier.reader(inrs[:1].params))
    return classifier


def picture(inrs: InrSet, classes: int, sizes: Sizes, generator: torch.Generator) -> InrClassifier:
    """A convolutional network on the picture."""
    torch.manual_seed(generator.initial_seed())
    return Picture(InrClassifierConfig(siren=inrs.config, classes=classes), inrs.image_size)


DIRECT_METHODS: dict[str, Make] = {
    DIRECT: functional("all"),
    "direct HNP": functional("hidden"),
    "direct NF-Transformer": functional("all", mixing="attention", norm=False),
    "direct, networks of Inr2Array": same_encoder,
    "direct NP of nfn": reference,
    "flat MLP": flat,
    "convolutions on the picture (renders)": picture,
}


def symmetry_of(encoder: LatentEncoderConfig) -> str:
    """Messages tell inputs and outputs apart by themselves; NF-Layers by the position encoding."""
    return "all" if isinstance(encoder.body, BodyConfig) else "hidden"


def train_direct(name: str, parts: InrParts, seed: int, sizes: Sizes) -> dict[str, Any]:
    """Train a classifier of :data:`DIRECT_METHODS`; its record."""
    classes, train = len(parts.class_names), parts.train
    make = DIRECT_METHODS[name]
    classifier = make(train, classes, sizes, torch.Generator().manual_seed(seed))
    how = sizes.attention if "Transformer" in name else sizes.direct
    start = time.process_time()
    result = train_inr_classifier(
        classifier, train, parts.validation, config=dataclasses.replace(how, seed=seed)
    )
    seconds = time.process_time() - start
    return record(classifier, parts, seconds, result.steps, result.best_score)


def train_arrays(parts: InrParts, seed: int, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Train Inr2Array and the Transformer on its arrays; the record. The models of seed 0 are saved."""
    train = parts.train
    symmetry: Any = symmetry_of(sizes.encoder)
    config = Inr2ArrayConfig(
        siren=train.config, image_size=train.image_size, encoder=sizes.encoder, symmetry=symmetry
    )
    model = Inr2Array(config, generator=torch.Generator().manual_seed(seed))
    start = time.process_time()
    autoencoder = dataclasses.replace(sizes.autoencoder, seed=seed)
    result = train_inr2array(model, train, parts.validation, config=autoencoder)
    head, trained = train_head(model, parts, sizes.arrays, seed)
    seconds = time.process_time() - start
    classifier = InrClassifier.on_array(model, head)
    if seed == 0:
        model.save(folder / "inr2array.safetensors")
        classifier.save(folder / "classifier.safetensors")
    found = record(classifier, parts, seconds, result.steps + trained.steps, trained.best_score)
    error = 4 * (model.reconstruct(parts.test) - parts.test.render()).square().mean().item()
    return {**found, "reconstruction_mse": error}


def record(
    classifier: InrClassifier, parts: InrParts, seconds: float, steps: int, validation: float
) -> dict[str, Any]:
    """What is kept of a training."""
    assert parts.test.labels is not None
    return {
        "accuracy": accuracy(classifier.predict(parts.test), parts.test.labels),
        "validation_accuracy": validation,
        "processor_seconds": seconds,
        "steps": steps,
        "parameters": sum(p.numel() for p in classifier.parameters()),
    }
