"""Zoos that survive: trained to a file shard by shard, in one process or many, and resumed where they were stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from tqdm.auto import tqdm

from nfn_opt.artifacts import ArtifactError
from nfn_opt.data.shards import explained
from nfn_opt.data.zoos.table import table_path
from nfn_opt.data.zoos.varied import VariedZoo
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.config import differences
from nfn_opt.meta.processes import Processes
from nfn_opt.meta.run_folder import environment, write_json

__all__ = ["ZooShards", "build_in_shards"]

AnyZoo = TypeVar("AnyZoo", Zoo, VariedZoo)


class Numbered(Protocol):
    """A network that is to be trained; attributes as `nfn_opt.data.zoos.hyperparameters.Member`."""

    @property
    def number(self) -> int:
        """Which network of the zoo it is; the zoo's column of this name says it too."""

    @property
    def steps(self) -> int:
        """How many steps it is trained for."""


def build_in_shards(
    shards: ZooShards[AnyZoo],
    train: Callable[[Any, Callable[[int], object]], AnyZoo],
    *,
    resume: bool = False,
    processes: Processes | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> AnyZoo:
    """Train the chunks of a zoo, write them in shards, and join these to the file.

    Args:
        shards: Where they are written.
        train: Trains a chunk; its second argument is to be told after each step how many networks made it.
        resume: Go on with a zoo that was stopped.
        processes: The processes that ``torchrun`` started; None for one alone.
        meta: More to keep in the zoo's `meta`.
        progress: Show a progress bar.

    Returns:
        The zoo as it is in the file, with the networks that failed.

    Raises:
        FileExistsError, FileNotFoundError, ValueError, ArtifactError, OSError: As `nfn_opt.data.zoos.build_zoo`.
    """
    if resume and shards.path.exists():
        return shards.finished()
    processes = processes or Processes()
    processes.on_main(shards.reopen if resume else lambda: shards.claim(meta or {}))
    error: Exception | None = None
    try:
        ready = shards.ready()
        todo = [number for number in range(len(shards.parts)) if number not in ready]
        mine = shards.shares(todo, processes.size)[processes.rank]
        with tqdm(
            total=sum(shards.steps(number) for number in mine),
            desc=f"training {sum(len(shards.members(number)) for number in mine):,} networks",
            unit="step",
            unit_scale=True,
            disable=not progress or not processes.main,
        ) as bar:
            for number in mine:
                shards.write(number, [train(chunk, bar.update) for chunk in shards.parts[number]])
    except (OSError, ValueError) as raised:
        error = raised
    for raised_elsewhere in processes.gathered(error):
        if raised_elsewhere is not None:
            raise raised_elsewhere
    processes.on_main(shards.join)
    return shards.load()


class ZooShards(Generic[AnyZoo]):
    """The parts of a zoo on the disk.

    Args:
        path: The file that they will make.
        chunks: All chunks.
        record: All that decides the bits of the result, by the names of the options; its ``shard_size`` is
            the number of networks in a shard, about.
        zoo_class: Of the zoos that the chunks become.
    """

    def __init__(
        self,
        path: Path,
        chunks: Sequence[Sequence[Numbered]],
        record: Mapping[str, Any],
        zoo_class: type[AnyZoo],
    ) -> None:
        self._class: type[AnyZoo] = zoo_class
        self.path, self.folder = path, Path(f"{os.fspath(path)}.parts")
        self.plan = self.folder / "plan.json"
        self.parts: list[list[Sequence[Numbered]]] = []
        for chunk in chunks:
            if not self.parts or len(self.members(-1)) + len(chunk) > record["shard_size"]:
                self.parts.append([])
            self.parts[-1].append(chunk)
        self._record = json.loads(json.dumps(record))

    def members(self, number: int) -> list[Numbered]:
        """The networks of a shard."""
        return [member for chunk in self.parts[number] for member in chunk]

    def steps(self, number: int) -> int:
        """The steps of all networks of a shard."""
        return sum(member.steps for member in self.members(number))

    def shares(self, numbers: Sequence[int], count: int) -> list[list[int]]:
        """Deal out shards to so many processes, so that each has about as many steps."""
        shares: list[list[int]] = [[] for _ in range(count)]
        loads = [0] * count
        for number in sorted(numbers, key=lambda number: (-self.steps(number), number)):
            least = loads.index(min(loads))
            shares[least].append(number)
            loads[least] += self.steps(number)
        return [sorted(share) for share in shares]

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

    def finished(self) -> AnyZoo:
        """The file, if it is the result of this zoo."""
        zoo = self._class.load(self.path, keep_failed=True)
        self._compare(zoo.meta)
        return zoo

    def ready(self) -> set[int]:
        """The shards that are complete, after checking each of them."""
        return {number for number in range(len(self.parts)) if self._read(number) is not None}

    def load(self) -> AnyZoo:
        """The file."""
        return self._class.load(self.path, keep_failed=True)

    def write(self, number: int, chunks: Sequence[AnyZoo]) -> None:
        """Write one shard, of these trained chunks."""
        zoo = self._class.concat(chunks)
        with self._explained():
            _with_meta(zoo, {"run": self._record}).save(self._shard(number))

    def join(self) -> None:
        """Write the file from the shards, which are all there, and remove them."""
        whole = self._class.concat([zoo for number in range(len(self.parts)) if (zoo := self._read(number))])
        numbers = whole.table["number"]
        assert isinstance(numbers, torch.Tensor)
        with self._explained():
            _with_meta(whole[numbers.argsort()], self._plan()).save(self.path)
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

    def _read(self, number: int) -> AnyZoo | None:
        """One shard, checked, if it is there."""
        path = self._shard(number)
        if not path.exists():
            return None
        remedy = f"remove {path} and resume: it is trained again"
        try:
            zoo = self._class.load(path, keep_failed=True)
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


def _with_meta(zoo: AnyZoo, meta: Mapping[str, Any]) -> AnyZoo:
    return dataclasses.replace(zoo, meta=meta)
