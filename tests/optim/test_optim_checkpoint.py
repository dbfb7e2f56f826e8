"""``torch.distributed.checkpoint`` and flat files of tensors save and restore learned optimizers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from nfn_opt.optim import LearnedOptimizer, SGDRule, UpdateRule, make_rule, parameter_groups
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import leaves
from tests.optim.shell_cases import make_model, same, snapshot, train, weights

Make = Callable[[nn.Module], LearnedOptimizer]


class Counting(SGDRule):
    """Remembers something of all tensors together, and makes smaller updates as it grows."""

    kind = "counting"

    def init(self, space: WeightSpace, params: Any) -> Any:
        return {**super().init(space, params), "shared": {"seen": torch.zeros(())}}

    def update(self, params: Any, grads: Any, state: Any, **options: Any) -> Any:
        seen = state["shared"]["seen"] + 1
        updates, state = super().update(params, grads, state, **options)
        return {key: u / seen for key, u in updates.items()}, {**state, "shared": {"seen": seen}}


def by_groups(model: nn.Module) -> LearnedOptimizer:
    return LearnedOptimizer(parameter_groups(model, vectors=make_rule("adamw", lr=0.01)), Counting())


def with_space(model: nn.Module) -> LearnedOptimizer:
    space = WeightSpace.from_module(model, torch.zeros(2, 5))
    return LearnedOptimizer(model.named_parameters(), make_rule("relational"), space=space)


KINDS: dict[str, Make] = {
    "default": lambda model: LearnedOptimizer(model.parameters()),
    "named": lambda model: LearnedOptimizer(model.named_parameters(), make_rule("mlp")),
    "groups": by_groups,
    "space": with_space,
    "stateless": lambda model: LearnedOptimizer(model.parameters(), "sgd"),
}


def held(optimizer: LearnedOptimizer) -> Any:
    """The state, without the empty ones of tensors of which a rule remembers nothing: some helpers drop them."""
    state = snapshot(optimizer)
    return {**state, "state": {key: value for key, value in state["state"].items() if value}}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch warns of its own parts, and that nothing is distributed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("flat", "full"), [(False, False), (False, True), (True, False)])
def test_state_by_names_of_parameters(kind: str, flat: bool, full: bool) -> None:
    if kind == "stateless" and full:
        pytest.skip("torch refuses it of its own SGD, too")
    options = StateDictOptions(flatten_optimizer_state_dict=flat, full_state_dict=full, cpu_offload=full)
    model, make = make_model(), KINDS[kind]
    optimizer = make(model)
    train(model, optimizer, 3)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other = copy.deepcopy(model)
    resumed = make(other)
    set_optimizer_state_dict(other, resumed, state, options=options)
    same(held(resumed), held(optimizer))
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, 2)
    same(weights(other), weights(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flat", [False, True])
def test_saved_and_loaded(kind: str, flat: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, make = make_model(), KINDS[kind]
    optimizer = make(model)
    train(model, optimizer, 3)
    save(
        {
            "model": model.state_dict(),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
        },
        checkpoint_id=tmp_path,
    )
    other = make_model(seed=1)
    resumed = make(other)
    states = {
        "model": other.state_dict(),
        "optimizer": get_optimizer_state_dict(other, resumed, options=options),
    }
    load(states, checkpoint_id=tmp_path)
    other.load_state_dict(states["model"])
    set_optimizer_state_dict(other, resumed, states["optimizer"], options=options)
    same(held(resumed), held(optimizer))
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, 2)
    same(weights(other), weights(model))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("rule", "match"),
    [
        ("adamw", "group 0 of the state is of another rule: its kind is 'adam', expected 'adamw'"),
        (make_rule("adam", beta1=0.8), "another rule: it is 'adam .*options or outer parameters differ"),
    ],
)
def test_states_of_other_rules_are_refused(flat: bool, rule: UpdateRule | str, match: str) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), "adam")
    train(model, optimizer, 2)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    receiver = LearnedOptimizer(model.parameters(), rule)
    train(model, receiver, 1)
    before = snapshot(receiver)
    with pytest.raises(ValueError, match=match):
        set_optimizer_state_dict(model, receiver, state, options=options)
    same(snapshot(receiver), before)


def test_frozen_and_added_parameters_by_name() -> None:
    model = make_model()
    model.body.bias.requires_grad_(False)
    optimizer = LearnedOptimizer(model.body.parameters())
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.5, "rule": "adamw"})
    train(model, optimizer, 2)
    other = copy.deepcopy(model)
    resumed = LearnedOptimizer(other.body.parameters())
    resumed.add_param_group({"params": other.head.parameters(), "rule": "adamw"})
    set_optimizer_state_dict(other, resumed, get_optimizer_state_dict(model, optimizer))
    same(snapshot(resumed), snapshot(optimizer))
    assert [group["step"] for group in resumed.param_groups] == [4, 4]


def test_state_without_what_helpers_drop(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 2)
    state = snapshot(optimizer)
    resumed = LearnedOptimizer(copy.deepcopy(model).parameters(), rule)
    resumed.load_state_dict({key: state[key] for key in ("state", "param_groups")})
    same(snapshot(resumed), state)


def test_tensors_can_be_written_flat(rule: UpdateRule, tmp_path: Path) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    for steps in (1, 2):
        train(model, optimizer, steps)
        found = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
        assert all(tensor.is_contiguous() for tensor in found.values())
        safetensors.torch.save_file(found, tmp_path / "state.safetensors")
        loaded = safetensors.torch.load_file(tmp_path / "state.safetensors")
        same({name: loaded[name] for name in found}, found)
    optimizer.load_state_dict(_transposed(snapshot(optimizer)))
    assert all(tensor.is_contiguous() for tensor in leaves(dict(enumerate(optimizer.state.values()))))


def _transposed(state: Any) -> Any:
    """The same, with tensors that lie otherwise in memory."""

    def moved(x: Tensor) -> Tensor:
        return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x

    inner = {i: {k: moved(v) for k, v in entry.items()} for i, entry in state["state"].items()}
    return {**state, "state": inner}


def test_the_earlier_layout_is_read() -> None:
    """What is shared was beside the states of parameters; groups called rules otherwise."""
    model = make_model()
    optimizer = by_groups(model)
    train(model, optimizer, 3)
    state = snapshot(optimizer)
    first, second = (group["rule"] for group in state["param_groups"])
    rules = {"counting 1234abcd": state["rules"][first], "adamw 5678abcd": state["rules"][second]}
    groups = [
        {**{k: v for k, v in group.items() if k not in ("step", "shared")}, "rule": rule}
        for group, rule in zip(state["param_groups"], rules, strict=True)
    ]
    shared = {"step": torch.tensor(3), "seen": torch.tensor(3.0), "adamw 5678abcd/other": torch.zeros(())}
    earlier = {
        "state": {**state["state"], "shared": shared},
        "param_groups": groups,
        "rule": state["rules"][first],
        "rules": rules,
    }
    other = copy.deepcopy(model)
    resumed = by_groups(other)
    resumed.load_state_dict(earlier)
    assert resumed.param_groups[1].pop("shared") == {"other": torch.zeros(())}
    same(snapshot(resumed)["state"], state["state"])
    assert resumed.state_dict()["param_groups"] == state["param_groups"]
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, 2)
    same(weights(other), weights(model))
    with pytest.raises(ValueError, match="group 1 of the state is of another rule: its kind is 'adamw'"):
        LearnedOptimizer(parameter_groups(make_model(), vectors="lion"), Counting()).load_state_dict(earlier)


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "missing": (lambda s: s["state"][0].pop("momentum"), "'momentum' is missing; it is damaged"),
    "unknown": (lambda s: s["state"][0].update(mine=torch.ones(1)), "'mine' is none of this rule's"),
    "no tensor": (lambda s: s["state"][0].update(momentum=3), r"'momentum' is 3, expected a tensor of shape"),
    "NaN": (lambda s: s["state"][1]["momentum"].view(-1)[2:3].fill_(torch.nan), "'momentum' holds NaN"),
    "whole": (
        lambda s: s["state"][0].update(momentum=s["state"][0]["momentum"].long()),
        "'momentum' is torch.int64, expected torch.float32",
    ),
    "negative": (lambda s: s["state"][0]["step"].fill_(-1), "'step' is -1, expected a number of updates"),
    "group": (lambda s: s["param_groups"][0].update(step=-2), "step of group 0 of the state is -2"),
    "no number": (lambda s: s["param_groups"][0].update(step="3"), "step of group 0 of the state is '3'"),
    "lr": (lambda s: s["param_groups"][0].update(lr=torch.nan), "lr of group 0 is nan"),
    "no step": (lambda s: s["param_groups"][0].pop("step"), "group 0 of the state has no 'step'"),
    "no groups": (lambda s: s.pop("param_groups"), r"has the entries \['rules', 'state'\]"),
    "empty": (lambda s: s["state"].clear(), "2 updates, but no parameter has a state"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_damaged_states_are_refused(what: str, mlp: UpdateRule) -> None:
    damage, match = BROKEN[what]
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 2)
    before, state = snapshot(optimizer), snapshot(optimizer)
    damage(state)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    same(snapshot(optimizer), before)


def test_groups_that_have_made_different_numbers_of_updates(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer([{"params": m.parameters()} for m in model.children()], mlp)
    state = snapshot(optimizer)
    state["param_groups"][1]["step"] = 7
    with pytest.raises(ValueError, match=r"groups of the state have made \[0, 7\] updates"):
        optimizer.load_state_dict(state)


def test_infinite_moments_are_taken() -> None:
    """Large finite gradients make them."""
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), "adam")
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e30)
    optimizer.step()
    optimizer.load_state_dict(snapshot(optimizer))
    assert optimizer.state[model.body.weight]["exp_avg_sq"].isinf().all()
