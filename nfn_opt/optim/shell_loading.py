"""States that a :class:`LearnedOptimizer` is to continue from: checked, and brought to its own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.optim.rule import UpdateRule
from nfn_opt.optim.shell_parameters import Entry
from nfn_opt.optim.shell_state import check_numbers, describe
from nfn_opt.weight_space import WeightSpace

TensorState = dict[str, Tensor]

Groups = Sequence[Mapping[str, Any]]


def checked(
    loaded: Mapping[str, Any],
    rules: Mapping[str, UpdateRule],
    space: WeightSpace,
    entries: Sequence[Entry],
    groups: Groups,
) -> tuple[dict[str, Any], list[tuple[Tensor, TensorState]]]:
    """A ``state_dict`` in which groups call rules as the optimizer does, and the state of each parameter.

    Args:
        loaded: The ``state_dict``. Parameters may go by any names in it, as they do in
            :mod:`torch.distributed.checkpoint`, and ``"rules"`` may be missing.
        rules: The optimizer's rules by key.
        space: Its weight space.
        entries: Its parameters.
        groups: Its parameter groups.

    Raises:
        ValueError: If it is damaged, or of another optimizer, rule or model; the message names what differs.
    """
    if not {"state", "param_groups"} <= loaded.keys():
        raise ValueError(
            f"the state has the entries {sorted(loaded)}, expected those of LearnedOptimizer.state_dict(): "
            "it is of another optimizer; load it into one of the same class"
        )
    loaded = _upgraded(loaded)
    _check_groups(groups, loaded["param_groups"])
    _check_rules(rules, groups, loaded)
    _check_steps(loaded)
    like = {e.key: torch.empty_like(e.param, device="meta") for e in entries if e.param.numel() > 0}
    expected = {key: rule.init(space, like)["tensors"] for key, rule in rules.items()}
    places = [place for group in loaded["param_groups"] for place in group["params"]]
    states = []
    for place, entry in zip(places, entries, strict=True):
        state = loaded["state"].get(place)
        if state and entry.param.numel() > 0:
            _check_tensors(entry, expected[entry.group["rule"]][entry.key], state)
            states.append((entry.param, dict(state)))
    step = loaded["param_groups"][0]["step"]
    if step and not loaded["state"] and any(state for rule in expected.values() for state in rule.values()):
        raise ValueError(
            f"the state is of {step} updates, but no parameter has a state; it is damaged, or "
            "torch.distributed.checkpoint was asked for it while a new optimizer's parameters had gradients: call "
            "zero_grad() before"
        )
    known = [
        {**theirs, "rule": mine["rule"]} for mine, theirs in zip(groups, loaded["param_groups"], strict=True)
    ]
    return {**loaded, "param_groups": known}, states


def _upgraded(loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    """An earlier layout, which kept what all groups share, and the step count, beside the states of parameters."""
    if "shared" not in loaded["state"]:
        return loaded
    state = {place: value for place, value in loaded["state"].items() if place != "shared"}
    shared = dict(loaded["state"]["shared"])
    step = int(shared.pop("step"))
    rules, groups = dict(loaded.get("rules", {})), []
    for group in loaded["param_groups"]:
        key = group["rule"]
        rules.setdefault(key, loaded["rule"])
        prefix = "" if rules[key] == loaded["rule"] else f"{key}/"
        own = {name.removeprefix(prefix): value for name, value in shared.items() if name.startswith(prefix)}
        own = {name: value for name, value in own.items() if "/" not in name}
        groups.append({**group, "step": step, **({"shared": own} if own else {})})
    return {**loaded, "state": state, "param_groups": groups, "rules": rules}


def _check_groups(own: Groups, other: Groups) -> None:
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
        for key in ("lr", "weight_decay", "rule", "step"):
            if key not in theirs:
                raise ValueError(f"group {i} of the state has no {key!r}; it is of another optimizer")
        check_numbers(theirs, i)


def _check_rules(rules: Mapping[str, UpdateRule], groups: Groups, loaded: Mapping[str, Any]) -> None:
    """Refuse other rules: by their descriptions, or, where there are none, by what the groups call them."""
    for i, (mine, theirs) in enumerate(zip(groups, loaded["param_groups"], strict=True)):
        key, other = mine["rule"], theirs["rule"]
        if key == other:
            continue
        described = loaded.get("rules", {}).get(other)
        if described is not None:
            differences = _differences(describe(rules[key]), described)
        elif str(other).split()[0] != rules[key].kind:
            differences = [f"its kind is {str(other).split()[0]!r}, expected {rules[key].kind!r}"]
        else:
            differences = [f"it is {other!r}, expected {key!r}: options or outer parameters differ"]
        if differences:
            raise ValueError(
                f"group {i} of the state is of another rule: {'; '.join(differences)}; make the optimizer with that "
                "rule"
            )


def _differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    if own["kind"] != other["kind"]:
        return [f"its kind is {other['kind']!r}, expected {own['kind']!r}"]
    found = [
        f"its {key} is {other['config'].get(key)!r}, expected {value!r}"
        for key, value in own["config"].items()
        if _plain(other["config"].get(key)) != _plain(value)
    ]
    if not found and own["outer_parameters"] != other["outer_parameters"]:
        found.append("its outer parameters have other values")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_steps(loaded: Mapping[str, Any]) -> None:
    """Refuse counts of updates that cannot be."""
    steps = [group["step"] for group in loaded["param_groups"]]
    for i, step in enumerate(steps):
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(
                f"step of group {i} of the state is {step!r}, expected a number of updates; it is damaged"
            )
    if len(set(steps)) > 1:
        raise ValueError(
            f"the groups of the state have made {steps} updates, expected equally many; it is damaged"
        )


def _check_tensors(entry: Entry, expected: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    got = {key: tuple(value.shape) if isinstance(value, Tensor) else value for key, value in state.items()}
    want = {key: tuple(value.shape) for key, value in expected.items()}
    if got != want:
        differing = sorted(key for key in {*got, *want} if got.get(key) != want.get(key))
        raise ValueError(
            f"the state of {entry.label} does not fit: "
            + "; ".join(_difference(key, got, want) for key in differing)
            + "; it is damaged or of another model"
        )
    for key, value in state.items():
        if value.is_floating_point() != expected[key].is_floating_point():
            what = f"is {value.dtype}, expected {expected[key].dtype}"
        elif _has_nan(value):
            what = "holds NaN"
        elif key == "step" and (value < 0).any():
            what = f"is {value.tolist()}, expected a number of updates"
        else:
            continue
        raise ValueError(f"the state of {entry.label} is damaged: {key!r} {what}; take an earlier checkpoint")


def _difference(key: str, got: Mapping[str, Any], want: Mapping[str, Any]) -> str:
    if key not in got:
        return f"{key!r} is missing"
    if key not in want:
        return f"{key!r} is none of this rule's"
    what = "has shape" if isinstance(got[key], tuple) else "is"
    return f"{key!r} {what} {got[key]}, expected {'' if what == 'has shape' else 'a tensor of shape '}{want[key]}"


def _has_nan(value: Tensor) -> bool:
    """Whether a tensor holds NaN; large values may have become infinite, and are taken."""
    return bool(value.is_floating_point() and value.sum().isnan() and value.isnan().any())
