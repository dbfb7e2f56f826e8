"""Files that are written whole or not at all, and tensors stored with their metadata.

Everything trained or fitted by this library (an update rule, an editor, a set of INRs) is kept as one
safetensors file: the tensors, a *kind* that names the class the file belongs to, and metadata as JSON,
both in the header. Loading never runs code from the file, and it checks the kind before any tensor is read.

Example:
    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "line.safetensors"
    >>> _ = save_artifact(path, {"slope": torch.ones(2)}, kind="line", metadata={"steps": 3})
    >>> tensors, metadata = load_artifact(path, kind="line")
    >>> tensors["slope"].tolist(), metadata
    ([1.0, 1.0], {'steps': 3})
    >>> load_artifact(path, kind="circle")
    Traceback (most recent call last):
    ...
    nfn_opt.artifacts.ArtifactError: ...line.safetensors holds a 'line', expected a 'circle'; ...
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

__all__ = ["ArtifactError", "atomic_write", "load_artifact", "read_header", "save_artifact"]

FORMAT_VERSION = 1
"""Version of the header written by `save_artifact`; files of a later version are refused."""

_KIND, _VERSION, _METADATA = "nfn_opt.kind", "nfn_opt.format_version", "nfn_opt.metadata"


class ArtifactError(ValueError):
    """A file that cannot be loaded, or data that cannot be saved; the message says which and why."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; move it to `path` only if the block ends without an exception.

    The temporary file lies in the same folder (missing folders are created), is hidden, and has the same
    suffix as `path`. It is flushed to the disk before the move, so that `path` always holds either the old
    content or the new, whatever interrupts the block. A symbolic link is followed, not replaced.

    Args:
        path: File to write.

    Yields:
        Path of an empty file to write to, by any means.

    Raises:
        ArtifactError: If `path` is a folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(path) as temporary:
        ...     _ = temporary.write_text("done")
        >>> path.read_text()
        'done'
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ArtifactError(f"cannot write {os.fspath(path)!r}: it is a folder; give the name of a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        temporary.open("xb").close()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        # Some writers put a file that nobody else may read in the place of the temporary one.
        temporary.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else mode)
        _flush(temporary)
        os.replace(temporary, target)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the file or folder at `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_artifact(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    kind: str,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write tensors, their kind and their metadata to one safetensors file, atomically.

    Args:
        path: File to write; conventionally named ``*.safetensors``.
        tensors: Tensors of any shape, dtype and device; stored contiguous, from the CPU, without gradient.
        kind: Name of the class that the file belongs to, for example ``"inr_set"``.
        metadata: Anything that JSON can hold, under string keys.

    Returns:
        The path written.

    Raises:
        TypeError: If a value of `tensors` is no tensor, or `metadata` is no JSON.
        ArtifactError: If `path` is a folder.
        OSError: If it cannot be written: the disk is full, say.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{name!r}] must be a torch.Tensor, got {type(tensor).__name__}")
    header = {
        _KIND: kind,
        _VERSION: str(FORMAT_VERSION),
        _METADATA: _to_json(metadata or {}),
    }
    # Cloning unties tensors that share memory, which the format refuses.
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            safetensors.torch.save_file(stored, temporary, metadata=header)
        except safetensors.SafetensorError as error:  # its name for a full disk, among others
            raise OSError(f"cannot write {os.fspath(path)} ({error})") from error
    return Path(path)


def _to_json(metadata: Mapping[str, Any]) -> str:
    """`metadata` as a string, after checking that reading it back gives the same keys."""
    bad = [key for key in metadata if not isinstance(key, str)]
    if bad:
        raise TypeError(f"metadata must have string keys, got {bad[0]!r}")
    try:
        return json.dumps(dict(metadata), sort_keys=True)
    except TypeError as error:
        raise TypeError(f"metadata must be JSON (numbers, strings, lists, dicts): {error}") from error


def load_artifact(
    path: str | os.PathLike[str], *, kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file written by `save_artifact`.

    Args:
        path: File to read.
        kind: The kind that the file must be of.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ArtifactError: If the file is truncated, is not safetensors, was not written by `save_artifact`, was
            written by a later version of the format, or is of another kind.
    """
    with _opened(path) as file:
        found, metadata = _parse_header(path, file.metadata())
        if found != kind:
            raise ArtifactError(
                f"{os.fspath(path)} holds a {found!r}, expected a {kind!r}; "
                f"load it with the class that saved it, or give another file"
            )
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_header(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Kind and metadata of a file written by `save_artifact`, without reading its tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ArtifactError: As `load_artifact`, except that any kind is accepted.
    """
    with _opened(path) as file:
        return _parse_header(path, file.metadata())


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The safetensors file at `path`, with the format's own errors turned into ones that name the remedy."""
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}; check the path")
    if Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).glob("*.safetensors"))
        offer = f"give one of those in it: {', '.join(files)}" if files else "it has no *.safetensors in it"
        raise ArtifactError(f"{os.fspath(path)} is a folder, expected a file; {offer}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{os.fspath(path)} is not a complete safetensors file ({error}); "
            f"it may be truncated or of another format: write or download it again"
        ) from error


def _parse_header(
    path: str | os.PathLike[str], header: Mapping[str, str] | None
) -> tuple[str, dict[str, Any]]:
    """Kind and metadata from the strings of a safetensors header."""
    try:
        fields = header or {}
        kind, version, metadata = fields[_KIND], int(fields[_VERSION]), json.loads(fields[_METADATA])
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"{os.fspath(path)} is a safetensors file, but its header has no valid {_KIND!r}, "
            f"{_VERSION!r} and {_METADATA!r} ({error}); it was not written by this library"
        ) from error
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{os.fspath(path)} has format version {version}, expected at most {FORMAT_VERSION}; "
            f"update this library"
        )
    return kind, metadata
