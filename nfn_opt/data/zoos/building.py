"""Zoos of small CNNs, trained to a file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfn_opt.data.images import ImageData
from nfn_opt.data.zoos.architecture import CnnArchitecture
from nfn_opt.data.zoos.hyperparameters import ZooOptions, draw_members
from nfn_opt.data.zoos.shards import ZooShards, build_in_shards
from nfn_opt.data.zoos.training import ZooData, plan_chunks, train_zoo
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.processes import Processes

__all__ = ["build_zoo", "checksum"]


def build_zoo(
    images: ImageData,
    path: str | os.PathLike[str],
    *,
    count: int,
    options: ZooOptions | None = None,
    architecture: CnnArchitecture | None = None,
    test_fraction: float = 1 / 6,
    score_images: int = 10_000,
    chunk_size: int = 24,
    shard_size: int = 64,
    resume: bool = False,
    processes: Processes | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Zoo:
    """Train a zoo of small CNNs to a file; one that is stopped can be resumed, with the same bits.

    The networks are trained in chunks, and written in shards to the folder ``<path>.parts``, each a zoo that `Zoo.load`
    reads; the folder goes when the file is there. With several processes, each trains its own shards.

    Args:
        images: Square images; dealt out into training and test images by the seed of the options.
        path: File to write, conventionally ``*.safetensors``; its table is written beside it, as ``.csv``.
        count: Number of networks.
        options: What each network draws its hyperparameters from; None stands for ``ZooOptions()``.
        architecture: Of all networks; None stands for that of the Small CNN Zoo.
        test_fraction: Share of the images that is kept for the test scores.
        score_images: Score on so many test images, and a quarter as many training images, at most.
        chunk_size: Networks trained in step, at most; the fastest depends on the size of the caches.
        shard_size: Networks in a shard, about; what a stop can cost.
        resume: Go on with a zoo that was stopped, of the same images and options. One that is complete is only read.
        processes: The processes that ``torchrun`` started; None for one alone.
        meta: More that is to be kept in `Zoo.meta`: anything that JSON can hold. That of the start counts.
        progress: Show a progress bar.

    Returns:
        The zoo as it is in the file, with the networks that failed; `Zoo.load` and `Zoo.finite` leave them out.

    Raises:
        FileExistsError: If the file, or a zoo that was stopped, is there already, and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no zoo to resume.
        ValueError: If an option differs from those of the zoo to be resumed (it is named), or the images do not fit.
        ArtifactError: If a shard is damaged or of another zoo; it is named.
        OSError: If the disk is full, say; what is complete stays, and `resume` goes on from there.

    Example:
        >>> import tempfile
        >>> from nfn_opt.data import load_images
        >>> path = Path(tempfile.mkdtemp()) / "zoo.safetensors"
        >>> architecture = CnnArchitecture(widths=(4, 4))
        >>> zoo = build_zoo(load_images("digits"), path, count=3, architecture=architecture, score_images=50)
        >>> len(zoo), len(Zoo.load(path)), path.with_suffix(".csv").exists()
        (3, 3, True)
    """
    for name, value in (
        ("chunk_size", chunk_size),
        ("shard_size", shard_size),
        ("score_images", score_images),
    ):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
    options, architecture = options or ZooOptions(), architecture or CnnArchitecture()
    dealt = images.split({"train": 1 - test_fraction, "test": test_fraction}, seed=options.seed)
    _check(images, architecture)
    data = ZooData.from_images(dealt["train"], dealt["test"])
    chunks = plan_chunks(draw_members(options, count, len(data.train)), chunk_size)
    record = {
        "options": dataclasses.asdict(options),
        "architecture": dataclasses.asdict(architecture),
        "images": {"source": images.source, "sha256": checksum(data), "count": len(images)},
        "test_fraction": test_fraction,
        "score_images": score_images,
        "count": count,
        "chunk_size": chunk_size,
        "shard_size": shard_size,
    }
    return build_in_shards(
        ZooShards(Path(path), chunks, record, Zoo),
        lambda chunk, done: train_zoo(
            chunk, data, options, architecture, score_images=score_images, done=done
        ),
        resume=resume,
        processes=processes,
        meta=meta,
        progress=progress,
    )


def checksum(data: ZooData) -> str:
    """SHA-256 of the images and labels as they are dealt out."""
    digest = hashlib.sha256()
    for part in (data.train, data.train_labels, data.test, data.test_labels):
        digest.update(np.ascontiguousarray(part.numpy()).data)
    return digest.hexdigest()


def _check(images: ImageData, architecture: CnnArchitecture) -> None:
    """Refuse images that the networks cannot take."""
    channels, classes = images.images.shape[-1], len(images.class_names)
    if channels != architecture.in_channels:
        raise ValueError(
            f"{images!r} has {channels} channels, expected {architecture.in_channels}; convert the images (gray), or "
            "give another architecture"
        )
    if classes > architecture.classes:
        raise ValueError(f"{images!r} has {classes} classes, expected at most {architecture.classes}")
    architecture.sizes(images.images.shape[1])
