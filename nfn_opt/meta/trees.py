"""Nested dicts of tensors: the one container that inner parameters, states and batches are kept in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Tree = dict[str, Any]
"""Nested dicts whose leaves are tensors."""

SEPARATOR = "/"


def tree_map(function: Callable[..., Tensor], tree: Mapping[str, Any], *others: Mapping[str, Any]) -> Tree:
    """Apply a function to the matching leaves of trees of one structure.

    Example:
        >>> import torch
        >>> tree_map(torch.add, {"a": {"b": torch.tensor(1)}}, {"a": {"b": torch.tensor(2)}})
        {'a': {'b': tensor(3)}}
    """
    return {
        key: tree_map(function, value, *(other[key] for other in others))
        if isinstance(value, Mapping)
        else function(value, *(other[key] for other in others))
        for key, value in tree.items()
    }


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """One flat dict whose keys are paths, so that a tree can be stored.

    Raises:
        ValueError: If a key holds the separator ``/``.
        TypeError: If a leaf is no tensor.

    Example:
        >>> import torch
        >>> list(flatten_tree({"m": {"w": torch.zeros(1), "b": torch.zeros(1)}, "t": torch.zeros(1)}))
        ['m/w', 'm/b', 't']
    """
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        if SEPARATOR in key:
            raise ValueError(
                f"key {key!r} of a state holds {SEPARATOR!r}, which separates nested keys; rename it"
            )
        if isinstance(value, Mapping):
            flat |= flatten_tree(value, f"{prefix}{key}{SEPARATOR}")
        elif isinstance(value, Tensor):
            flat[prefix + key] = value
        else:
            raise TypeError(
                f"{prefix}{key} of a state is a {type(value).__name__}, expected a tensor or dict of tensors"
            )
    return flat


def unflatten_tree(flat: Mapping[str, Tensor]) -> Tree:
    """Undo :func:`flatten_tree`; dicts that held no tensor are not brought back."""
    tree: Tree = {}
    for path, tensor in flat.items():
        *parents, last = path.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    return tree


def map_data(function: Callable[..., Tensor], data: Any, *others: Any) -> Any:
    """Apply a function to the matching tensors of minibatches, which may be tuples, lists and dicts."""
    if isinstance(data, Tensor):
        return function(data, *others)
    if isinstance(data, Mapping):
        return {
            key: map_data(function, value, *(other[key] for other in others)) for key, value in data.items()
        }
    if isinstance(data, tuple | list):
        return type(data)(map_data(function, *parts) for parts in zip(data, *others, strict=True))
    raise TypeError(f"a minibatch holds a {type(data).__name__}, expected tensors, tuples, lists and dicts")
