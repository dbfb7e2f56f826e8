"""The kinds of zoos that ``scripts/build_zoo.py --kind`` makes: one table, one class of options for each kind.

A new kind is a `ZooRun` of its own and a line in `KINDS`. Classes are imported when they are asked for, so that a kind
costs nothing where another is built.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from nfn_opt.data.zoos.kinds.base import ZooReport, ZooRun

__all__ = ["DEFAULT_KIND", "KINDS", "Kind", "ZooReport", "ZooRun"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of zoo.

    Attributes:
        summary: What the networks are, in half a sentence.
        place: Where its `ZooRun` is, as "module:class".
    """

    summary: str
    place: str

    def run_class(self) -> type[ZooRun[Any]]:
        """The class of its options.

        Example:
            >>> KINDS["small-cnn"].run_class().__name__
            'SmallCnnRun'
        """
        module, _, name = self.place.partition(":")
        found: type[ZooRun[Any]] = getattr(importlib.import_module(module), name)
        return found


KINDS: Mapping[str, Kind] = {
    "small-cnn": Kind(
        "CNNs of 4,970 parameters that classify images, those of the Small CNN Zoo (arXiv:2002.11448)",
        "nfn_opt.data.zoos.kinds.small_cnn:SmallCnnRun",
    ),
    "varied-cnn": Kind(
        "CNNs of all shapes that classify images, in the manner of the CNN Wild Park (arXiv:2403.12143)",
        "nfn_opt.data.zoos.kinds.varied_cnn:VariedCnnRun",
    ),
    "gru-adders": Kind(
        "GRU networks that add two numbers, those of the Tiny RNN Zoo (arXiv:2402.05232)",
        "nfn_opt.data.zoos.kinds.gru_adders:GruAddersRun",
    ),
}
"""All kinds by name."""

DEFAULT_KIND = "small-cnn"
"""The kind that is built where none is named."""
