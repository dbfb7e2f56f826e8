"""Predictors that ship with the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["list_predictors", "predictor_path"]

FOLDER = Path(__file__).parent / "pretrained"


def list_predictors() -> list[str]:
    """Names of the predictors that ship, for ``Predictor.pretrained``."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def predictor_path(name: str) -> Path:
    """File of a predictor that ships.

    Raises:
        ValueError: If there is none of that name.
    """
    if name in list_predictors():
        return FOLDER / f"{name}.safetensors"
    raise ValueError(
        f"no pretrained predictor {name!r}; there are {', '.join(list_predictors()) or 'none'}. Train one with "
        "scripts/train_predictor.py and load it with Predictor.load"
    )
