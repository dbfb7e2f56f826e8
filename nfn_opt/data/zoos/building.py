"""Zoos that survive: trained to a file shard by shard, in one process or many, and resumed where they were stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.images import ImageData
from nfn_opt.data.shards import explained
from nfn_opt.data.zoos.architecture import CnnArchitecture
from nfn_opt.data.zoos.hyperparameters import Member, ZooOptions, draw_members
from nfn_opt.data.zoos.training import ZooData, plan_chunks, train_zoo
from nfn_opt.data.zoos.zoo import Zoo, table_path
from nfn_opt.meta.config import differences
from nfn_opt.meta.processes import Processes
from nfn_opt.meta.run_folder import environment, write_json

__all__ = ["build_zoo"]


def build_zoo(
    images: ImageData,
    path: str | os.PathLike[str],
    *,
    count: int,
    options: ZooOptions | None = None,
    architecture: CnnArchitecture | None = None,
    test_fraction: float = 1 / 6,
    score_images: int = 10_000,
    chunk_size: int = 16,
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
        score_images: Score on so many training and test images, at most.
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
    processes = processes or Processes()
    dealt = images.split({"train": 1 - test_fraction, "test": test_fraction}, seed=options.seed)
    _check(images, architecture)
    data = ZooData.from_images(dealt["train"], dealt["test"])
    chunks = plan_chunks(draw_members(options, count, len(data.train)), chunk_size)
    record = {
        "options": dataclasses.asdict(options),
        "architecture": dataclasses.asdict(architecture),
        "images": {"source": images.source, "sha256": _checksum(data), "count": len(images)},
        "test_fraction": test_fraction,
        "score_images": score_images,
        "count": count,
        "chunk_size": chunk_size,
        "shard_size": shard_size,
    }
    shards = _Shards(Path(path), chunks, record)
    if resume and shards.path.exists():
        return shards.finished()
    processes.on_main(shards.reopen if resume else lambda: shards.claim(meta or {}))
    error: Exception | None = None
    try:
        ready = shards.ready()
        todo = [number for number in range(len(shards.parts)) if number not in ready]
        mine = [number for place, number in enumerate(todo) if processes.owns(place)]
        with tqdm(
            total=sum(member.steps for number in mine for member in shards.members(number)),
            desc=f"training {sum(len(shards.members(number)) for number in mine):,} networks",
            unit="step",
            unit_scale=True,
            disable=not progress or not processes.main,
        ) as bar:
            for number in mine:
                trained = [
                    train_zoo(chunk, data, options, architecture, score_images=score_images, done=bar.update)
                    for chunk in shards.parts[number]
                ]
                shards.write(number, Zoo.concat(trained))
    except (OSError, ValueError) as raised:
        error = raised
    for raised_elsewhere in processes.gathered(error):
        if raised_elsewhere is not None:
            raise raised_elsewhere
    processes.on_main(shards.join)
    return Zoo.load(path, keep_failed=True)


def _checksum(data: ZooData) -> str:
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


class _Shards:
    """The parts of a zoo on the disk.

    Args:
        path: The file that they will make.
        chunks: All chunks.
        record: All that decides the bits of the result, by the names of the options.
    """

    def __init__(self, path: Path, chunks: list[list[Member]], record: Mapping[str, Any]) -> None:
        self.path, self.folder = path, Path(f"{os.fspath(path)}.parts")
        self.plan = self.folder / "plan.json"
        self.parts: list[list[list[Member]]] = []
        for chunk in chunks:
            if not self.parts or len(self.members(-1)) + len(chunk) > record["shard_size"]:
                self.parts.append([])
            self.parts[-1].append(chunk)
        self._record = json.loads(json.dumps(record))

    def members(self, number: int) -> list[Member]:
        """The networks of a shard."""
        return [member for chunk in self.parts[number] for member in chunk]

    def claim(self, meta: Mapping[str, Any]) -> None:
        """Begin a new zoo, refusing to touch what is there."""
        for there in (self.path, table_path(self.path)):
            if there.exists():
                raise FileExistsError(f"{there} exists, expected a new file; give another name")
        if self.folder.exists():
            raise FileExistsError(
                f"{self.folder} holds a zoo that was stopped; go on with it (resume), or remove it to begin anew"
            )
        with self._explained():
            write_json(self.plan, {**meta, "run": self._record, "environment": environment()})

    def reopen(self) -> None:
        """Check that the zoo that was stopped is this one; clear what a killed process left."""
        if self.path.exists():  # another process of this run was quicker
            return
        if not self.plan.exists():
            raise FileNotFoundError(
                f"there is no zoo to resume: neither {self.path} nor {self.plan} exists; check the name, or start "
                "without resume"
            )
        self._compare(self._plan())
        for left in self.folder.glob(".*.tmp.*"):
            left.unlink()

    def finished(self) -> Zoo:
        """The file, if it is the result of this zoo."""
        zoo = Zoo.load(self.path, keep_failed=True)
        self._compare(zoo.meta)
        return zoo

    def ready(self) -> set[int]:
        """The shards that are complete, after checking each of them."""
        return {number for number in range(len(self.parts)) if self._read(number) is not None}

    def write(self, number: int, zoo: Zoo) -> None:
        """Write one shard."""
        with self._explained():
            dataclasses.replace(zoo, meta={"run": self._record}).save(self._shard(number))

    def join(self) -> None:
        """Write the file from the shards, which are all there, and remove them."""
        whole = Zoo.concat([zoo for number in range(len(self.parts)) if (zoo := self._read(number))])
        numbers = whole.table["number"]
        assert isinstance(numbers, torch.Tensor)
        with self._explained():
            dataclasses.replace(whole[numbers.argsort()], meta=self._plan()).save(self.path)
        for number in range(len(self.parts)):
            self._shard(number).unlink(missing_ok=True)
            table_path(self._shard(number)).unlink(missing_ok=True)
        self.plan.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody put other files there
            self.folder.rmdir()

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard_{number:05d}.safetensors"

    def _plan(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.plan.read_text()))
        except ValueError as error:
            raise ArtifactError(
                f"{self.plan} is damaged ({error}); remove {self.folder} and start anew"
            ) from error

    def _read(self, number: int) -> Zoo | None:
        """One shard, checked, if it is there."""
        path = self._shard(number)
        if not path.exists():
            return None
        remedy = f"remove {path} and resume: it is trained again"
        try:
            zoo = Zoo.load(path, keep_failed=True)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; {remedy}") from error
        numbers = zoo.table.get("number")
        wanted = [member.number for member in self.members(number)]
        if (
            zoo.meta.get("run") != self._record
            or not isinstance(numbers, torch.Tensor)
            or numbers.tolist() != wanted
        ):
            raise ArtifactError(f"{path} belongs to another zoo; {remedy}")
        return zoo

    def _compare(self, meta: Mapping[str, Any]) -> None:
        """Refuse to go on with other images or options."""
        changed = differences(meta.get("run", {}), self._record)
        if changed:
            raise ValueError(
                f"the zoo {self.path} has other images or options: {'; '.join(changed)}; resume it with those that "
                "it was started with, or give another file"
            )

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        """Say what is left and how to go on, if writing fails."""
        shards = [self._shard(number) for number in range(len(self.parts))]
        return explained(self.path, self.folder, shards)
