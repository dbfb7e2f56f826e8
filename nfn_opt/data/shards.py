"""Files that are made in shards, so that little is lost when the work is stopped."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["explained"]


@contextlib.contextmanager
def explained(path: Path, folder: Path, shards: Sequence[Path]) -> Iterator[None]:
    """Say what is left and how to go on, if writing fails.

    Args:
        path: The file that is made.
        folder: The folder of its shards.
        shards: The files of these; those that are complete exist.

    Raises:
        OSError: In place of one that the body raises.
    """
    try:
        yield
    except OSError as error:
        done = sum(shard.exists() for shard in shards)
        full = error.errno in (None, errno.ENOSPC, errno.EDQUOT)
        remedy = "Make room and resume" if full else "Give another name, or set this right and resume"
        raise OSError(
            f"could not write {path}: {error}; {done} of {len(shards)} shards are complete in "
            f"{folder}, nothing is half-written. {remedy}"
        ) from error
