"""What every update rule keeps to: purity, vmap, finiteness, gradients, equivariance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from nfn_opt.optim import UpdateRule
from nfn_opt.optim.feature_rule import FeatureRule
from nfn_opt.weight_space import WeightSpace
from tests.optim.rule_cases import RULES, draw, leaves, run

SPACE = WeightSpace.independent(draw(torch.Generator().manual_seed(0)))


@pytest.fixture(params=RULES, name="rule")
def make(request: pytest.FixtureRequest) -> UpdateRule:
    return RULES[request.param]().double()


@torch.no_grad()
def test_pure(rule: UpdateRule, generator: torch.Generator) -> None:
    params, gradients = draw(generator), [draw(generator)]
    _, state = run(rule, SPACE, params, gradients)
    before = copy.deepcopy((params, gradients, leaves(state), rule.state_dict()))
    first = run(rule, SPACE, params, gradients, state, start=1)
    second = run(rule, SPACE, params, gradients, state, start=1)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(before, (params, gradients, leaves(state), rule.state_dict()), rtol=0, atol=0)


def test_names_shapes_and_dtypes(rule: UpdateRule, generator: torch.Generator) -> None:
    params = draw(generator)
    state = rule.init(SPACE, params)
    updates, after = rule.update(params, draw(generator), state, space=SPACE, step=torch.tensor(0))
    assert {n: (u.shape, u.dtype) for n, u in updates.items()} == {
        n: (p.shape, p.dtype) for n, p in params.items()
    }
    assert state.keys() == after.keys() == {"tensors", "shared"}
    described = [[(leaf.shape, leaf.dtype) for leaf in leaves(s)] for s in (state, after)]
    assert described[0] == described[1]


def test_vmap_equals_loop(rule: UpdateRule, generator: torch.Generator) -> None:
    params, gradients = draw(generator, 3), [draw(generator, 3) for _ in range(3)]
    batched = vmap(lambda p, *g: run(rule, SPACE, p, g))(params, *gradients)
    for i in range(3):
        single = run(rule, SPACE, _pick(params, i), [_pick(g, i) for g in gradients])
        for whole, one in zip(leaves(batched), leaves(single), strict=True):
            torch.testing.assert_close(whole[i], one, rtol=1e-12, atol=1e-14)


def test_vmap_over_steps_and_outer_parameters(rule: UpdateRule, generator: torch.Generator) -> None:
    params, grads = draw(generator), draw(generator)
    outer = {n: torch.stack([p.detach(), p.detach() + 0.01]) for n, p in rule.named_parameters()}
    steps = torch.tensor([0, 50])

    def update(theta: dict[str, Tensor], step: Tensor) -> dict[str, Tensor]:
        named = {f"rule.{n}": p for n, p in theta.items()}
        arguments = (params, grads, rule.init(SPACE, params))
        updates: dict[str, Tensor]
        updates, _ = functional_call(_Update(rule), named, arguments, {"space": SPACE, "step": step})
        return updates

    batched = vmap(update)(outer, steps)
    for i in range(2):
        single = update({n: p[i] for n, p in outer.items()}, steps[i])
        torch.testing.assert_close(_pick(batched, i), single, rtol=1e-12, atol=1e-14)


class _Update(torch.nn.Module):
    """The update as a forward pass, which ``functional_call`` asks for."""

    def __init__(self, rule: UpdateRule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.rule.update(*args, **kwargs)  # type: ignore[arg-type]


@torch.no_grad()
def test_traced_with_outer_parameters_for_each_network(rule: UpdateRule, generator: torch.Generator) -> None:
    """One graph for all steps and values: what a compiled inner step is made of."""
    params, *gradients = (_only(draw(generator, 2), ("w", "b")) for _ in range(3))
    space = WeightSpace.independent(_pick(params, 0))
    theta = {n: torch.stack([p, p + 0.01]) for n, p in rule.named_parameters()}
    state = vmap(lambda p: rule.init(space, p))(params)

    def update(*arguments: Any) -> Any:
        def one(th: dict[str, Tensor], p: Any, g: Any, s: Any, step: Tensor) -> Any:
            return functional_call(rule, th, (p, g, s), {"space": space, "step": step})

        return vmap(one)(*arguments)

    traced = make_fx(update)(theta, params, gradients[0], state, torch.zeros(2, dtype=torch.int64))
    for t, grads in enumerate(gradients):
        arguments = (theta, params, grads, state, torch.tensor([t, 7 + t]))
        expected, got = update(*arguments), traced(*arguments)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        state = expected[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e5])
def test_finite_with_finite_derivatives(
    rule: UpdateRule, generator: torch.Generator, dtype: torch.dtype, scale: float
) -> None:
    rule = rule.to(dtype)
    params = {n: p.requires_grad_() for n, p in draw(generator, dtype=dtype).items()}
    gradients = [
        {n: (scale * g).requires_grad_() for n, g in draw(generator, dtype=dtype).items()} for _ in range(2)
    ]
    after, state = run(rule, SPACE, params, gradients)
    assert all(torch.isfinite(leaf).all() for leaf in leaves((after, state)))
    inputs = [*params.values(), *gradients[0].values(), *rule.parameters()]
    total = torch.stack([(p**2).sum() for p in after.values()]).sum()
    for derivative in torch.autograd.grad(total, inputs, allow_unused=True):
        assert derivative is None or torch.isfinite(derivative).all()


def test_gradients_reach_every_outer_parameter_and_are_right(
    rule: UpdateRule, generator: torch.Generator
) -> None:
    params, gradients = draw(generator), [draw(generator) for _ in range(3)]

    def loss() -> Tensor:
        after, _ = run(rule, SPACE, params, gradients)
        return torch.stack([(p**2).mean() for p in after.values()]).sum()

    outer = list(rule.parameters())
    for p in outer:  # biases of zero leave the hidden layers of small tensors exactly where ReLU turns
        p.data += 0.01 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    derivatives = torch.autograd.grad(loss(), outer)
    assert all(d.abs().max() > 0 for d in derivatives)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in outer]
    values, size = [], 1e-7  # small, so that no ReLU turns within it
    for sign in (1, -1):
        moved = [p.data.clone() for p in outer]
        for p, direction in zip(outer, along, strict=True):
            p.data += sign * size * direction
        values.append(loss().item())
        for p, old in zip(outer, moved, strict=True):
            p.data = old
    expected = (values[0] - values[1]) / (2 * size)
    got = sum((d * a).sum().item() for d, a in zip(derivatives, along, strict=True))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_split_in_two_equals_one_run(rule: UpdateRule, generator: torch.Generator) -> None:
    params, gradients = draw(generator), [draw(generator) for _ in range(4)]
    whole = run(rule, SPACE, params, gradients)
    half, state = run(rule, SPACE, params, gradients[:2])
    torch.testing.assert_close(run(rule, SPACE, half, gradients[2:], state, start=2), whole, rtol=0, atol=0)


def test_uncoupled_rules_take_any_subset(rule: UpdateRule, generator: torch.Generator) -> None:
    if rule.coupled:
        return
    params, gradients, names = draw(generator), [draw(generator) for _ in range(2)], ("b", "conv")
    whole, _ = run(rule, SPACE, params, gradients)
    part, _ = run(rule, SPACE, _only(params, names), [_only(g, names) for g in gradients])
    torch.testing.assert_close(part, _only(whole, names), rtol=1e-13, atol=0)


def test_foreign_tensors_and_states_are_refused(rule: UpdateRule, generator: torch.Generator) -> None:
    if not isinstance(rule, FeatureRule):
        return  # the classic rules treat each entry on its own
    params, grads = draw(generator), draw(generator)
    state = rule.init(SPACE, params)
    for key, tensors in {
        "w": {**params, "w": params["w"].t()},
        "other": {**params, "other": params["w"]},
    }.items():
        with pytest.raises(ValueError, match=key):
            rule.update(tensors, tensors, state, space=SPACE, step=torch.tensor(0))
    with pytest.raises(ValueError, match=r"the tensor '\w+' is missing"):
        rule.update(params, _only(grads, ("w",)), state, space=SPACE, step=torch.tensor(0))
    with pytest.raises(ValueError, match="made for another network or rule"):
        rule.update(params, grads, {**state, "tensors": {}}, space=SPACE, step=torch.tensor(0))


def _pick(tensors: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: tensor[i] for name, tensor in tensors.items()}


def _only(tensors: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in names}
