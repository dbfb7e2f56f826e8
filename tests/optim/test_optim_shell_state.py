"""``LearnedOptimizer`` saves and continues exactly, or refuses."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from nfn_opt.optim import LearnedOptimizer, UpdateRule, make_rule
from tests.optim.shell_cases import make_model, same, snapshot, train, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resume_is_exact(rule: UpdateRule, dtype: torch.dtype) -> None:
    whole, first, second = (make_model(dtype) for _ in range(3))
    train(whole, LearnedOptimizer(whole.parameters(), rule), 6)
    optimizer = LearnedOptimizer(first.parameters(), rule)
    train(first, optimizer, 3)
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = LearnedOptimizer(second.parameters(), rule)
    second.load_state_dict(loaded[0])
    resumed.load_state_dict(loaded[1])
    same(snapshot(resumed), snapshot(optimizer))
    train(second, resumed, 3)
    same(weights(second), weights(whole))


def test_loaded_state_is_a_copy(mlp: UpdateRule) -> None:
    model, other = make_model(), make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 2)
    second = LearnedOptimizer(other.parameters(), mlp)
    second.load_state_dict(optimizer.state_dict())
    before = snapshot(optimizer)
    train(other, second, 2)
    same(snapshot(optimizer), before)


def test_state_is_laid_out_as_torchs(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    assert state["state"][0]["second_moment"].shape == model.body.weight.shape
    assert state["state"][0]["step"] == state["param_groups"][0]["step"] == 2
    assert state["param_groups"][0]["params"] == [0, 1, 2, 3]


def test_pickle_and_deepcopy(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    train(model, optimizer, 2)
    same(pickle.loads(pickle.dumps(optimizer.state_dict())), optimizer.state_dict())  # noqa: S301
    for copied, twin in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):  # noqa: S301
        expected = copy.deepcopy((model, optimizer))
        train(*expected, 2)
        train(copied, twin, 2)
        same(weights(copied), weights(expected[0]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("rule", "another rule: its kind is 'mlp', expected 'adam'"),
        ("config", r"another rule: its hidden is \(4,\), expected \(5,\)"),
        ("outer", "another rule: its outer parameters have other values"),
        ("model", r"'column' has shape \(3, 1, 5\), expected \(3, 1, 7\)"),
        ("count", "group 0 of the state has 4 parameters, expected 2"),
        ("groups", "1 parameter groups, expected 2"),
        ("torch", "it is of another optimizer"),
    ],
)
def test_state_of_something_else_is_refused(mlp: UpdateRule, change: str, match: str) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 2)
    state = snapshot(optimizer)
    other_rule, wide = copy.deepcopy(mlp), nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 3))
    next(other_rule.parameters()).data.add_(1)
    if change == "torch":
        state = torch.optim.Adam(make_model().parameters()).state_dict()
    receiver = {
        "rule": lambda: LearnedOptimizer(make_model().parameters(), make_rule("adam")),
        "config": lambda: LearnedOptimizer(make_model().parameters(), make_rule("mlp", hidden=(5,))),
        "outer": lambda: LearnedOptimizer(make_model().parameters(), other_rule),
        "model": lambda: LearnedOptimizer(wide.parameters(), mlp),
        "count": lambda: LearnedOptimizer(make_model().body.parameters(), mlp),
        "groups": lambda: LearnedOptimizer(
            [{"params": m.parameters()} for m in make_model().children()], mlp
        ),
        "torch": lambda: LearnedOptimizer(make_model().parameters(), mlp),
    }[change]()
    before = snapshot(receiver)
    with pytest.raises(ValueError, match=match):
        receiver.load_state_dict(state)
    same(snapshot(receiver), before)
