"""Checks of what a :class:`LearnedOptimizer` is given: parameters, names, and states to continue from."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.optim.rule import UpdateRule
from nfn_opt.optim.shell_parameters import Entry
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


def rule_key(rule: UpdateRule) -> str:
    """What a parameter group calls a rule: its kind and the beginning of the hash of all that it is."""
    described = describe(rule)
    digest = hashlib.sha256(repr(sorted(described.items(), key=lambda item: item[0])).encode())
    return f"{rule.kind} {digest.hexdigest()[:8]}"


def check_loaded(
    rules: Mapping[str, UpdateRule],
    default: str,
    space: WeightSpace,
    entries: Sequence[Entry],
    groups: Sequence[Mapping[str, Any]],
    loaded: Mapping[str, Any],
) -> None:
    """Refuse a ``state_dict`` of another optimizer, rule or model.

    Args:
        rules: The optimizer's rules by key.
        default: Key of the one that groups have which name none.
        space: Its weight space.
        entries: Its parameters.
        groups: Its parameter groups.
        loaded: The ``state_dict``.

    Raises:
        ValueError: Naming what differs.
    """
    if not {"state", "param_groups", "rule"} <= loaded.keys() or "shared" not in loaded["state"]:
        raise ValueError(
            f"the state has the entries {sorted(loaded)}, expected those of LearnedOptimizer.state_dict(): "
            "it is of another optimizer; load it into one of the same class"
        )
    _check_rule("the state", describe(rules[default]), loaded["rule"])
    _check_groups(groups, loaded["param_groups"])
    _check_group_rules(rules, groups, loaded)
    like = {e.key: torch.empty_like(e.param, device="meta") for e in entries if e.param.numel() > 0}
    expected = {key: rule.init(space, like)["tensors"] for key, rule in rules.items()}
    places = [index for group in loaded["param_groups"] for index in group["params"]]
    for index, entry in zip(places, entries, strict=True):
        if index in loaded["state"]:
            _check_tensors(entry, expected[entry.group["rule"]][entry.key], loaded["state"][index])


def _check_group_rules(
    rules: Mapping[str, UpdateRule], groups: Sequence[Mapping[str, Any]], loaded: Mapping[str, Any]
) -> None:
    for i, (mine, theirs) in enumerate(zip(groups, loaded["param_groups"], strict=True)):
        if theirs["rule"] != mine["rule"]:
            other = loaded.get("rules", {}).get(theirs["rule"], loaded["rule"])
            _check_rule(f"group {i} of the state", describe(rules[mine["rule"]]), other)


def _check_rule(what: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    differences = []
    if own["kind"] != other["kind"]:
        differences.append(f"its kind is {other['kind']!r}, expected {own['kind']!r}")
    else:
        for key, value in own["config"].items():
            if _plain(other["config"].get(key)) != _plain(value):
                differences.append(f"its {key} is {other['config'].get(key)!r}, expected {value!r}")
        if not differences and own["outer_parameters"] != other["outer_parameters"]:
            differences.append("its outer parameters have other values")
    if differences:
        raise ValueError(
            f"{what} is of another rule: {'; '.join(differences)}; make the optimizer with that rule"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_groups(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> None:
    if len(own) != len(other):
        raise ValueError(
            f"the state has {len(other)} parameter groups, expected {len(own)}; it is of another model"
        )
    for i, (mine, theirs) in enumerate(zip(own, other, strict=True)):
        if len(mine["params"]) != len(theirs["params"]):
            raise ValueError(
                f"group {i} of the state has {len(theirs['params'])} parameters, expected "
                f"{len(mine['params'])}; it is of another model"
            )
        for key in ("lr", "weight_decay", "rule"):
            if key not in theirs:
                raise ValueError(f"group {i} of the state has no {key!r}; it is of another optimizer")


def _check_tensors(entry: Entry, expected: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    got = {key: tuple(value.shape) for key, value in state.items()}
    want = {key: tuple(value.shape) for key, value in expected.items()}
    if got != want:
        differing = sorted(key for key in {*got, *want} if got.get(key) != want.get(key))
        raise ValueError(
            f"the state of {entry.label} does not fit: "
            + "; ".join(f"{key!r} has shape {got.get(key)}, expected {want.get(key)}" for key in differing)
            + "; it is of another model"
        )
