"""From nested dicts of JSON values to configurations."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from nfn_opt.optim.rule import closest

Config = TypeVar("Config")


def from_record(cls: type[Config], record: Mapping[str, Any], prefix: str = "") -> Config:
    """Undo :meth:`MetaTrainConfig.record`, for it and its parts.

    Args:
        cls: The class.
        record: Values of its fields; those left out keep their defaults.
        prefix: What names in messages start with.

    Raises:
        ValueError: If a field is unknown, or a value out of range.
        TypeError: If a value is of another type than the field.
    """
    hints = typing.get_type_hints(cls)
    for name in record:
        if name not in hints:
            raise ValueError(f"there is no option {prefix}{name}{closest(name, list(hints))}")
    return cls(**{name: _value(hints[name], value, f"{prefix}{name}") for name, value in record.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    """A JSON value as a value of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        plain = [one for one in arguments if one is not type(None)]
        return _value(plain[0], value, name) if len(plain) == 1 else value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_record(hint, _checked(Mapping, value, name), f"{name}.")
    if origin is tuple:
        items = _checked(list | tuple, value, name)
        return tuple(_value(arguments[0], item, f"{name}.{i}") for i, item in enumerate(items))
    if origin is typing.Literal or hint is Any:
        return value
    if hint is Path:
        return Path(_checked(str | Path, value, name))
    if hint is float:
        return float(_checked(int | float, value, name))
    return _checked(origin or hint, value, name)


def _checked(kind: Any, value: Any, name: str) -> Any:
    wrong = isinstance(value, bool) and kind in (int, int | float)
    if wrong or not isinstance(value, kind):
        expected = getattr(kind, "__name__", None) or str(kind)
        raise TypeError(f"{name} is {value!r}, expected a value of type {expected}")
    return value
