"""Configurations of networks that read INRs as JSON values, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nfn_opt.functionals import BodyConfig, InvariantConfig, LatentEncoderConfig, NeuronMessagesConfig

__all__ = ["body_from", "body_record", "encoder_from", "encoder_record"]

BODIES: dict[str, type[BodyConfig] | type[NeuronMessagesConfig]] = {
    "layers": BodyConfig,
    "messages": NeuronMessagesConfig,
}
"""Bodies of encoders, by the name under which they are stored."""


def encoder_record(config: LatentEncoderConfig) -> dict[str, Any]:
    """The configuration of an encoder as nested dicts of JSON values.

    Example:
        >>> encoder_from(encoder_record(LatentEncoderConfig())) == LatentEncoderConfig()
        True
    """
    kind = next(name for name, body in BODIES.items() if type(config.body) is body)
    return {**dataclasses.asdict(config), "body": {"kind": kind, **dataclasses.asdict(config.body)}}


def encoder_from(values: Mapping[str, Any]) -> LatentEncoderConfig:
    """Rebuild the configuration of an encoder from :func:`encoder_record`."""
    body = dict(values["body"])
    kind = BODIES[body.pop("kind")]
    return LatentEncoderConfig(**{**values, "body": kind(**body)})


def body_record(config: InvariantConfig | LatentEncoderConfig) -> dict[str, Any]:
    """The configuration of what reads the weights for a classifier, as JSON values."""
    if isinstance(config, LatentEncoderConfig):
        return {"kind": "latents", **encoder_record(config)}
    return {"kind": "functional", **dataclasses.asdict(config)}


def body_from(values: Mapping[str, Any]) -> InvariantConfig | LatentEncoderConfig:
    """Rebuild it from :func:`body_record`.

    Example:
        >>> config = InvariantConfig(hidden_channels=8)
        >>> body_from(body_record(config)) == config
        True
    """
    fields = dict(values)
    if fields.pop("kind") == "latents":
        return encoder_from(fields)
    return InvariantConfig(**fields)
