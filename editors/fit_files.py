"""Fits that survive: a set of INRs fitted to a file shard by shard, which goes on where it was stopped."""

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
from torch import Tensor
from tqdm.auto import tqdm

from editors.fit_options import FitOptions
from editors.fitting import FitJob, warn_of_failures
from editors.inr_set import InrSet
from editors.siren import SirenConfig
from nfn_opt.artifacts import ArtifactError, read_header
from nfn_opt.data import ImageData
from nfn_opt.data.shards import explained
from nfn_opt.meta.config import differences
from nfn_opt.meta.run_folder import environment, write_json

__all__ = ["fit_to_file"]


def fit_to_file(
    images: ImageData | Tensor | np.ndarray,
    path: str | os.PathLike[str],
    *,
    config: SirenConfig | None = None,
    options: FitOptions | None = None,
    shard_size: int = 1000,
    resume: bool = False,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> InrSet:
    """Fit one SIREN to each image, and write them to one file; a fit that is stopped can be resumed.

    The INRs are those that `editors.fit` makes of the same images and options, to the last bit, however often
    the fit was stopped (on the same machine, with the same number of threads and version of PyTorch). They are
    written in shards to the folder ``<path>.parts``, each a whole set that `InrSet.load` reads, written whole
    or not at all; the folder goes when the file is there.

    Args:
        images: As in `editors.fit`.
        path: File to write, conventionally ``*.safetensors``.
        config: As in `editors.fit`.
        options: How to fit; None stands for ``FitOptions()``.
        shard_size: INRs in a shard; rounded up to a multiple of `chunk_size`.
        resume: Go on with a fit that was stopped, of the same images with the same options. One that is
            complete is only read.
        chunk_size: As in `editors.fit`.
        device: As in `editors.fit`.
        meta: More that is to be kept in `InrSet.meta`: anything that JSON can hold. That of the start counts.
        progress: Show a progress bar.

    Returns:
        The INRs, as they are in the file. Their ``meta`` says how and from what they were made, and on what.

    Raises:
        FileExistsError: If the file, or a fit to it that was stopped, is there already, and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no fit to resume.
        ValueError: If an option differs from those of the fit to be resumed (it is named), or as `editors.fit`.
        ArtifactError: If a shard is damaged or of another fit; it is named.
        OSError: If the disk is full, say; what is complete stays, and `resume` goes on from there.

    Warns:
        RuntimeWarning: As `editors.fit`, once for all INRs.

    Example:
        >>> import tempfile
        >>> from nfn_opt.data import load_images
        >>> path = Path(tempfile.mkdtemp()) / "digits.safetensors"
        >>> inrs = fit_to_file(load_images("digits").subset(20), path, shard_size=10)
        >>> len(InrSet.load(path)), inrs.meta["source"]["name"]
        (20, 'digits')
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be >= 1, got {shard_size}")
    job = FitJob(images, config, options or FitOptions(), chunk_size=chunk_size, device=device)
    shards = _Shards(Path(path), job, shard_size)
    if resume and shards.path.exists():
        inrs = shards.finished()
    else:
        shards.reopen() if resume else shards.claim(meta or {})
        ready = shards.ready()
        with tqdm(
            total=len(job),
            initial=sum(part.stop - part.start for part in ready),
            desc="fitting INRs",
            unit="INR",
            disable=not progress,
        ) as bar:
            for number, part in enumerate(shards.parts):
                if part not in ready:
                    shards.write(number, job.run(part, bar.update))
        inrs = shards.join()
    shards.remove()
    warn_of_failures(inrs.psnr, job.options.target_psnr)
    return inrs


class _Shards:
    """The parts of a fit on the disk.

    Args:
        path: The file that they will make.
        job: What is fitted.
        shard_size: INRs in a shard, at least.
    """

    def __init__(self, path: Path, job: FitJob, shard_size: int) -> None:
        size = -(-shard_size // job.chunk_size) * job.chunk_size
        self.path, self.folder = path, Path(f"{os.fspath(path)}.parts")
        self.plan = self.folder / "plan.json"
        self.parts = [slice(start, min(start + size, len(job))) for start in range(0, len(job), size)]
        self._job = job
        self._record = json.loads(json.dumps(_record(job, size)))

    def claim(self, meta: Mapping[str, Any]) -> None:
        """Begin a new fit, refusing to touch what is there."""
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists, expected a new file; give another name")
        if self.folder.exists():
            raise FileExistsError(
                f"{self.folder} holds a fit that was stopped; go on with it (resume), or remove it to begin anew"
            )
        whole = {**self._job.meta, **meta, "run": self._record, "environment": environment()}
        with self._explained():
            write_json(self.plan, whole)

    def reopen(self) -> None:
        """Check that the fit that was stopped is this one; clear what a killed process left."""
        if not self.plan.exists():
            raise FileNotFoundError(
                f"there is no fit to resume: neither {self.path} nor {self.plan} exists; check the name, or start "
                "without resume"
            )
        self._compare(self._plan())
        for left in self.folder.glob(".*.tmp.*"):
            left.unlink()

    def finished(self) -> InrSet:
        """The file, if it is the result of this fit."""
        if self.path.is_dir():
            raise ArtifactError(f"{self.path} is a folder; give the name of a file")
        self._compare(read_header(self.path)[1].get("meta", {}))
        return InrSet.load(self.path)

    def ready(self) -> list[slice]:
        """The parts that are complete, after checking each of them."""
        return [part for number, part in enumerate(self.parts) if self._read(number, part) is not None]

    def write(self, number: int, inrs: InrSet) -> None:
        """Write one shard."""
        with self._explained():
            dataclasses.replace(inrs, meta=self._plan()).save(self._shard(number))

    def join(self) -> InrSet:
        """Write the file from the shards, which are all there."""
        parts = [InrSet.load(self._shard(number)) for number in range(len(self.parts))]
        inrs = InrSet.concat(parts)
        with self._explained():
            inrs.save(self.path)
        return inrs

    def remove(self) -> None:
        """Remove the shards, and the folder unless somebody put other files there."""
        if not self.folder.is_dir():
            return
        for number in range(len(self.parts)):
            self._shard(number).unlink(missing_ok=True)
        self.plan.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard_{number:05d}.safetensors"

    def _plan(self) -> dict[str, Any]:
        try:
            plan = json.loads(self.plan.read_text())
        except ValueError as error:
            raise ArtifactError(
                f"{self.plan} is damaged ({error}); remove {self.folder} and start anew"
            ) from error
        return dict(plan)

    def _read(self, number: int, part: slice) -> InrSet | None:
        """One shard, checked, if it is there."""
        path = self._shard(number)
        if not path.exists():
            return None
        remedy = f"remove {path} and resume: it is fitted again"
        try:
            inrs = InrSet.load(path)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; {remedy}") from error
        if inrs.meta.get("run") != self._record or len(inrs) != part.stop - part.start:
            raise ArtifactError(f"{path} belongs to another fit; {remedy}")
        return inrs

    def _compare(self, meta: Mapping[str, Any]) -> None:
        """Refuse to go on with other images or options."""
        changed = differences(meta.get("run", {}), self._record)
        if changed:
            raise ValueError(
                f"the fit to {self.path} has other images or options: {'; '.join(changed)}; resume it with those "
                "that it was started with, or give another file"
            )

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        """Say what is left and how to go on, if writing fails."""
        shards = [self._shard(number) for number in range(len(self.parts))]
        return explained(self.path, self.folder, shards)


def _record(job: FitJob, shard_size: int) -> dict[str, Any]:
    """All that decides the bits of the result, by the names of the options."""
    pixels = np.ascontiguousarray(job.pixels.cpu().numpy(), dtype="<f4")
    labels = b"" if job.labels is None else job.labels.cpu().numpy().astype("<i8").tobytes()
    return {
        **dataclasses.asdict(job.options),
        "architecture": dataclasses.asdict(job.config),
        "count": len(job),
        "image_size": job.image_size,
        "images_sha256": hashlib.sha256(pixels.tobytes() + labels).hexdigest(),
        "shard_size": shard_size,
        "chunk_size": job.chunk_size,
        "device": job.device.type,
    }
