"""Checkpoints of a meta-training run: everything that decides how it goes on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.meta.outer import below
from nfn_opt.optim.rule import UpdateRule, make_rule
from nfn_opt.optim.storage import load_rule, rule_metadata
from nfn_opt.weight_space import WeightSpace

KIND = "meta_training"


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    rule: UpdateRule,
    outer: Mapping[str, Tensor],
    slots: Mapping[int, Mapping[str, Tensor]],
    progress: Mapping[str, Any],
) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: File to write.
        rule: The rule that is trained.
        outer: Tensors of the outer optimizer, the outer parameters included.
        slots: Tensors of the inner problems of each slot, by its number, their generators included.
        progress: Counters, JSON values.
    """
    tensors = dict(outer)
    for index, slot in slots.items():
        tensors |= {f"slot/{index}/{name}": tensor for name, tensor in slot.items()}
    made = {
        "kind": rule.kind,
        "config": dataclasses.asdict(rule.config),
        "space": rule.space_fingerprint,
    }
    save_artifact(path, tensors, kind=KIND, metadata={"rule": made, "progress": dict(progress)})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the counters of a checkpoint; those of slot 3 start with ``slot/3/``.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ArtifactError: If it is damaged or no checkpoint.
    """
    tensors, metadata = load_artifact(path, kind=KIND)
    return tensors, metadata["progress"]


def start_rule(path: str | os.PathLike[str], *, space: WeightSpace | None = None) -> UpdateRule:
    """The rule of a rule's file or of a checkpoint, to be trained further.

    Args:
        path: What :func:`~nfn_opt.optim.save_rule` or :func:`save_checkpoint` wrote.
        space: The weight space, for a rule whose outer parameters belong to one.

    Raises:
        FileNotFoundError: If there is no such file.
        ArtifactError: If it holds neither, or what does not fit.
    """
    try:
        tensors, metadata = load_artifact(path, kind=KIND)
    except ArtifactError:
        rule_metadata(path)  # says what is wrong where the file holds no rule either
        return load_rule(path, space=space)
    made = metadata["rule"]
    try:
        rule = make_rule(made["kind"], space=space if made["space"] else None, **made["config"])
        rule.load_state_dict(below(tensors, "rule/"))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ArtifactError(
            f"{os.fspath(path)} holds a rule that this library cannot make: {error}"
        ) from error
    return rule
