"""A zoo whose networks differ in architecture: those of the same one are kept stacked, in groups."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfn_opt.artifacts import ArtifactError, atomic_write, load_artifact, save_artifact
from nfn_opt.data.images import part_sizes
from nfn_opt.data.zoos.architecture import SCORES
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
from nfn_opt.data.zoos.varied_architecture import VariedArchitecture, VariedCnn

__all__ = ["VariedGroup", "VariedZoo"]

KIND = "varied_zoo"
"""The kind of a `VariedZoo`'s file."""

PREFIX = "group."
"""Of the names of parameters in a file: "group.3.layers.0.weight"."""


@dataclasses.dataclass(frozen=True, eq=False)
class VariedGroup:
    """All networks of one architecture.

    Attributes:
        architecture: Theirs.
        params: For each name of ``architecture.parameter_shapes`` a float tensor of shape (n, *shape).
        rows: Which networks of the zoo they are, int64, ascending, shape (n,).
    """

    architecture: VariedArchitecture
    params: Mapping[str, Tensor]
    rows: Tensor

    def __post_init__(self) -> None:
        shapes = {
            name: (len(self.rows), *shape) for name, shape in self.architecture.parameter_shapes.items()
        }
        found = {name: tuple(value.shape) for name, value in self.params.items()}
        if found != shapes or not all(value.is_floating_point() for value in self.params.values()):
            raise ValueError(f"params must be float tensors of the shapes {shapes}, got {found}")

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class VariedZoo:
    """Networks of many architectures, with how each was trained and how good it is. Nothing is changed in place.

    Attributes:
        members: The networks by architecture; every network of the zoo is in one group.
        table: Columns by name, one value a network: hyperparameters and scores (`SCORES`).
        left_out: How many networks were left out because they are not finite, or could not be read.
        meta: Anything that JSON can hold: how and from what the zoo was made.

    Raises:
        ValueError: If the groups do not share out the rows of the table, or two have the same architecture.

    Example:
        >>> one = VariedArchitecture(
        ...     widths=(4,), kernel_sizes=(3,), strides=(1,), residuals=(-1,), activations=("relu",)
        ... )
        >>> params = {name: torch.zeros(2, *shape) for name, shape in one.parameter_shapes.items()}
        >>> zoo = VariedZoo((VariedGroup(one, params, torch.arange(2)),), {"test_accuracy": torch.tensor([0.1, 0.7])})
        >>> zoo, zoo.module(1).fc
        (VariedZoo(2 CNNs of 1 architectures, 162 to 162 parameters, test accuracy 10.0 % to 70.0 %),
        Linear(in_features=4, out_features=10, bias=True))
    """

    members: Sequence[VariedGroup]
    table: Mapping[str, Column]
    left_out: int = 0
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *(group.rows for group in self.members)])
        if rows.sort().values.tolist() != list(range(len(rows))):
            raise ValueError(f"groups must share out the rows 0 to {len(rows) - 1}, got {rows.tolist()}")
        if len({group.architecture for group in self.members}) != len(self.members):
            raise ValueError("each architecture must have one group, got two of the same")
        check_table(self.table, len(rows))

    def __len__(self) -> int:
        return sum(len(group) for group in self.members)

    def __repr__(self) -> str:
        sizes = [group.architecture.parameters for group in self.members] or [0]
        text = f"VariedZoo({len(self)} CNNs of {len(self.members)} architectures"
        text += f", {min(sizes):,} to {max(sizes):,} parameters"
        accuracy = self.table.get("test_accuracy")
        if isinstance(accuracy, Tensor) and accuracy.isfinite().any():
            known = accuracy[accuracy.isfinite()]
            text += f", test accuracy {known.min():.1%} to {known.max():.1%}".replace("%", " %")
        return text + (f", {self.left_out} left out)" if self.left_out else ")")

    def groups(self) -> Iterator[VariedGroup]:
        """The networks by architecture: stacked parameters, and their rows in the table."""
        return iter(self.members)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> VariedZoo:
        """Some of the networks, as a zoo: by number (a zoo of one), slice, list of numbers or boolean mask.

        Raises:
            IndexError: If a number is out of range, or a mask has not one value a network.
        """
        index = [index] if isinstance(index, int) else index
        numbers = torch.arange(len(self))[index if isinstance(index, slice) else torch.as_tensor(index)]
        group_of, place_of = self._places()
        members = []
        for number, group in enumerate(self.members):
            rows = (group_of[numbers] == number).nonzero().flatten()
            if len(rows):
                places = place_of[numbers[rows]]
                params = {name: value[places] for name, value in group.params.items()}
                members.append(VariedGroup(group.architecture, params, rows))
        return dataclasses.replace(self, members=tuple(members), table=rows_of(self.table, numbers))

    def _places(self) -> tuple[Tensor, Tensor]:
        """Group of each network, and its place in it, int64, shape (N,) each."""
        group_of, place_of = torch.empty(2, len(self), dtype=torch.int64)
        for number, group in enumerate(self.members):
            group_of[group.rows], place_of[group.rows] = number, torch.arange(len(group))
        return group_of, place_of

    @property
    def failed(self) -> Tensor:
        """Which networks have a parameter or a score that is not finite, bool, shape (N,)."""
        failed = torch.zeros(len(self), dtype=torch.bool)
        for group in self.members:
            for value in group.params.values():
                failed[group.rows] |= ~value.flatten(1).isfinite().all(1)
        for name in SCORES:
            column = self.table.get(name)
            if isinstance(column, Tensor):
                failed |= ~column.isfinite()
        return failed

    def finite(self) -> VariedZoo:
        """The networks that are finite in everything; ``left_out`` counts the others."""
        failed = self.failed
        if not failed.any():
            return self
        return dataclasses.replace(self[~failed], left_out=self.left_out + int(failed.sum()))

    def split(
        self, sizes: Mapping[str, float] | None = None, *, seed: int = 0, by_architecture: bool = False
    ) -> dict[str, VariedZoo]:
        """Cut into disjoint parts, at random, but always the same for the same zoo, sizes and seed.

        Args:
            sizes: Name and size of each part, as in `Zoo.split`; of architectures with `by_architecture`.
            seed: Seed of the order in which they are dealt out.
            by_architecture: Deal out whole architectures, so that a part has none that another has.

        Raises:
            ValueError: If a part would be empty, or they sum to more than there are.
            TypeError: If counts and fractions are mixed.
        """
        total, what = (len(self.members), "architecture") if by_architecture else (len(self), "network")
        counts = part_sizes(sizes, total, what)
        # numpy promises that the streams of RandomState never change; torch promises it of none.
        order = torch.from_numpy(np.random.RandomState(seed).permutation(total))
        dealt = order.split([*counts.values(), total - sum(counts.values())])
        group_of, _ = self._places()
        return {
            name: self[torch.isin(group_of, part)] if by_architecture else self[part]
            for name, part in zip(counts, dealt, strict=False)
        }

    @staticmethod
    def concat(zoos: Sequence[VariedZoo]) -> VariedZoo:
        """Join zoos with the same columns; `meta` is that of the first.

        Raises:
            ValueError: If there are none, or they differ in columns.
        """
        if not zoos:
            raise ValueError("concat needs at least one VariedZoo, got none")
        first, start = zoos[0], 0
        found: dict[VariedArchitecture, list[tuple[VariedGroup, int]]] = {}
        for number, zoo in enumerate(zoos):
            if list(zoo.table) != list(first.table):
                raise ValueError(f"zoos[{number}] has the columns {list(zoo.table)}, not {list(first.table)}")
            for group in zoo.members:
                found.setdefault(group.architecture, []).append((group, start))
            start += len(zoo)
        members = []
        for architecture, parts in found.items():
            params = {
                name: torch.cat([group.params[name] for group, _ in parts])
                for name in architecture.parameter_shapes
            }
            members.append(
                VariedGroup(architecture, params, torch.cat([group.rows + offset for group, offset in parts]))
            )
        return dataclasses.replace(
            first,
            members=tuple(members),
            table={name: joined([zoo.table[name] for zoo in zoos]) for name in first.table},
            left_out=sum(zoo.left_out for zoo in zoos),
        )

    def module(self, index: int) -> VariedCnn:
        """One network as an ordinary module, with a copy of its parameters.

        Raises:
            IndexError: If there is no such network.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"network {index} of a zoo of {len(self)}")
        for group in self.members:
            place = (group.rows == index % len(self)).nonzero().flatten().tolist()
            if place:
                network = VariedCnn(group.architecture)
                state = {name: value[place[0]].detach().clone() for name, value in group.params.items()}
                network.to(next(iter(state.values())).dtype).load_state_dict(state)
                return network
        raise AssertionError(f"no group has row {index}")

    def modules(self) -> Iterator[VariedCnn]:
        """All networks as ordinary modules, one after the other."""
        return (self.module(index) for index in range(len(self)))

    def csv(self) -> str:
        """The table as text, one line a network, numbers in full."""
        return table_csv(self.table)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the zoo to one safetensors file, and its table as CSV beside it, for people and spreadsheets.

        Raises:
            TypeError: If `meta` is no JSON.
            ArtifactError: If `path` is a folder.
            OSError: If it cannot be written: the disk is full, say.
        """
        tensors, columns = pack_table(self.table)
        for number, group in enumerate(self.members):
            tensors[f"{PREFIX}{number}.rows"] = group.rows
            tensors |= {f"{PREFIX}{number}.params.{name}": value for name, value in group.params.items()}
        metadata = {
            "architectures": [dataclasses.asdict(group.architecture) for group in self.members],
            "columns": columns,
            "left_out": self.left_out,
            "meta": dict(self.meta),
        }
        save_artifact(path, tensors, kind=KIND, metadata=metadata)
        with atomic_write(table_path(path)) as temporary:
            temporary.write_text(self.csv(), encoding="utf-8", newline="")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, keep_failed: bool = False) -> VariedZoo:
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
            members = []
            for number, described in enumerate(metadata["architectures"]):
                architecture = VariedArchitecture(**described)
                params = {
                    name: tensors[f"{PREFIX}{number}.params.{name}"] for name in architecture.parameter_shapes
                }
                members.append(VariedGroup(architecture, params, tensors[f"{PREFIX}{number}.rows"]))
            zoo = cls(
                tuple(members),
                unpack_table(tensors, metadata["columns"]),
                left_out=int(metadata["left_out"]),
                meta=metadata["meta"],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArtifactError(
                f"{os.fspath(path)} does not hold a valid zoo: {error!r}; make or copy it again"
            ) from error
        return zoo if keep_failed else zoo.finite()
