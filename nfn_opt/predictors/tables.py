"""From a zoo and its table to the networks, inputs and targets of a predictor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nfn_opt.data.images import part_sizes
from nfn_opt.data.zoos.architecture import CnnArchitecture
from nfn_opt.data.zoos.table import Column
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.predictors.architectures import Architecture
from nfn_opt.predictors.config import PredictorConfig
from nfn_opt.predictors.group import NetworkGroup

__all__ = ["PredictorData", "column_targets", "input_names", "table_inputs", "zoo_data"]


@dataclasses.dataclass(frozen=True, eq=False)
class PredictorData:
    """Networks to train a predictor on, and to test it.

    Attributes:
        architecture: What the predictor is made for.
        groups: The networks, those of one architecture in a group.
        column: What is predicted.
        inputs: Names of the further numbers that each network comes with.
        classes: Names of the classes, if classes are predicted.
        source: Where the networks come from.
        left_out: Networks that were left out because they are not finite.
    """

    architecture: Architecture
    groups: Sequence[NetworkGroup]
    column: str
    inputs: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    source: str = ""
    left_out: int = 0

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def config(self, config: PredictorConfig) -> PredictorConfig:
        """The configuration of a predictor of these networks, with their inputs, and classes if there are some."""
        if not self.classes:
            return dataclasses.replace(config, inputs=self.inputs)
        return dataclasses.replace(config, inputs=self.inputs, target="class", outputs=len(self.classes))

    def split(self, sizes: Mapping[str, float], seed: int) -> dict[str, list[NetworkGroup]]:
        """Deal the networks to disjoint parts at random, always the same for the same networks, sizes and seed.

        Args:
            sizes: Name and fraction of each part.
            seed: Seed of the order in which networks are dealt out, part after part; as ``Zoo.split``.
        """
        counts = part_sizes(sizes, len(self), "network")
        # numpy promises that the streams of RandomState never change; torch promises it of none.
        order = torch.from_numpy(np.random.RandomState(seed).permutation(len(self)))
        sections = [*counts.values(), len(self) - sum(counts.values())]
        dealt = dict(zip(counts, order.split(sections), strict=False))
        return {name: self._chosen(numbers) for name, numbers in dealt.items()}

    def _chosen(self, numbers: Tensor) -> list[NetworkGroup]:
        """The networks of these numbers, group after group; groups without one are left out."""
        chosen, first = [], 0
        for group in self.groups:
            own = numbers[(numbers >= first) & (numbers < first + len(group))] - first
            chosen += [group[own]] if len(own) else []
            first += len(group)
        return chosen


def zoo_data(
    zoo: Zoo, column: str = "test_accuracy", beside: Sequence[str] = ("activation",), source: str = ""
) -> PredictorData:
    """Networks of a zoo with one column to predict, and others beside the weights.

    Args:
        zoo: The zoo; networks that are not finite are left out, and counted.
        column: What is predicted: numbers, or words for classes.
        beside: Columns that are given to the predictor beside the weights; words become 0 and 1.
        source: Where the zoo comes from.

    Raises:
        ValueError: If there is no such column, or numbers are missing in it.
    """
    if not isinstance(zoo.architecture, CnnArchitecture):
        raise ValueError(
            f"the networks are {zoo.architecture.summary}, expected small CNNs; for others make a Predictor of their "
            "WeightSpace and train it with train_predictor"
        )
    good = zoo.finite()
    targets, classes = column_targets(good.table, column)
    names = input_names(good.table, beside)
    inputs = table_inputs(good.table, names) if names else None
    group = NetworkGroup(good.params, targets, inputs)
    return PredictorData(zoo.architecture, [group], column, names, classes, source, good.left_out)


def column_targets(table: Mapping[str, Column], column: str) -> tuple[Tensor, tuple[str, ...]]:
    """A column as targets: numbers as they are, words as numbers of classes, with the names of the classes.

    Example:
        >>> column_targets({"optimizer": ("sgd", "adam", "sgd")}, "optimizer")
        (tensor([1, 0, 1]), ('adam', 'sgd'))
    """
    found = _existing(table, column)
    if isinstance(found, Tensor):
        return found.float(), ()
    classes = tuple(sorted(set(found)))
    return torch.tensor([classes.index(word) for word in found]), classes


def input_names(table: Mapping[str, Column], columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the inputs that columns give: of numbers their own, of words one for each but the first.

    Example:
        >>> input_names({"activation": ("relu", "tanh"), "dropout": torch.zeros(2)}, ["activation", "dropout"])
        ('activation=tanh', 'dropout')
    """
    names: list[str] = []
    for column in columns:
        found = _existing(table, column)
        words = [] if isinstance(found, Tensor) else sorted(set(found))[1:]
        names += [f"{column}={word}" for word in words] if words else [column] * isinstance(found, Tensor)
    return tuple(names)


def table_inputs(table: Mapping[str, Column], names: Sequence[str]) -> Tensor:
    """The inputs of these names, shape (N, I).

    Example:
        >>> table_inputs({"activation": ("relu", "tanh")}, ["activation=tanh"]).tolist()
        [[0.0], [1.0]]
    """
    columns = []
    for name in names:
        column, _, word = name.partition("=")
        found = _existing(table, column)
        if isinstance(found, Tensor):
            columns.append(found.float())
        else:
            columns.append(torch.tensor([float(each == word) for each in found]))
    return torch.stack(columns, 1)


def _existing(table: Mapping[str, Column], column: str) -> Column:
    if column not in table:
        raise ValueError(f"there is no column {column!r}, expected one of {', '.join(table)}")
    return table[column]
