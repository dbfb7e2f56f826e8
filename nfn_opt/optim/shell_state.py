"""Checks of the parameters and names that a :class:`LearnedOptimizer` is given; its rules and states, described."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.optim.rule import UpdateRule
from nfn_opt.optim.shell_parameters import Entry, compute_dtype
from nfn_opt.weight_space import WeightSpace


def check_group(group: Mapping[str, Any], index: int) -> None:
    """Refuse options out of range and parameters that are not real floating-point numbers."""
    check_numbers(group, index)
    for i, param in enumerate(group["params"]):
        if not param.is_floating_point():
            raise NotImplementedError(
                f"parameter {i} of group {index} is {param.dtype}, and learned rules take real "
                "floating-point parameters only; give it to another optimizer"
            )


def check_numbers(group: Mapping[str, Any], index: int) -> None:
    """Refuse factors of a group that are no finite numbers of at least 0; tensors are not looked at on a GPU."""
    for name in ("lr", "weight_decay"):
        value = group[name]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number and not (isinstance(value, Tensor) and value.numel() == 1):
            raise TypeError(f"{name} of group {index} is {value!r}, expected a number or a tensor of one")
        seen = not isinstance(value, Tensor) or value.device.type == "cpu"
        if seen and not 0 <= value < math.inf:
            raise ValueError(f"{name} of group {index} is {value!r}, expected a finite number of at least 0")


def check_names(space: WeightSpace | None, entries: Sequence[Entry]) -> None:
    """Refuse parameters that a given space does not have, or has in other shapes."""
    if space is None:
        return
    if any("param_names" not in entry.group for entry in entries):
        raise ValueError(
            "a space was given but the parameters have no names, so it is not known which is which; "
            "pass model.named_parameters() in place of model.parameters()"
        )
    seen: set[str] = set()
    for entry in entries:
        if entry.key not in space.names:
            raise ValueError(
                f"the parameter {entry.key!r} is not in the space, which has {', '.join(space.names)}"
            )
        if entry.key in seen:
            raise ValueError(f"the name {entry.key!r} is given to two parameters, expected one for each")
        seen.add(entry.key)
        expected, got = space[entry.key].shape, tuple(entry.param.shape)
        if got != expected:
            raise ValueError(
                f"the parameter {entry.key!r} has shape {got}, expected {expected} as in the space"
            )


def check_complete(coupled: bool, space: WeightSpace | None, entries: Sequence[Entry]) -> None:
    """Refuse to start a rule that needs the whole space with a part of it."""
    if space is None or not coupled:
        return
    missing = set(space.names) - {entry.key for entry in entries}
    if missing:
        raise ValueError(
            f"the space has parameters that were not given: {', '.join(sorted(missing))}; pass all of "
            "model.named_parameters(): those that do not require gradients are left as they are"
        )


def describe(rule: UpdateRule) -> dict[str, Any]:
    """Kind, configuration and a hash of the outer parameters, as plain values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(rule.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    config = dataclasses.asdict(rule.config)
    return {"kind": rule.kind, "config": config, "outer_parameters": digest.hexdigest()[:16]}


def cast(state: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Move a state to a device, its floating-point tensors to a dtype."""
    return {key: _cast(value, device, dtype) for key, value in state.items()}


def _cast(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def owned(param: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a parameter's state, contiguous, on its device and in the dtype of its arithmetic."""
    moved = cast(state, param.device, compute_dtype(param.dtype))
    return {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in moved.items()}


def rule_key(rule: UpdateRule) -> str:
    """What a parameter group calls a rule: its kind and the beginning of the hash of all that it is."""
    described = json.dumps(describe(rule), sort_keys=True)
    return f"{rule.kind} {hashlib.sha256(described.encode()).hexdigest()[:16]}"
