"""Tables with one line a network: columns of numbers or of words, as zoos keep and store them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Column",
    "Table",
    "check_table",
    "joined",
    "pack_table",
    "rows_of",
    "table_csv",
    "table_path",
    "unpack_table",
]

Column = Tensor | tuple[str, ...]
"""A column of the table: numbers, shape (N,), or words."""

Table = Mapping[str, Column]
"""Columns by name."""

PREFIX = "table."
"""Of the names of columns among the tensors of a file."""


def check_table(table: Table, count: int) -> None:
    """Refuse columns of another length.

    Raises:
        ValueError: If a column has not one value a network.
    """
    for name, column in table.items():
        if isinstance(column, Tensor) and column.ndim != 1:
            raise ValueError(
                f"table[{name!r}] must have one number a network, got shape {tuple(column.shape)}"
            )
        if len(column) != count:
            raise ValueError(f"table[{name!r}] must have {count} values, one a network, got {len(column)}")


def rows_of(table: Table, numbers: Tensor) -> dict[str, Column]:
    """Some lines of a table, by their numbers, int64.

    Example:
        >>> rows_of({"optimizer": ("sgd", "adam"), "steps": torch.tensor([3, 4])}, torch.tensor([1]))
        {'optimizer': ('adam',), 'steps': tensor([4])}
    """
    return {
        name: column[numbers] if isinstance(column, Tensor) else tuple(column[number] for number in numbers)
        for name, column in table.items()
    }


def joined(columns: Sequence[Column]) -> Column:
    """Columns of one name, one below the other; words if one of them has words."""
    numbers = [column for column in columns if isinstance(column, Tensor)]
    if len(numbers) == len(columns):
        return torch.cat(numbers)
    return tuple(str(word) for column in columns for word in column)


def table_csv(table: Table) -> str:
    """The table as text, one line a network, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    values = [column.tolist() if isinstance(column, Tensor) else column for column in table.values()]
    writer.writerows(zip(*values, strict=True))
    return text.getvalue()


def table_path(path: str | os.PathLike[str]) -> Path:
    """Where the table of a zoo's file lies.

    Example:
        >>> table_path("runs/zoo.safetensors").as_posix()
        'runs/zoo.csv'
    """
    return Path(path).with_suffix(".csv")


def pack_table(table: Table) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors to store, words as numbers, and what JSON must hold to read them: `unpack_table` is the inverse."""
    tensors: dict[str, Tensor] = {}
    columns: list[dict[str, Any]] = []
    for name, column in table.items():
        if isinstance(column, Tensor):
            columns.append({"name": name, "words": None})
            tensors[PREFIX + name] = column
        else:
            words, codes = np.unique(np.asarray(column, dtype=str), return_inverse=True)
            columns.append({"name": name, "words": words.tolist()})
            tensors[PREFIX + name] = torch.from_numpy(codes.astype(np.int64))
    return tensors, columns


def unpack_table(tensors: Mapping[str, Tensor], columns: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """A table from what `pack_table` made of it.

    Raises:
        KeyError, ValueError: If a column is missing, or its numbers stand for no words.
    """
    return {column["name"]: _read(tensors[PREFIX + column["name"]], column["words"]) for column in columns}


def _read(values: Tensor, words: Sequence[str] | None) -> Column:
    if words is None:
        return values
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < len(words):
        raise ValueError(
            f"a column of the words {list(words)} has numbers from {values.min()} to {values.max()}"
        )
    return tuple(words[number] for number in values.tolist())
