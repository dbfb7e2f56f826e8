"""Update rules as files: outer parameters, kind, configuration, and how the rule was trained and scored."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfn_opt.artifacts import ArtifactError, load_artifact, read_header, save_artifact
from nfn_opt.optim.rule import UpdateRule, make_rule
from nfn_opt.weight_space import WeightSpace

ARTIFACT_KIND = "update_rule"


def save_rule(
    rule: UpdateRule, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a rule to one safetensors file, atomically.

    Args:
        rule: The rule.
        path: File to write, conventionally ``*.safetensors``.
        metadata: Anything that JSON can hold: ``"command"``, the command that trained the rule, ``"scores"``,
            what it reached, and so on.

    Returns:
        The path written.

    Raises:
        TypeError: If the metadata is no JSON.
        ArtifactError: If ``path`` is a folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "adam.safetensors"
        >>> _ = save_rule(make_rule("adam", lr=0.5), path, {"command": "x"})
        >>> load_rule(path).config.lr, rule_metadata(path)
        (0.5, {'command': 'x'})
    """
    record = {
        "rule": rule.kind,
        "config": dataclasses.asdict(rule.config),
        "space": rule.space_fingerprint,
        "metadata": dict(metadata or {}),
    }
    return save_artifact(path, rule.state_dict(), kind=ARTIFACT_KIND, metadata=record)


def load_rule(path: str | os.PathLike[str], *, space: WeightSpace | None = None) -> UpdateRule:
    """Read a rule written by :func:`save_rule`.

    Args:
        path: File to read.
        space: The weight space, for a rule whose outer parameters belong to one.

    Raises:
        FileNotFoundError: If there is no such file.
        ArtifactError: If the file is truncated, is not safetensors, holds something other than a rule, or a
            rule of an unknown kind, configuration or weight space, or tensors that do not fit it.
    """
    tensors, record = load_artifact(path, kind=ARTIFACT_KIND)
    name = os.fspath(path)
    kind, config = record.get("rule"), record.get("config")
    if not isinstance(kind, str) or not isinstance(config, dict):
        raise ArtifactError(
            f"{name} has no rule kind and configuration in its header; it was not written by save_rule"
        )
    _check_space(name, record.get("space"), space)
    try:
        rule = make_rule(kind, space=space if record.get("space") else None, **config)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{name} holds a rule that this library cannot make: {error}") from error
    _check_tensors(name, rule, tensors)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) == 1:
        rule.to(dtype=dtypes.pop())
    rule.load_state_dict(tensors)
    return rule


def rule_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata given to :func:`save_rule`, without reading the tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ArtifactError: If the file holds no rule.
    """
    kind, record = read_header(path)
    if kind != ARTIFACT_KIND:
        raise ArtifactError(
            f"{os.fspath(path)} holds a {kind!r}, expected an {ARTIFACT_KIND!r}; give a rule's file"
        )
    return record.get("metadata", {})


def _check_space(name: str, fingerprint: str | None, space: WeightSpace | None) -> None:
    if fingerprint is None:
        return
    if space is None:
        raise ArtifactError(f"{name} holds a rule for one weight space ({fingerprint}); pass that space=")
    if space.fingerprint != fingerprint:
        raise ArtifactError(
            f"{name} holds a rule for the weight space {fingerprint}, got {space.fingerprint}; pass the "
            "space of the architecture that the rule was trained for"
        )


def _check_tensors(name: str, rule: UpdateRule, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names, shapes or kinds than the rule's, and values that are not finite."""
    expected = rule.state_dict()
    problems = [f"no tensor {key!r}" for key in expected if key not in tensors]
    problems += [f"an unknown tensor {key!r}" for key in tensors if key not in expected]
    for key in expected.keys() & tensors.keys():
        got, want = tensors[key], expected[key]
        if got.shape != want.shape:
            problems.append(f"{key!r} of shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        elif got.is_floating_point() != want.is_floating_point():
            problems.append(f"{key!r} of dtype {got.dtype}, expected {want.dtype}")
        elif got.is_floating_point() and not torch.isfinite(got).all():
            problems.append(f"{key!r} with values that are not finite")
    if problems:
        raise ArtifactError(
            f"{name} does not fit a {rule.kind!r} rule of its configuration: it has {'; '.join(problems)}; "
            "it was changed after saving, or saved by another version"
        )
