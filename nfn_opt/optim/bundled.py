"""Trained rules that come with the library."""

from __future__ import annotations

import importlib.resources
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nfn_opt.optim.rule import UpdateRule, closest
from nfn_opt.optim.storage import load_rule, rule_metadata

_SUFFIX = ".safetensors"


def available_rules() -> list[str]:
    """Names of the rules that :func:`pretrained` can load."""
    return sorted(_files())


def pretrained(name: str = "default") -> UpdateRule:
    """Load a trained rule that comes with the library.

    Args:
        name: One of :func:`available_rules`.

    Raises:
        ValueError: If there is no such rule; the message lists all and the closest.
    """
    with _file(name) as path:
        return load_rule(path)


def pretrained_metadata(name: str) -> dict[str, Any]:
    """How a rule that comes with the library was trained, as :func:`~nfn_opt.optim.rule_metadata`.

    Raises:
        ValueError: As :func:`pretrained`.

    Example:
        >>> pretrained_metadata("default")["meta_training"]["rule"]
        'spectral'
    """
    with _file(name) as path:
        return rule_metadata(path)


def _file(name: str) -> AbstractContextManager[Path]:
    files = _files()
    if name not in files:
        raise ValueError(
            f"no pretrained rule {name!r} comes with this installation{closest(name, list(files))}; expected "
            f"one of {sorted(files)}, or train one and give the path of its file"
        )
    return importlib.resources.as_file(files[name])


def _files() -> dict[str, Any]:
    folder = importlib.resources.files("nfn_opt.optim").joinpath("pretrained")
    if not folder.is_dir():
        return {}
    return {file.name[: -len(_SUFFIX)]: file for file in folder.iterdir() if file.name.endswith(_SUFFIX)}
