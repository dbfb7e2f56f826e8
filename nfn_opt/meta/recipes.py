"""Recipes: configurations of meta-training as files, those of the shipped rules among them."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import sys
from pathlib import Path
from typing import Any

from nfn_opt.meta.config import MetaTrainConfig
from nfn_opt.meta.records import from_record
from nfn_opt.optim.rule import closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    record = record.get("config", record) if isinstance(record, dict) else record
    if not isinstance(record, dict):
        raise ValueError(
            f"the recipe {os.fspath(name)} is a {type(record).__name__}, expected options by name"
        )
    record = {key: value for key, value in record.items() if key != "out"}
    try:
        return dataclasses.replace(from_record(MetaTrainConfig, {**record, "out": "."}), out=out)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the recipe {os.fspath(name)} is refused: {error}") from error


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
