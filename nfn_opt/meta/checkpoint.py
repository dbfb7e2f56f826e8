"""Checkpoints of a meta-training run: everything that decides how it goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.meta.carry import Carry

KIND = "meta_training"


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    rule: nn.Module,
    optimizer: torch.optim.Optimizer,
    carries: Sequence[Carry],
    generator: torch.Generator,
    progress: Mapping[str, Any],
) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: File to write.
        rule: The rule.
        optimizer: The outer optimizer; its state of each parameter must be tensors.
        carries: The inner problems of each task.
        generator: The source of randomness.
        progress: Counters, JSON values.
    """
    tensors = {f"rule/{name}": tensor for name, tensor in rule.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
    for index, carry in enumerate(carries):
        tensors |= {f"carry/{index}/{name}": tensor for name, tensor in carry.tensors().items()}
    tensors["generator"] = generator.get_state()
    save_artifact(path, tensors, kind=KIND, metadata=progress)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    rule: nn.Module,
    optimizer: torch.optim.Optimizer,
    carries: Sequence[Carry],
    generator: torch.Generator,
) -> tuple[list[Carry], dict[str, Any]]:
    """Read a checkpoint into a rule, an outer optimizer and a generator.

    Args:
        path: File to read.
        rule: Receives the parameters.
        optimizer: Receives the state.
        carries: Inner problems of the same structure, whose values do not matter.
        generator: Receives the state.

    Returns:
        The inner problems, and the counters.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ArtifactError: If it is damaged or of another run.
    """
    tensors, progress = load_artifact(path, kind=KIND)
    try:
        rule.load_state_dict(_below(tensors, "rule/"))
        restored = [carry.restored(_below(tensors, f"carry/{index}/")) for index, carry in enumerate(carries)]
        optimizer.load_state_dict(
            {"state": _optimizer_state(tensors), "param_groups": optimizer.state_dict()["param_groups"]}
        )
        generator.set_state(tensors["generator"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ArtifactError(f"{os.fspath(path)} does not fit this run: {error}") from error
    return restored, progress


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer/").items():
        index, key = name.split("/", 1)
        states.setdefault(int(index), {})[key] = tensor
    return states
