"""``LearnedOptimizer`` keeps the contract of ``torch.optim`` with every rule."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.optim import LearnedOptimizer, UpdateRule, make_rule, save_rule
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import RULES, leaves

DATA = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Two layers, typed so that tests can name their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def make_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    model = Model().to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model


def loss_of(model: nn.Module) -> Tensor:
    return (model(DATA.to(next(model.parameters()).dtype)) - 1).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    return copy.deepcopy(optimizer.state_dict())


def same(a: Any, b: Any) -> None:
    """Nested containers of equal structure, bit-equal tensors and equal other values."""
    (a, structure), (b, expected) = (torch.utils._pytree.tree_flatten(x) for x in (a, b))
    assert structure == expected
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y


@pytest.fixture(params=RULES, name="rule")
def make_each(request: pytest.FixtureRequest) -> UpdateRule:
    return RULES[request.param]()


@pytest.fixture
def mlp() -> UpdateRule:
    return make_rule("mlp", hidden=(4,))


# Training


def test_trains_in_an_ordinary_script(rule: UpdateRule) -> None:
    model = make_model()
    losses = train(model, LearnedOptimizer(model.parameters(), rule), 100)
    assert losses[-1] < 0.99 * losses[0]


def test_equals_the_pure_rule(rule: UpdateRule) -> None:
    model = make_model(torch.float64)
    twin = copy.deepcopy(model)
    train(model, LearnedOptimizer(model.parameters(), rule), 4)
    space, rule = WeightSpace.independent(dict(twin.named_parameters())), copy.deepcopy(rule).double()
    params = {n: p.detach() for n, p in twin.named_parameters()}
    state = rule.init(space, params)
    for t in range(4):
        twin.zero_grad()
        loss_of(twin).backward()
        grads = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
        updates, state = rule.update(params, grads, state, space=space, step=torch.tensor(t))
        for name, p in twin.named_parameters():
            p.data += updates[name].detach()
        params = {n: p.detach() for n, p in twin.named_parameters()}
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-12, atol=1e-14)


def test_rule_is_copied_and_not_trained(mlp: UpdateRule) -> None:
    model, before = make_model(), copy.deepcopy(mlp.state_dict())
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 2)
    same(dict(mlp.state_dict()), dict(before))
    assert all(p.requires_grad and p.grad is None for p in mlp.parameters())
    assert not any(p.requires_grad for p in optimizer.rule.parameters())
    assert not any(leaf.requires_grad for leaf in leaves(snapshot(optimizer)["state"]))


def test_rule_by_path(mlp: UpdateRule, tmp_path: Path) -> None:
    path = save_rule(mlp, tmp_path / "rule.safetensors")
    models = [make_model(), make_model(), make_model()]
    rules: list[UpdateRule | str | Path] = [mlp, path, str(path)]
    for model, rule in zip(models, rules, strict=True):
        train(model, LearnedOptimizer(model.parameters(), rule), 3)
    same(weights(models[0]), weights(models[1]))
    same(weights(models[0]), weights(models[2]))


# torch.optim's contract


def test_closure_is_called_once_with_gradients_and_its_loss_returned(mlp: UpdateRule) -> None:
    model, calls = make_model(), []
    optimizer = LearnedOptimizer(model.parameters(), mlp)

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss.item()

    with torch.no_grad():
        expected = loss_of(model).item()
        assert optimizer.step(closure) == expected
    assert calls == [True]
    assert optimizer.step() is None


def test_closure_that_raises_changes_nothing(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    train(model, optimizer, 2)
    before = weights(model), snapshot(optimizer)

    def closure() -> float:
        loss_of(model).backward()
        raise RuntimeError("data loader")

    with pytest.raises(RuntimeError, match="data loader"):
        optimizer.step(closure)
    same((weights(model), snapshot(optimizer)), before)


def test_groups_have_their_own_lr_and_weight_decay(rule: UpdateRule) -> None:
    model, reference = make_model(torch.float64), make_model(torch.float64)
    groups = [
        {"params": list(model.body.parameters()), "lr": 0.5, "weight_decay": 0.1},
        {"params": list(model.head.parameters()), "lr": 0.0},
    ]
    start = weights(model)
    train(model, LearnedOptimizer(groups, rule, lr=2.0), 1)
    train(reference, LearnedOptimizer(reference.parameters(), rule), 1)
    update = [b - a for a, b in zip(start, weights(reference), strict=True)]
    expected = [p * (1 - 0.5 * 0.1) + 0.5 * u for p, u in zip(start[:2], update[:2], strict=True)]
    torch.testing.assert_close(weights(model)[:2], expected, rtol=1e-10, atol=1e-12)
    same(weights(model)[2:], start[2:])


def test_schedulers(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule, lr=0.8)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for expected in (0.8, 0.4, 0.2):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        train(model, optimizer, 1)
        scheduler.step()


def test_tensor_lr(mlp: UpdateRule) -> None:
    models = make_model(), make_model()
    train(models[0], LearnedOptimizer(models[0].parameters(), mlp, lr=torch.tensor(0.5), weight_decay=0.1), 3)
    train(models[1], LearnedOptimizer(models[1].parameters(), mlp, lr=0.5, weight_decay=0.1), 3)
    torch.testing.assert_close(weights(models[0]), weights(models[1]))


def test_add_param_group(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.body.parameters(), mlp)
    train(model, optimizer, 2)
    head = weights(model.head)
    optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.1})
    train(model, optimizer, 2)
    assert all(not torch.equal(a, b) for a, b in zip(head, weights(model.head), strict=True))
    with pytest.raises(ValueError, match=r"lr of group 2 is -1.0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert len(optimizer.param_groups) == 2
    train(model, optimizer, 1)


def test_hooks(mlp: UpdateRule) -> None:
    model, seen = make_model(), []
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "mine": 1})
    train(model, optimizer, 1)
    assert seen == ["before", "after"]
    assert optimizer.state_dict()["mine"] == 1


def test_missing_gradients_leave_the_parameter_and_its_state(rule: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), rule, weight_decay=0.1)
    train(model, optimizer, 2)
    frozen, others = model.body.weight, [p for p in model.parameters() if p is not model.body.weight]
    before = weights(model), copy.deepcopy(optimizer.state[frozen])
    frozen.requires_grad_(False)
    train(model, optimizer, 2)
    same(frozen, before[0][0])
    same(optimizer.state[frozen], before[1])
    assert all(not torch.equal(p, b) for p, b in zip(others, before[0][1:], strict=True))
    frozen.requires_grad_(True)
    train(model, optimizer, 1)
    assert not torch.equal(frozen, before[0][0])


def test_step_without_any_gradient_does_nothing(mlp: UpdateRule) -> None:
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), mlp)
    before = weights(model), snapshot(optimizer)
    optimizer.step()
    same((weights(model), snapshot(optimizer)), before)


# State


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
    assert state["state"][0]["step"] == state["state"]["shared"]["step"] == 2
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


# Bad gradients and parameters


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
            with pytest.warns(RuntimeWarning, match=f"step skipped: the {name}"):
                optimizer.step()
        same((weights(model), snapshot(optimizer)), before)
        train(model, optimizer, 1)


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
    for _ in range(3):
        for p in params:
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()
    assert all((p < 0.0099).all() for p in params)
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
