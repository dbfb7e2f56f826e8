"""Which networks a predictor reads: their weight space, and how it is written into a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from nfn_opt.data.zoos.architecture import CnnArchitecture, SmallCnn
from nfn_opt.predictors.config import PredictorConfig
from nfn_opt.weight_space import WeightSpace
from nfn_opt.weight_space.spec import Axis, TensorSpec

__all__ = ["Architecture", "read_space", "space_for", "space_record"]

Architecture = WeightSpace | CnnArchitecture
"""What a predictor can be made for: any weight space, or small CNNs by their description."""


def space_for(architecture: Architecture, config: PredictorConfig) -> WeightSpace:
    """The weight space that a kind of predictor reads.

    Raises:
        ValueError: If a weight space is given whose symmetry is not the kind's.
    """
    if isinstance(architecture, CnnArchitecture):
        space = WeightSpace.from_module(
            SmallCnn(architecture), architecture.example_inputs(), symmetry=config.symmetry
        )
    elif architecture.symmetry != config.symmetry:
        raise ValueError(
            f"the weight space has symmetry={architecture.symmetry!r}, expected {config.symmetry!r} for kind "
            f"{config.kind!r}; trace the network with WeightSpace.from_module(..., symmetry={config.symmetry!r})"
        )
    else:
        space = architecture
    if config.kind != "deepsets":
        return space
    # Every tensor is a set: no axis is tied to another.
    sets = WeightSpace.independent({spec.name: torch.empty(spec.shape) for spec in space.parameters})
    return dataclasses.replace(sets, aliases=space.aliases)


def space_record(space: WeightSpace) -> dict[str, Any]:
    """A weight space as JSON values.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 3)})
        >>> read_space(space_record(space)) == space
        True
    """
    return dataclasses.asdict(space)


def read_space(record: Mapping[str, Any]) -> WeightSpace:
    """The inverse of :func:`space_record`, of values that may have been JSON in between."""
    specs = {
        name: tuple(_spec(spec) for spec in record[name])
        for name in ("parameters", "buffers", "inputs", "outputs")
    }
    aliases = tuple((alias, name) for alias, name in record["aliases"])
    return WeightSpace(**specs, symmetry=record["symmetry"], aliases=aliases)


def _spec(record: Mapping[str, Any]) -> TensorSpec:
    axes = tuple(_axis(axis) for axis in record["axes"])
    return TensorSpec(record["name"], tuple(record["shape"]), axes)


def _axis(record: Mapping[str, Any]) -> Axis:
    parts = tuple(tuple(_axis(axis) for axis in part) for part in record["parts"])
    return Axis(**{**record, "parts": parts})
