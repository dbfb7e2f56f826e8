"""Recipes: configurations of meta-training as files, those of the shipped rules among them."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from nfn_opt.meta.config import MetaTrainConfig
from nfn_opt.optim.rule import closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Config = TypeVar("Config")

_SUFFIX = ".toml"


def available_recipes() -> list[str]:
    """Names of the recipes that come with the library.

    Example:
        >>> "celo2" in available_recipes()
        True
    """
    return sorted(_shipped())


def load_recipe(name: str | os.PathLike[str], *, out: Path) -> MetaTrainConfig:
    """The configuration of a recipe.

    A recipe has the fields of :class:`MetaTrainConfig`, in TOML, of which those that are left out keep their
    defaults. A run's ``config.json`` is a recipe, too.

    Args:
        name: Path of a file ``*.toml`` or ``*.json``, or one of :func:`available_recipes`.
        out: Folder that the run is to write to.

    Raises:
        ValueError: If there is no such recipe, or it has unknown options or values out of range; the message names
            them.

    Example:
        >>> load_recipe("celo2", out=Path("runs/celo2")).inner.estimator
        'pes'
    """
    text, kind = _read(os.fspath(name))
    try:
        record = tomllib.loads(text) if kind == _SUFFIX else json.loads(text)
    except ValueError as error:
        raise ValueError(f"the recipe {os.fspath(name)} is not valid {kind[1:].upper()}: {error}") from error
    record = record.get("config", record)
    record = {key: value for key, value in record.items() if key != "out"}
    try:
        return dataclasses.replace(from_record(MetaTrainConfig, {**record, "out": "."}), out=out)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the recipe {os.fspath(name)} is refused: {error}") from error


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


def _read(name: str) -> tuple[str, str]:
    """Text of a recipe, and the suffix of its format."""
    path = Path(name)
    if path.suffix in (_SUFFIX, ".json"):
        if not path.exists():
            raise ValueError(f"there is no recipe {name}: no such file{_offer()}")
        return path.read_text(), path.suffix
    shipped = _shipped()
    if name not in shipped:
        raise ValueError(f"there is no recipe {name!r}{closest(name, list(shipped))}{_offer()}")
    return shipped[name].read_text(), _SUFFIX


def _offer() -> str:
    names = ", ".join(available_recipes())
    return f"; expected one of {names}, or the path of a file .toml, or of a run's config.json"


def _shipped() -> dict[str, Any]:
    folder = importlib.resources.files("nfn_opt.optim").joinpath("recipes")
    if not folder.is_dir():
        return {}
    return {file.name[: -len(_SUFFIX)]: file for file in folder.iterdir() if file.name.endswith(_SUFFIX)}
