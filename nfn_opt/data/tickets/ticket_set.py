"""A set of winning tickets: initial weights, the mask that pruning found for each, and how good both are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.data.images import part_sizes
from nfn_opt.data.tickets.architecture import (
    Architecture,
    MlpArchitecture,
    architecture_from,
    architecture_record,
    prunable,
)
from nfn_opt.data.tickets.masks import kept_share

__all__ = ["TicketSet"]

KIND = "ticket_set"
"""The kind of a `TicketSet`'s file."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TicketSet:
    """Networks of one architecture at initialisation, with masks. Methods return new sets; nothing is changed.

    Attributes:
        params: Initial parameters: for each name of ``architecture.parameter_shapes`` shape (N, *shape).
        masks: True where a weight is kept: for each prunable weight bool, shape (N, *shape).
        architecture: What the networks are.
        scores: Numbers of each network, shape (N,), by name: "dense_accuracy" on the test images.
        meta: Anything that JSON can hold: how and from what the set was made.

    Raises:
        ValueError: If shapes or types do not fit together.

    Example:
        >>> architecture = MlpArchitecture(side=2, widths=(3,), classes=2)
        >>> params = {name: torch.zeros(5, *shape) for name, shape in architecture.parameter_shapes.items()}
        >>> masks = {name: torch.ones(5, *shape) > 0 for name, shape in prunable(architecture).items()}
        >>> TicketSet(params, masks, architecture)
        TicketSet(5 x MLP 4-3-2 of 23 parameters, 100.0 % of the weights kept)
    """

    params: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    architecture: Architecture
    scores: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("params", self.params, self.architecture.parameter_shapes, torch.float32)
        _check("masks", self.masks, prunable(self.architecture), torch.bool)
        for name, value in {**self.params, **self.masks, **self.scores}.items():
            if len(value) != len(self):
                raise ValueError(f"{name} is of {len(value)} networks, expected {len(self)}")
        for name, score in self.scores.items():
            if score.ndim != 1:
                raise ValueError(
                    f"scores[{name!r}] has shape {tuple(score.shape)}, expected one number a network"
                )

    def __len__(self) -> int:
        return len(self.params["fc.bias"])

    def __repr__(self) -> str:
        one = self.architecture
        mlp = isinstance(one, MlpArchitecture)
        before = one.inputs if isinstance(one, MlpArchitecture) else one.in_channels
        sizes = "-".join(map(str, (before, *one.widths, one.classes)))
        kept = 100 * kept_share(self.masks).mean().item() if len(self) else 0.0
        return (
            f"TicketSet({len(self)} x {'MLP' if mlp else 'CNN'} {sizes} of {one.parameters:,} parameters, "
            f"{kept:.1f} % of the weights kept)"
        )

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> TicketSet:
        """Some of the networks, as a set: by number (a set of one), slice, list of numbers or boolean mask."""
        numbers = torch.arange(len(self))[index if isinstance(index, int | slice) else torch.as_tensor(index)]
        numbers = numbers.reshape(-1)
        return dataclasses.replace(
            self,
            params={name: value[numbers] for name, value in self.params.items()},
            masks={name: value[numbers] for name, value in self.masks.items()},
            scores={name: value[numbers] for name, value in self.scores.items()},
        )

    def split(self, sizes: Mapping[str, float] | None = None, *, seed: int = 0) -> dict[str, TicketSet]:
        """Cut into disjoint parts, at random, but always the same; `sizes` as in `ImageData.split`."""
        counts = part_sizes(sizes, len(self), "network")
        # numpy promises that the streams of RandomState never change; torch promises it of none.
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(self)))
        dealt = order.split([*counts.values(), len(self) - sum(counts.values())])
        return {name: self[part] for name, part in zip(counts, dealt, strict=False)}

    @staticmethod
    def concat(sets: Sequence[TicketSet]) -> TicketSet:
        """Join sets of one architecture with the same scores; `meta` is that of the first.

        Raises:
            ValueError: If there are none, or they differ in architecture or scores.
        """
        if not sets:
            raise ValueError("concat needs at least one TicketSet, got none")
        first = sets[0]
        for number, one in enumerate(sets):
            if one.architecture != first.architecture or list(one.scores) != list(first.scores):
                raise ValueError(f"sets[{number}] is {one!r}, which cannot be joined to {first!r}")
        return dataclasses.replace(
            first,
            params={name: torch.cat([one.params[name] for one in sets]) for name in first.params},
            masks={name: torch.cat([one.masks[name] for one in sets]) for name in first.masks},
            scores={name: torch.cat([one.scores[name] for one in sets]) for name in first.scores},
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the set to one safetensors file, whole or not at all.

        Raises:
            TypeError: If `meta` is no JSON.
            ArtifactError: If `path` is a folder.
            OSError: If it cannot be written: the disk is full, say.
        """
        tensors = {f"params.{name}": value for name, value in self.params.items()}
        tensors |= {f"masks.{name}": value for name, value in self.masks.items()}
        tensors |= {f"scores.{name}": value for name, value in self.scores.items()}
        metadata = {"architecture": architecture_record(self.architecture), "meta": dict(self.meta)}
        return save_artifact(path, tensors, kind=KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TicketSet:
        """Read a set written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is truncated, is not safetensors, or does not hold a valid set.
        """
        tensors, metadata = load_artifact(path, kind=KIND)
        parts: dict[str, dict[str, Tensor]] = {"params": {}, "masks": {}, "scores": {}}
        try:
            for name, value in tensors.items():
                part, own = name.split(".", 1)
                parts[part][own] = value
            return cls(
                **parts, architecture=architecture_from(metadata["architecture"]), meta=metadata["meta"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{os.fspath(path)} does not hold a valid set of tickets: {error!r}; make or copy it again"
            ) from error


def _check(
    what: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    """Refuse tensors of other names, shapes or types."""
    if tensors.keys() != shapes.keys():
        raise ValueError(
            f"{what} must have the names {', '.join(shapes)}, got {', '.join(tensors) or 'none'}"
        )
    for name, shape in shapes.items():
        value = tensors[name]
        if value.shape[1:] != shape or value.dtype != dtype:
            raise ValueError(
                f"{what}[{name!r}] must be {dtype} of shape (N, {', '.join(map(str, shape))}), got {value.dtype} of "
                f"shape {tuple(value.shape)}"
            )
