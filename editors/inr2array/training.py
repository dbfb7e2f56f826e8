"""Training of what reads INRs: the autoencoder, classifiers of weights, classifiers of arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editors.inr2array.classifier import InrClassifier
from editors.inr2array.model import Inr2Array
from editors.inr_set import InrSet
from nfn_opt.functionals import ArrayClassifier
from nfn_opt.training import TrainingConfig, TrainingResult, train

__all__ = ["accuracy", "check_labels", "train_array_classifier", "train_inr2array", "train_inr_classifier"]

ARRAYS_PER_CHUNK = 1024
"""Arrays classified at once outside training."""


def train_inr2array(
    model: Inr2Array,
    inrs: InrSet,
    validation: InrSet,
    *,
    config: TrainingConfig,
    pixels: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    command: str = "",
    progress: bool = False,
) -> TrainingResult:
    """Train an Inr2Array, in place, to show what INRs show. No labels are used.

    Args:
        model: The model; it takes the sizes of weights from `inrs`.
        inrs: INRs to train on; several fits of the same images are welcome.
        validation: INRs of other images; minus the mean squared error on them, values in [-1, 1], is the score that
            chooses the weights.
        config: How to train.
        pixels: Pixels that a step compares, drawn anew for each; all if not given.
        folder: As in :func:`nfn_opt.training.train`, and so are the following.
        resume: Go on with the training that the folder holds.
        command: How the training was started.
        progress: Show a progress bar.

    Returns:
        The course of the training.

    Raises:
        ValueError: If INRs are of another architecture or image size than the model was made for, or `pixels` is out
            of range; otherwise as :func:`nfn_opt.training.train`.
    """
    total = model.config.image_size[0] * model.config.image_size[1]
    if pixels is not None and not 1 <= pixels <= total:
        raise ValueError(f"pixels is {pixels}, expected 1 to {total}, all of an image, or None")
    for part in (inrs, validation):
        model.reader.check(part)
        if part.image_size != model.config.image_size:
            raise ValueError(
                f"the INRs are of images of {part.image_size}, expected {model.config.image_size} as the model was "
                "made for"
            )
    model.reader.standardize(inrs)
    # Half precision halves what is kept in memory; its rounding lies far below the error.
    data = {**inrs.params, "target": (2 * inrs.render() - 1).flatten(1, 2).half()}
    wanted = validation.render()

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        shown, target = model(_weights(batch, inrs)), batch["target"].to(model.reader.scale.dtype)
        if pixels is not None:
            chosen = torch.randperm(total, generator=generator)[:pixels].to(shown.device)
            shown, target = shown[:, chosen], target[:, chosen]
        return (shown - target).square().mean()

    return train(
        model,
        data,
        loss,
        config=config,
        score=lambda: -4 * (model.reconstruct(validation) - wanted).square().mean().item(),
        folder=folder,
        resume=resume,
        record={"model": model.config.record(), "pixels": pixels, "inrs": len(inrs)},
        command=command,
        progress=progress,
        description="Inr2Array",
    )


def train_inr_classifier(
    classifier: InrClassifier,
    inrs: InrSet,
    validation: InrSet,
    *,
    config: TrainingConfig,
    **options: Any,
) -> TrainingResult:
    """Train a classifier of weights, in place, on cross-entropy; the weights of the best validation accuracy stay.

    Args:
        classifier: The classifier; it takes the sizes of weights from `inrs`.
        inrs: Labelled INRs to train on.
        validation: Labelled INRs of other images.
        config: How to train.
        **options: ``folder``, ``resume``, ``command`` and ``progress`` of :func:`nfn_opt.training.train`.

    Returns:
        The course of the training.

    Raises:
        ValueError: If INRs have no labels, labels out of range or another architecture; otherwise as
            :func:`nfn_opt.training.train`.
    """
    classes = classifier.config.classes
    labels, wanted = check_labels(inrs, classes), check_labels(validation, classes)
    classifier.reader.check(validation)
    classifier.reader.standardize(inrs)
    return train(
        classifier,
        {**inrs.params, "label": labels},
        lambda batch, _: F.cross_entropy(classifier(_weights(batch, inrs)), batch["label"]),
        config=config,
        score=lambda: accuracy(classifier.predict(validation), wanted),
        record={"classifier": classifier.config.record(), "inrs": len(inrs)},
        description="classifier of weights",
        **options,
    )


def check_mixing(mixup: float, smoothing: float) -> None:
    """Refuse options of :func:`train_array_classifier` that are out of bounds.

    Raises:
        ValueError: If one is.
    """
    if mixup < 0 or not 0 <= smoothing < 1:
        raise ValueError(
            f"mixup is {mixup} and smoothing {smoothing}, expected 0 or more and 0 to less than 1"
        )


def train_array_classifier(
    head: ArrayClassifier,
    arrays: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor],
    *,
    config: TrainingConfig,
    mixup: float = 0.0,
    smoothing: float = 0.0,
    **options: Any,
) -> TrainingResult:
    """Train a classifier of arrays, in place, on cross-entropy.

    Args:
        head: The classifier.
        arrays: What an Inr2Array makes of labelled INRs, ``(N, latents, latent_channels)``.
        labels: Their classes, int64, ``(N,)``.
        validation: Arrays and labels of other images, which choose the weights that stay.
        config: How to train.
        mixup: Parameter of the beta distribution by which two arrays and their labels are mixed
            (arXiv:1710.09412); 0 mixes none.
        smoothing: Share of the label that is spread over all classes.
        **options: ``folder``, ``resume``, ``command`` and ``progress`` of :func:`nfn_opt.training.train`.

    Returns:
        The course of the training.

    Raises:
        ValueError: If labels are out of range or an option is; otherwise as :func:`nfn_opt.training.train`.
    """
    check_mixing(mixup, smoothing)
    for some in (labels, validation[1]):
        _check_range(some, head.config.classes)

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        array, label = batch["array"], batch["label"]
        if not mixup:
            return F.cross_entropy(head(array), label, label_smoothing=smoothing)
        share = _beta(mixup, generator)
        other = torch.randperm(len(array), generator=generator).to(array.device)
        logits = head(torch.lerp(array[other], array, share))
        own = F.cross_entropy(logits, label, label_smoothing=smoothing)
        return share * own + (1 - share) * F.cross_entropy(logits, label[other], label_smoothing=smoothing)

    return train(
        head,
        {"array": arrays, "label": labels},
        loss,
        config=config,
        score=lambda: accuracy(_classes(head, validation[0]), validation[1]),
        record={"mixup": mixup, "smoothing": smoothing, "arrays": len(arrays)},
        description="classifier of arrays",
        **options,
    )


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of right classes.

    Example:
        >>> accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 0])) == 2 / 3
        True
    """
    return int((predicted == labels).sum()) / len(labels)


def check_labels(inrs: InrSet, classes: int) -> Tensor:
    """The labels of INRs.

    Raises:
        ValueError: If there are none, or some are out of range.
    """
    if inrs.labels is None:
        raise ValueError(
            "the INRs have no labels, expected a class for each; fit an ImageData (nfn_opt.data.load_images), whose "
            "labels are kept"
        )
    _check_range(inrs.labels, classes)
    return inrs.labels


def _weights(batch: dict[str, Tensor], inrs: InrSet) -> dict[str, Tensor]:
    """Of a batch the weights alone."""
    return {name: batch[name] for name in inrs.params}


def _check_range(labels: Tensor, classes: int) -> None:
    if not len(labels):
        raise ValueError("there are no labelled INRs, expected at least 1")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels range from {low} to {high}, expected 0 to {classes - 1}; make the classifier with "
            f"classes={max(high + 1, 2)}" + ("" if low >= 0 else ", and labels from 0 on")
        )


def _beta(concentration: float, generator: torch.Generator) -> float:
    """A number of the beta distribution with both parameters alike; torch's own takes no generator."""
    seed = int(torch.randint(2**31, (), generator=generator))
    return float(np.random.default_rng(seed).beta(concentration, concentration))


@torch.no_grad()
def _classes(head: nn.Module, arrays: Tensor) -> Tensor:
    return torch.cat([head(part).argmax(1) for part in arrays.split(ARRAYS_PER_CHUNK)])
