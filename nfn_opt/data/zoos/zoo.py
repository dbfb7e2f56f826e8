"""A zoo: many networks of one architecture, with how each was trained and how good it is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError, atomic_write, load_artifact, save_artifact
from nfn_opt.data.images import part_sizes
from nfn_opt.data.zoos.adders import GruAdderArchitecture
from nfn_opt.data.zoos.architecture import CnnArchitecture, ZooArchitecture
from nfn_opt.data.zoos.table import (
    Column,
    check_table,
    joined,
    pack_table,
    rows_of,
    table_csv,
    table_path,
    unpack_table,
)

__all__ = ["ARCHITECTURES", "Zoo"]

KIND = "zoo"
"""The kind of a `Zoo`'s file."""

ARCHITECTURES: Mapping[str, type[ZooArchitecture]] = {
    architecture.kind: architecture for architecture in (CnnArchitecture, GruAdderArchitecture)
}
"""The descriptions of networks that a file may hold."""

FINITE_AT_ONCE = 4096
"""Networks that are looked through at once."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Zoo:
    """Networks of one architecture. Methods return new zoos; nothing is changed in place.

    A network whose training diverged has parameters or scores that are not finite. It may be in a zoo, where
    `failed` marks it, but `finite` and `load` leave it out and say how many there were.

    Attributes:
        params: For each name of ``architecture.parameter_shapes`` a float tensor of shape (N, *shape).
        architecture: What the networks are.
        table: Columns by name, one value a network: hyperparameters (of CNNs with "activation") and scores
            (``architecture.scores``).
        left_out: How many networks were left out because they are not finite.
        meta: Anything that JSON can hold: how and from what the zoo was made.

    Raises:
        ValueError: If shapes do not fit together, or the table has no activations.

    Example:
        >>> architecture = CnnArchitecture(widths=(4,))
        >>> params = {name: torch.zeros(3, *shape) for name, shape in architecture.parameter_shapes.items()}
        >>> table = {"activation": ("relu", "tanh", "relu"), "test_accuracy": torch.tensor([0.1, 0.7, 0.9])}
        >>> zoo = Zoo(params, architecture, table)
        >>> zoo
        Zoo(3 x CNN 1-4-10 of 90 parameters, test accuracy 10.0 % to 90.0 %)
        >>> zoo[1:].table["test_accuracy"].tolist(), zoo.module(1).activation
        ([0.699..., 0.899...], 'tanh')
    """

    params: Mapping[str, Tensor]
    architecture: ZooArchitecture
    table: Mapping[str, Column]
    left_out: int = 0
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = self.architecture.parameter_shapes
        if self.params.keys() != shapes.keys():
            raise ValueError(
                f"params must have the names {', '.join(shapes)}, got {', '.join(self.params) or 'none'}"
            )
        for name, shape in shapes.items():
            value = self.params[name]
            if value.shape != (len(self), *shape) or not value.is_floating_point():
                raise ValueError(
                    f"params[{name!r}] must be a float tensor of shape {(len(self), *shape)}, got {value.dtype} of "
                    f"shape {tuple(value.shape)}"
                )
        check_table(self.table, len(self))
        self.architecture.check_table(self.table)

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    def __repr__(self) -> str:
        one = self.architecture
        text = f"Zoo({len(self)} x {one.summary} of {one.parameters:,} parameters"
        score = self.table.get(one.scores[-1])
        if isinstance(score, Tensor) and score.isfinite().any():
            known = score[score.isfinite()]
            name = one.scores[-1].replace("_", " ")
            text += f", {name} {known.min():.1%} to {known.max():.1%}".replace("%", " %")
        return text + (f", {self.left_out} left out that are not finite)" if self.left_out else ")")

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Zoo:
        """Some of the networks, as a zoo: by number (a zoo of one), slice, list of numbers or boolean mask.

        Raises:
            IndexError: If a number is out of range, or a mask has not one value a network.
        """
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"network {index} of a zoo of {len(self)}")
            index = [index]
        numbers = torch.arange(len(self))[index if isinstance(index, slice) else torch.as_tensor(index)]
        return dataclasses.replace(
            self,
            params={name: value[numbers] for name, value in self.params.items()},
            table=rows_of(self.table, numbers),
        )

    @property
    def failed(self) -> Tensor:
        """Which networks have a parameter or a score that is not finite, bool, shape (N,)."""
        failed = torch.zeros(len(self), dtype=torch.bool)
        for value in self.params.values():
            for start in range(0, len(self), FINITE_AT_ONCE):
                some = value[start : start + FINITE_AT_ONCE]
                failed[start : start + FINITE_AT_ONCE] |= ~some.flatten(1).isfinite().all(1)
        for name in self.architecture.scores:
            column = self.table.get(name)
            if isinstance(column, Tensor):
                failed |= ~column.isfinite()
        return failed

    def finite(self) -> Zoo:
        """The networks that are finite in everything; ``left_out`` counts the others."""
        failed = self.failed
        if not failed.any():
            return self
        return dataclasses.replace(self[~failed], left_out=self.left_out + int(failed.sum()))

    def split(self, sizes: Mapping[str, float] | None = None, *, seed: int = 0) -> dict[str, Zoo]:
        """Cut into disjoint parts, at random, but always the same for the same zoo, sizes and seed.

        Args:
            sizes: Name and size of each part: all counts (int) or all fractions (float). They may sum to less than
                the whole. None stands for train 0.8, val 0.1 and test 0.1.
            seed: Seed of the order in which the networks are dealt out, part after part.

        Raises:
            ValueError: If a part would be empty, or they sum to more than there are.
            TypeError: If counts and fractions are mixed.
        """
        counts = part_sizes(sizes, len(self), "network")
        # numpy promises that the streams of RandomState never change; torch promises it of none.
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(self)))
        dealt = order.split([*counts.values(), len(self) - sum(counts.values())])
        return {name: self[part] for name, part in zip(counts, dealt, strict=False)}

    @staticmethod
    def concat(zoos: Sequence[Zoo]) -> Zoo:
        """Join zoos of one architecture with the same columns; `meta` is that of the first.

        Raises:
            ValueError: If there are none, or they differ in architecture or columns.
        """
        if not zoos:
            raise ValueError("concat needs at least one Zoo, got none")
        first = zoos[0]
        for number, zoo in enumerate(zoos):
            if zoo.architecture != first.architecture or list(zoo.table) != list(first.table):
                raise ValueError(
                    f"zoos[{number}] is {zoo!r} with {list(zoo.table)}, which cannot be joined to {first!r}"
                )
        return dataclasses.replace(
            first,
            params={name: torch.cat([zoo.params[name] for zoo in zoos]) for name in first.params},
            table={name: joined([zoo.table[name] for zoo in zoos]) for name in first.table},
            left_out=sum(zoo.left_out for zoo in zoos),
        )

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """Copy of the parameters of one network, as ``load_state_dict`` of `module` takes them."""
        return {name: value[index].detach().clone() for name, value in self.params.items()}

    def module(self, index: int) -> nn.Module:
        """One network as an ordinary module, with a copy of its parameters; CNNs take images in [-1, 1]."""
        network = self.architecture.module({name: column[index] for name, column in self.table.items()})
        dtype = next(iter(self.params.values())).dtype
        network.to(dtype).load_state_dict(self.state_dict(index))
        return network

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the zoo to one safetensors file, and its table as CSV beside it, for people and spreadsheets.

        The file holds everything, the table too; ``load`` reads nothing else. Each of the two is written whole or not
        at all.

        Raises:
            TypeError: If `meta` is no JSON.
            ArtifactError: If `path` is a folder.
            OSError: If it cannot be written: the disk is full, say.
        """
        table, columns = pack_table(self.table)
        tensors = {f"params.{name}": value for name, value in self.params.items()} | table
        metadata = {
            "architecture": dataclasses.asdict(self.architecture),
            "architecture_kind": self.architecture.kind,
            "columns": columns,
            "left_out": self.left_out,
            "meta": dict(self.meta),
        }
        save_artifact(path, tensors, kind=KIND, metadata=metadata)
        with atomic_write(table_path(path)) as temporary:
            temporary.write_text(self.csv(), encoding="utf-8", newline="")
        return Path(path)

    def csv(self) -> str:
        """The table as text, one line a network, numbers in full."""
        return table_csv(self.table)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, keep_failed: bool = False) -> Zoo:
        """Read a zoo written by `save`.

        Args:
            path: The safetensors file.
            keep_failed: Keep networks that are not finite. Otherwise they are left out, and ``left_out`` counts them.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is truncated, is not safetensors, or does not hold a valid zoo.
        """
        tensors, metadata = load_artifact(path, kind=KIND)
        try:
            zoo = cls(
                params={
                    name.removeprefix("params."): value
                    for name, value in tensors.items()
                    if name.startswith("params.")
                },
                architecture=_architecture(metadata),
                table=unpack_table(tensors, metadata["columns"]),
                left_out=int(metadata["left_out"]),
                meta=metadata["meta"],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArtifactError(
                f"{os.fspath(path)} does not hold a valid zoo: {error!r}; make or copy it again"
            ) from error
        return zoo if keep_failed else zoo.finite()


def _architecture(metadata: Mapping[str, Any]) -> ZooArchitecture:
    """That of a file; files of the first version were all of CNNs."""
    kind = metadata.get("architecture_kind", CnnArchitecture.kind)
    if kind not in ARCHITECTURES:
        raise ValueError(f"its networks are {kind!r}, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[kind](**metadata["architecture"])
