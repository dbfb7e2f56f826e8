"""Rules by name, and groups with rules of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nfn_opt.optim import (
    LearnedOptimizer,
    UpdateRule,
    available_rules,
    make_rule,
    parameter_groups,
    pretrained,
    resolve_rule,
    save_rule,
)
from nfn_opt.weight_space import WeightSpace
from tests.optim.shell_cases import DATA, make_model, same, snapshot, train, weights


def test_rules_by_name(tmp_path: Path) -> None:
    path = save_rule(make_rule("adam", lr=0.5), tmp_path / "mine.safetensors")
    assert resolve_rule("adam").config.lr == 0.001
    assert resolve_rule(path).config.lr == resolve_rule(str(path)).config.lr == 0.5
    for name in available_rules():
        same(dict(resolve_rule(name).state_dict()), dict(pretrained(name).state_dict()))
    same(dict(resolve_rule(None).state_dict()), dict(pretrained().state_dict()))
    with pytest.raises(ValueError, match=r"no rule 'defualt' \(did you mean 'default'\?\)"):
        resolve_rule("defualt")
    with pytest.raises(FileNotFoundError, match=r"no file 'missing.safetensors'"):
        resolve_rule("missing.safetensors")


def test_rules_of_one_weight_space_by_name_and_file(tmp_path: Path) -> None:
    model = make_model()
    space = WeightSpace.from_module(model, DATA)
    rule = make_rule("nfn", sharing="per_parameter", space=space, hidden=[4], channels=2)
    path = save_rule(rule, tmp_path / "mine.safetensors")
    for named in ("unf", path):
        optimizer = LearnedOptimizer(model.named_parameters(), named, space=space)
        assert optimizer.rule.space_fingerprint == space.fingerprint


def test_groups_can_be_given_twice() -> None:
    groups = parameter_groups(make_model())
    for _ in range(2):
        optimizer = LearnedOptimizer(groups)
        assert {rule.kind for rule in optimizer.rules.values()} == {pretrained().kind, "adamw"}
    added = {"params": [nn.Parameter(torch.ones(2))], "rule": "adam"}
    for _ in range(2):
        LearnedOptimizer([nn.Parameter(torch.ones(2))]).add_param_group(added)


def test_what_groups_are_changed_to_is_checked() -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters())
    before = weights(model)
    for name, value, match in (
        ("rule", "adamw", "rule of group 0 was changed to 'adamw', which is none of this optimizer's"),
        ("lr", float("nan"), "lr of group 0 is nan, expected a finite number of at least 0"),
        ("lr", -1.0, "lr of group 0 is -1.0"),
        ("weight_decay", float("inf"), "weight_decay of group 0 is inf"),
    ):
        kept, optimizer.param_groups[0][name] = optimizer.param_groups[0][name], value
        with pytest.raises(ValueError, match=match):
            train(model, optimizer, 1)
        optimizer.param_groups[0][name] = kept
        same(weights(model), before)
    train(model, optimizer, 1)


def test_a_training_longer_than_told_is_noticed_once() -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), total_steps=2)
    train(model, optimizer, 2)
    with pytest.warns(RuntimeWarning, match="more updates are made than total_steps=2") as found:
        train(model, optimizer, 3)
    assert len(found) == 1


def test_default_rule() -> None:
    models = [make_model(), make_model(), make_model()]
    for model, arguments in zip(models, ((), (None,), ("default",)), strict=True):
        train(model, LearnedOptimizer(model.parameters(), *arguments), 2)
    same(weights(models[0]), weights(models[1]))
    same(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize("space", [False, True])
def test_each_group_has_its_rule(rule: UpdateRule, space: bool, generator: torch.Generator) -> None:
    """Vectors are updated as by ``torch.optim.Adam``; matrices as if the vectors were not to be trained."""
    model, matrices, vectors = (make_model(torch.float64) for _ in range(3))
    given = WeightSpace.from_module(model, DATA.double()) if space else None
    adam = make_rule("adam", lr=0.01)
    optimizers: list[torch.optim.Optimizer] = [
        LearnedOptimizer(_groups(model, {"rule": adam}), rule, space=given),
        LearnedOptimizer(_groups(matrices, {"lr": 0.0}), rule, space=given),
        torch.optim.Adam(vectors.parameters(), lr=0.01),
    ]
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            twin = matrices.get_parameter(name)
            twin.data.copy_(p.data)
            twin.grad = p.grad if p.dim() > 1 else torch.zeros_like(p)
            vectors.get_parameter(name).grad = p.grad
        for optimizer in optimizers:
            optimizer.step()
        for name, p in model.named_parameters():
            same_part = matrices if p.dim() > 1 else vectors
            torch.testing.assert_close(p, same_part.get_parameter(name), rtol=1e-6, atol=1e-9)
    assert isinstance(optimizers[0], LearnedOptimizer)
    assert len(optimizers[0].rules) == 2


def _groups(model: nn.Module, options: dict[str, Any]) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [
        {"params": [(name, p) for name, p in named if p.dim() > 1]},
        {"params": [(name, p) for name, p in named if p.dim() < 2], **options},
    ]


def test_state_of_groups_with_rules(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(parameter_groups(model), rule)
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    resumed = LearnedOptimizer(parameter_groups(other), rule)
    resumed.load_state_dict(snapshot(optimizer))
    copied = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (other, resumed), copied):
        train(m, o, 2)
    same(weights(other), weights(model))
    same(weights(copied[0]), weights(model))
    same(snapshot(resumed), snapshot(optimizer))


def test_state_of_groups_with_other_rules_is_refused(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(parameter_groups(model), mlp)
    train(model, optimizer, 1)
    receiver = LearnedOptimizer(parameter_groups(make_model(), vectors="lion"), mlp)
    before = snapshot(receiver)
    with pytest.raises(ValueError, match="group 1 of the state is of another rule: its kind is 'adamw'"):
        receiver.load_state_dict(snapshot(optimizer))
    same(snapshot(receiver), before)


def test_parameters_of_a_model_as_groups() -> None:
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(4, 4), nn.LayerNorm(4), head)
    groups = parameter_groups(model, vectors="sgd", weight_decay=1e-4)
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["1.weight"],
        ["1.bias", "2.weight", "2.bias", "3.bias"],
        ["0.weight"],
    ]
    assert [group.get("rule") for group in groups] == [None, "sgd", "adamw"]
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0, 1e-4]
    optimizer = LearnedOptimizer(groups, "default")
    assert sorted(rule.kind for rule in optimizer.rules.values()) == ["adamw", "sgd", "spectral"]
    model(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()
    assert len(parameter_groups(nn.Linear(2, 2, bias=False))) == 1
