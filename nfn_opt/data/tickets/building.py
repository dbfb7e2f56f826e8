"""Sets of tickets that survive: pruned to a file shard by shard, and resumed where they were stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.images import ImageData
from nfn_opt.data.shards import explained
from nfn_opt.data.tickets.architecture import Architecture, architecture_record, initial_parameters
from nfn_opt.data.tickets.pruning import (
    PruningOptions,
    TrainOptions,
    accuracy,
    find_tickets,
    ticket_data,
)
from nfn_opt.data.tickets.ticket_set import TicketSet
from nfn_opt.data.zoos.training import ZooData
from nfn_opt.meta.config import differences
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.meta.run_folder import environment, write_json

__all__ = ["build_tickets"]


def build_tickets(
    images: ImageData,
    path: str | os.PathLike[str],
    *,
    count: int,
    architecture: Architecture,
    pruning: PruningOptions | None = None,
    training: TrainOptions | None = None,
    test_fraction: float = 1 / 6,
    score_images: int = 2000,
    chunk_size: int = 4,
    seed: int = 0,
    resume: bool = False,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TicketSet:
    """Prune networks by iterative magnitude pruning, to a file; what was stopped can be resumed, with the same bits.

    The networks are trained in chunks, each with an order of the images of its own, and each chunk is written as a
    shard to the folder ``<path>.parts``, which `TicketSet.load` reads; the folder goes when the file is there.

    Args:
        images: Square images; dealt out into training and test images by the seed.
        path: File to write, conventionally ``*.safetensors``.
        count: Number of networks.
        architecture: Of all networks.
        pruning: Sparsity and rounds; None stands for 95 % in one round.
        training: How each round trains; None stands for ``TrainOptions()``.
        test_fraction: Share of the images that is kept for the score.
        score_images: Score the dense networks on so many test images, at most.
        chunk_size: Networks trained in step, and written at once.
        seed: Seed of initial parameters, orders and the split of the images.
        resume: Go on with a set that was stopped, of the same images and options. One that is complete is only read.
        meta: More that is to be kept in `TicketSet.meta`: anything that JSON can hold.
        progress: Show a progress bar.

    Returns:
        The set as it is in the file.

    Raises:
        FileExistsError: If the file, or a set that was stopped, is there already, and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no set to resume.
        ValueError: If an option differs from those of the set to be resumed (it is named), or the images do not fit.
        ArtifactError: If a shard is damaged or of another set; it is named.
        OSError: If the disk is full, say; what is complete stays, and `resume` goes on from there.

    Example:
        >>> import tempfile
        >>> from nfn_opt.data import load_images
        >>> from nfn_opt.data.tickets.architecture import MlpArchitecture
        >>> path = Path(tempfile.mkdtemp()) / "tickets.safetensors"
        >>> architecture = MlpArchitecture(side=8, widths=(16,))
        >>> build_tickets(load_images("digits"), path, count=3, architecture=architecture)
        TicketSet(3 x MLP 64-16-10 of 1,210 parameters, 5.0 % of the weights kept)
    """
    for name, value in (("count", count), ("chunk_size", chunk_size), ("score_images", score_images)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
    pruning, training = pruning or PruningOptions(), training or TrainOptions()
    dealt = images.split({"train": 1 - test_fraction, "test": test_fraction}, seed=seed)
    data = ticket_data(dealt["train"], dealt["test"], architecture)
    record = {
        "pruning": dataclasses.asdict(pruning),
        "training": dataclasses.asdict(training),
        "architecture": architecture_record(architecture),
        "images": {"source": images.source, "sha256": images.checksum, "count": len(images)},
        "test_fraction": test_fraction,
        "score_images": score_images,
        "count": count,
        "chunk_size": chunk_size,
        "seed": seed,
    }
    shards = _Shards(Path(path), record)
    if resume and shards.path.exists():
        return shards.finished()
    shards.reopen() if resume else shards.claim(meta or {})
    todo = [numbers for numbers in shards.chunks if shards.read(numbers) is None]
    steps = pruning.rounds * training.steps(len(data.train))
    with tqdm(
        total=steps * sum(map(len, todo)),
        desc=f"pruning {sum(map(len, todo)):,} networks",
        unit="step",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for numbers in todo:
            shards.write(
                numbers, _chunk(numbers, data, architecture, pruning, training, score_images, seed, bar)
            )
    shards.join()
    return TicketSet.load(path)


def _chunk(
    numbers: range,
    data: ZooData,
    architecture: Architecture,
    pruning: PruningOptions,
    training: TrainOptions,
    score_images: int,
    seed: int,
    bar: tqdm,
) -> TicketSet:
    """Prune some networks."""
    params = initial_parameters(architecture, numbers, seed)
    order = seeded_generator(seed, f"tickets/order/{numbers.start}")
    masks, dense = find_tickets(params, data, architecture, pruning, training, order, bar.update)
    scores = {
        "number": torch.tensor(numbers),
        "dense_accuracy": accuracy(dense, data, architecture, score_images),
    }
    return TicketSet(params, masks, architecture, scores)


class _Shards:
    """The parts of a set on the disk.

    Args:
        path: The file that they will make.
        record: All that decides the bits of the result, by the names of the options.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path, self.folder = path, Path(f"{os.fspath(path)}.parts")
        self.plan = self.folder / "plan.json"
        count, size = record["count"], record["chunk_size"]
        self.chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
        self._record = json.loads(json.dumps(record))

    def claim(self, meta: Mapping[str, Any]) -> None:
        """Begin a new set, refusing to touch what is there."""
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists, expected a new file; give another name")
        if self.folder.exists():
            raise FileExistsError(
                f"{self.folder} holds a set that was stopped; go on with it (resume), or remove it to begin anew"
            )
        with self._explained():
            write_json(self.plan, {**meta, "run": self._record, "environment": environment()})

    def reopen(self) -> None:
        """Check that the set that was stopped is this one; clear what a killed process left."""
        if not self.plan.exists():
            raise FileNotFoundError(
                f"there is no set to resume: neither {self.path} nor {self.plan} exists; check the name, or start "
                "without resume"
            )
        self._compare(self._plan())
        for left in self.folder.glob(".*.tmp.*"):
            left.unlink()

    def finished(self) -> TicketSet:
        """The file, if it is the result of this set."""
        tickets = TicketSet.load(self.path)
        self._compare(tickets.meta)
        return tickets

    def read(self, numbers: range) -> TicketSet | None:
        """One shard, checked, if it is there."""
        path = self._shard(numbers)
        if not path.exists():
            return None
        remedy = f"remove {path} and resume: it is made again"
        try:
            tickets = TicketSet.load(path)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; {remedy}") from error
        found = tickets.scores.get("number", torch.empty(0)).tolist()
        if tickets.meta.get("run") != self._record or found != list(numbers):
            raise ArtifactError(f"{path} belongs to another set; {remedy}")
        return tickets

    def write(self, numbers: range, tickets: TicketSet) -> None:
        """Write one shard."""
        with self._explained():
            dataclasses.replace(tickets, meta={"run": self._record}).save(self._shard(numbers))

    def join(self) -> None:
        """Write the file from the shards, which are all there, and remove them."""
        whole = TicketSet.concat([shard for numbers in self.chunks if (shard := self.read(numbers))])
        with self._explained():
            dataclasses.replace(whole, meta=self._plan()).save(self.path)
        for numbers in self.chunks:
            self._shard(numbers).unlink(missing_ok=True)
        self.plan.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody put other files there
            self.folder.rmdir()

    def _shard(self, numbers: range) -> Path:
        return self.folder / f"shard_{numbers.start:06d}.safetensors"

    def _plan(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.plan.read_text()))
        except ValueError as error:
            raise ArtifactError(
                f"{self.plan} is damaged ({error}); remove {self.folder} and start anew"
            ) from error

    def _compare(self, meta: Mapping[str, Any]) -> None:
        """Refuse to go on with other images or options."""
        changed = differences(meta.get("run", {}), self._record)
        if changed:
            raise ValueError(
                f"the set {self.path} has other images or options: {'; '.join(changed)}; resume it with those that "
                "it was started with, or give another file"
            )

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        """Say what is left and how to go on, if writing fails."""
        return explained(self.path, self.folder, [self._shard(numbers) for numbers in self.chunks])
