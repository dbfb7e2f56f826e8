"""Sources of randomness that belong to one purpose, whichever process uses them."""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator whose stream belongs to one seed and one purpose, and to no plain ``manual_seed``.

    Example:
        >>> one, other = (seeded_generator(0, f"inner problems/{task}") for task in "ab")
        >>> bool(torch.rand(1, generator=one) != torch.rand(1, generator=other))
        True
    """
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
