"""From a zoo and its table to the networks, inputs and targets of a predictor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nfn_opt.data.images import part_sizes
from nfn_opt.data.zoos.architecture import SCORES, CnnArchitecture
from nfn_opt.data.zoos.table import Column
from nfn_opt.data.zoos.varied import VariedZoo
from nfn_opt.data.zoos.varied_architecture import VariedCnn
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.predictors.architectures import Architecture
from nfn_opt.predictors.config import PredictorConfig
from nfn_opt.predictors.group import NetworkGroup
from nfn_opt.weight_space import Symmetry, WeightSpace

__all__ = ["PredictorData", "column_targets", "input_names", "table_inputs", "zoo_data"]

LISTED = "activations"
"""A column of varied zoos: the activation of each layer, joined by hyphens."""


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
        words: The words of each column that inputs come from.
    """

    architecture: Architecture
    groups: Sequence[NetworkGroup]
    column: str
    inputs: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    source: str = ""
    left_out: int = 0
    words: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

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
    zoo: Zoo | VariedZoo,
    column: str | None = None,
    beside: Sequence[str] | None = None,
    source: str = "",
    *,
    symmetry: Symmetry = "hidden",
    inputs: Sequence[str] | None = None,
) -> PredictorData:
    """Networks of a zoo with one column to predict, and others beside the weights.

    Args:
        zoo: The zoo; networks that are not finite are left out, and counted.
        column: What is predicted: numbers, or words for classes. None: the score of such networks, such as the
            accuracy on test images.
        beside: Columns that are given to the predictor beside the weights; words become 0 and 1, the activations of
            a network of a varied zoo the share of layers that have each. None: the activations where they vary.
        source: Where the zoo comes from.
        symmetry: That of the predictor, ``PredictorConfig.symmetry``; not used for small CNNs.
        inputs: Names of the numbers that come of `beside`, for a part of a zoo in which not every word need occur:
            those of the data that the predictor is trained on, ``PredictorData.inputs``.

    Raises:
        ValueError: If there is no such column, or numbers are missing in it, or the networks are policies.
    """
    good = zoo.finite()
    if column is None:
        column = SCORES[-1] if isinstance(good, VariedZoo) else good.architecture.scores[-1]
    if beside is None:
        beside = [name for name in ("activation", LISTED) if name in good.table and name != column]
    elif column in beside:
        raise ValueError(f"{column} is predicted, expected other columns beside the weights; leave it out")
    targets, classes = column_targets(good.table, column)
    names = input_names(good.table, beside) if inputs is None else tuple(inputs)
    numbers = table_inputs(good.table, names) if names else None
    worded = sorted({name.partition("=")[0] for name in names if "=" in name})
    words = {name: _column_words(good.table, name) for name in worded}
    if not isinstance(good, VariedZoo):
        architecture = _read_as(good, symmetry)
        groups = [NetworkGroup(good.params, targets, numbers)]
        return PredictorData(architecture, groups, column, names, classes, source, good.left_out, words)
    groups = [
        NetworkGroup(
            group.params,
            targets[group.rows],
            None if numbers is None else numbers[group.rows],
            _space(VariedCnn(group.architecture), group.architecture.example_inputs(), symmetry),
        )
        for group in good.groups()
    ]
    first = groups[0].space
    assert first is not None
    return PredictorData(first, groups, column, names, classes, source, good.left_out, words)


def _read_as(zoo: Zoo, symmetry: Symmetry) -> Architecture:
    """What a predictor of a zoo of one architecture is made for."""
    if isinstance(zoo.architecture, CnnArchitecture):
        return zoo.architecture
    if "run" in zoo.table:
        raise ValueError(
            f"the networks are {zoo.architecture.summary} of training runs, and those of one run are alike; deal out "
            "whole runs: nfn_opt.data.policies.split_runs and train_return_predictor"
        )
    row = {name: values[0] for name, values in zoo.table.items()}
    return _space(zoo.architecture.module(row), zoo.architecture.example_inputs(), symmetry)


def _space(network: nn.Module, inputs: tuple[Tensor, ...], symmetry: Symmetry) -> WeightSpace:
    return WeightSpace.from_module(network, inputs, symmetry=symmetry)


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
        if isinstance(found, Tensor):
            names.append(column)
        else:
            names += [f"{column}={word}" for word in _column_words(table, column)[1:]]
    return tuple(names)


def table_inputs(table: Mapping[str, Column], names: Sequence[str]) -> Tensor:
    """The inputs of these names, shape (N, I).

    Example:
        >>> table_inputs({"activation": ("relu", "tanh")}, ["activation=tanh"]).tolist()
        [[0.0], [1.0]]
        >>> table_inputs({"activations": ("relu-tanh-relu-relu",)}, ["activations=tanh"]).tolist()
        [[0.25]]
    """
    columns = []
    for name in names:
        column, _, word = name.partition("=")
        found = _existing(table, column)
        if isinstance(found, Tensor):
            columns.append(found.float())
        else:
            lists = [_words(column, each) for each in found]
            columns.append(torch.tensor([each.count(word) / len(each) for each in lists]))
    return torch.stack(columns, 1)


def _column_words(table: Mapping[str, Column], column: str) -> list[str]:
    """All words of a column."""
    return sorted({word for text in _existing(table, column) for word in _words(column, str(text))})


def _words(column: str, text: str) -> list[str]:
    """The words of one network in a column: one, but for that of the activations of a varied zoo."""
    return text.split("-") if column == LISTED else [text]


def _existing(table: Mapping[str, Column], column: str) -> Column:
    if column not in table:
        raise ValueError(f"there is no column {column!r}, expected one of {', '.join(table)}")
    return table[column]
