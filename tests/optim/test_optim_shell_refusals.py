"""``LearnedOptimizer`` refuses what it cannot do, names it, and changes nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from nfn_opt.artifacts import ArtifactError
from nfn_opt.optim import LearnedOptimizer, UpdateRule
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import leaves
from tests.optim.shell_cases import loss_of, make_model, same, snapshot, train, weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("named", [True, False])
def test_bad_gradients_raise_or_skip(rule: UpdateRule, value: float, named: bool) -> None:
    policies: tuple[Literal["raise", "skip"], ...] = ("raise", "skip")
    for policy in policies:
        model = make_model()
        params = model.named_parameters() if named else model.parameters()
        optimizer = LearnedOptimizer(params, rule, on_nonfinite=policy, weight_decay=0.1)
        train(model, optimizer, 2)
        before = weights(model), snapshot(optimizer)
        loss_of(model).backward()
        assert model.head.bias.grad is not None
        model.head.bias.grad[1] = value
        name = (
            "gradient of 'head.bias' is" if named else "gradient of parameter 3 of group 0 with shape .3,. is"
        )
        if policy == "raise":
            with pytest.raises(FloatingPointError, match=name):
                optimizer.step()
        else:
            with pytest.warns(RuntimeWarning, match=f"step skipped: the {name}") as caught:
                optimizer.step()
            assert caught[0].filename == __file__
        same((weights(model), snapshot(optimizer)), before)
        train(model, optimizer, 1)


def test_large_finite_gradients_are_taken(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.finfo(p.dtype).max)
    before = weights(model)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_updates_that_are_not_finite_are_refused(mlp: UpdateRule) -> None:
    mlp.get_parameter("beta").data.fill_(float("inf"))
    model = make_model()
    optimizer = LearnedOptimizer(model.named_parameters(), mlp)
    before = weights(model), snapshot(optimizer)
    with pytest.raises(FloatingPointError, match=r"the update of 'body.weight', 'body.bias'"):
        train(model, optimizer, 1)
    same((weights(model), snapshot(optimizer)), before)


def test_mixed_dtypes(rule: UpdateRule) -> None:
    params = [
        nn.Parameter(torch.full((3, 2), 0.01, dtype=d))
        for d in (torch.float64, torch.bfloat16, torch.float32)
    ]
    optimizer = LearnedOptimizer(params, rule)
    for _ in range(40):
        for p in params:
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()
    assert all((p < 0.01).all() for p in params)
    floating = [[x.dtype for x in leaves(optimizer.state[p]) if x.is_floating_point()] for p in params]
    assert all(dtype.itemsize >= 4 for dtypes in floating for dtype in dtypes)


def test_empty_and_scalar_parameters(rule: UpdateRule) -> None:
    params = [nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(0, 3))]
    optimizer = LearnedOptimizer(params, rule)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert params[0] < 1
    assert [p.numel() for p in params[1:]] == [0, 0]


def test_refused_parameters_and_gradients(mlp: UpdateRule) -> None:
    with pytest.raises(NotImplementedError, match=r"parameter 0 of group 0 is torch.complex64"):
        LearnedOptimizer([nn.Parameter(torch.ones(2, dtype=torch.complex64))], mlp)
    with pytest.raises(ValueError, match="empty parameter list"):
        LearnedOptimizer([], mlp)
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = LearnedOptimizer(embedding.named_parameters(), mlp)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(NotImplementedError, match="the gradient of 'weight' is sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, "lr of group 0 is -1.0"),
        ({"lr": float("nan")}, ValueError, "lr of group 0 is nan"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay of group 0 is -1.0"),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite is 'ignore'"),
        ({"rule": 3}, TypeError, "rule is a int"),
        ({"rule": ""}, ValueError, "there is no rule ''"),
        ({"rule": str(Path(__file__).parent)}, ArtifactError, "is a folder, expected a file"),
        ({"rule": "no/such/file"}, FileNotFoundError, "no file 'no/such/file'"),
        ({"space": "mlp"}, TypeError, "space is a str"),
    ],
)
def test_refused_options(
    mlp: UpdateRule, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        LearnedOptimizer(make_model().parameters(), **{"rule": mlp, **options})


def test_space_needs_names_that_fit(mlp: UpdateRule) -> None:
    model = make_model()
    space = WeightSpace.independent(dict(model.named_parameters()))
    with pytest.raises(ValueError, match=r"pass model.named_parameters\(\)"):
        LearnedOptimizer(model.parameters(), mlp, space=space)
    with pytest.raises(ValueError, match=r"'body.bias' has shape .5,., expected .4,."):
        LearnedOptimizer([("body.bias", nn.Parameter(torch.ones(5)))], mlp, space=space)
    with pytest.raises(ValueError, match=r"'9.bias' is not in the space"):
        LearnedOptimizer([("9.bias", nn.Parameter(torch.ones(5)))], mlp, space=space)
    with pytest.raises(ValueError, match=r"'body.bias' is given to two"):
        LearnedOptimizer([("body.bias", nn.Parameter(torch.ones(4))) for _ in range(2)], mlp, space=space)
    optimizer = LearnedOptimizer(model.named_parameters(), mlp, space=space)
    assert optimizer.space is space
    train(model, optimizer, 2)


def test_the_same_names_in_two_groups(mlp: UpdateRule) -> None:
    model = make_model()
    groups = [{"params": layer.named_parameters()} for layer in model.children()]
    twin = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, LearnedOptimizer(groups, mlp), 3)
    train(twin, LearnedOptimizer(twin.parameters(), mlp), 3)
    torch.testing.assert_close(weights(model), weights(twin))
