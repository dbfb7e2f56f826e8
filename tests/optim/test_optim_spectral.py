from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nfn_opt.optim import (
    LearnedOptimizer,
    SpectralConfig,
    SpectralRule,
    make_rule,
    orthogonalise,
    pretrained,
)
from nfn_opt.weight_space import WeightSpace

SHAPES = {"w": (6, 4), "conv": (5, 3, 2, 2), "b": (6,)}


def draw(generator: torch.Generator, scale: float = 1.0) -> dict[str, Tensor]:
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def updates_of(
    rule: SpectralRule, params: dict[str, Tensor], grads: list[dict[str, Tensor]], **options: Any
) -> list[dict[str, Tensor]]:
    space, found = WeightSpace.independent(params), []
    state = rule.init(space, params)
    for t, grad in enumerate(grads):
        one, state = rule.update(params, grad, state, space=space, step=torch.tensor(t), **options)
        found.append({name: u.detach() for name, u in one.items()})
    return found


@pytest.fixture
def rule() -> SpectralRule:
    return SpectralRule(
        SpectralConfig(correction=1e-12, rate=1e-12, weight_decay=0.0, excess_exponent=0.0)
    ).double()


def rms(x: Tensor) -> Tensor:
    return x.detach().square().mean().sqrt()


def test_it_starts_as_orthogonal_momentum(rule: SpectralRule, generator: torch.Generator) -> None:
    params, grads = draw(generator, 0.1), [draw(generator) for _ in range(3)]
    update = updates_of(rule, params, grads)[-1]
    for name in SHAPES:
        momentum = torch.stack([0.9 ** (2 - t) * grads[t][name] for t in range(3)]).sum(0)
        direction = momentum / rms(momentum) + 0.6 * grads[-1][name] / rms(grads[-1][name])
        if direction.dim() > 1:
            direction = orthogonalise(direction.flatten(1)).reshape(direction.shape)
        expected = -direction / rms(direction)
        torch.testing.assert_close(update[name] / rms(update[name]), expected, rtol=1e-6, atol=1e-6)


def test_it_does_not_depend_on_units(rule: SpectralRule, generator: torch.Generator) -> None:
    params, grads = draw(generator, 0.1), [draw(generator) for _ in range(4)]
    plain = updates_of(rule, params, grads, total_steps=torch.tensor(10))
    units = {"w": 100.0, "conv": 0.01, "b": 10.0}
    other = updates_of(
        rule,
        {name: units[name] * p for name, p in params.items()},
        [{name: g / units[name] for name, g in grad.items()} for grad in grads],
        total_steps=torch.tensor(10),
    )
    for one, two in zip(plain, other, strict=True):
        for name, unit in units.items():
            ratio = two[name] / unit / one[name]
            # the network that sets step sizes reads the size of tensors, and starts almost constant
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-2, atol=0)
            assert 0.7 < float(ratio.mean()) < 1.4


@pytest.mark.parametrize("correction", [0.0, 1.0])
@pytest.mark.parametrize("fast", [True, False])
def test_tiny_gradients_are_followed_as_any(
    correction: float, fast: bool, generator: torch.Generator
) -> None:
    rule = SpectralRule(SpectralConfig(correction=correction, features=("gradient", "momentum", "parameter")))
    start, gradient = torch.randn(20, 16, generator=generator), torch.randn(20, 16, generator=generator)
    moved = []
    for scale in (1.0, 1e-5, 1e-8):
        p = torch.nn.Parameter(start.clone())
        optimizer = LearnedOptimizer([p], rule, total_steps=10)
        if not fast:
            optimizer._engines[optimizer._default]._fast[p.device, p.dtype] = None
        for _ in range(3):
            p.grad = scale * gradient
            optimizer.step()
        moved.append(p.detach() - start)
    for other in moved[1:]:
        torch.testing.assert_close(other, moved[0], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", ["spectral", "default"])
def test_tensors_without_any_gradient_stay(name: str, generator: torch.Generator) -> None:
    rule = SpectralRule(SpectralConfig(correction=1.0)) if name == "spectral" else pretrained()
    embedding, used, unused = (
        torch.nn.Embedding(9, 4, padding_idx=0),
        torch.nn.Linear(4, 3),
        torch.nn.Linear(4, 2),
    )
    params = [p for module in (embedding, used, unused) for p in module.parameters()]
    optimizer = LearnedOptimizer(params, rule, total_steps=10)
    before, padding = unused.weight.detach().clone(), embedding.weight[0].detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        embedded = embedding(torch.randint(9, (20,), generator=generator))
        (used(embedded).square().mean() + 0 * unused(embedded).sum()).backward()
        optimizer.step()
    assert torch.equal(unused.weight, before)
    if name == "default":
        assert torch.equal(embedding.weight[0], padding)


def test_steps_follow_the_share_of_the_training_done(rule: SpectralRule, generator: torch.Generator) -> None:
    params, grads = draw(generator, 0.06), [draw(generator)] * 41
    sizes = [float(rms(one["b"])) for one in updates_of(rule, params, grads, total_steps=torch.tensor(40))]
    assert sizes[0] < 0.7 * sizes[2]
    assert 0.3 < sizes[22] / sizes[3] < 0.8
    assert sizes[40] < 0.01 * sizes[3]
    endless = [float(rms(one["b"])) for one in updates_of(rule, params, [draw(generator)] * 60)]
    assert endless[0] < 0.05 * endless[55]
    assert 0.8 < endless[59] / endless[55] < 1.25


def test_the_control_sees_whether_gradients_agree(generator: torch.Generator) -> None:
    rule = SpectralRule(SpectralConfig(control=8)).double()
    with torch.no_grad():
        rule.control.weight.zero_()
        rule.control.weight[0, 0] = 1.0  # the cosine with the first momentum
        rule.control.out.zero_()
        rule.control.out[0, 0] = 0.1
    params, grad = draw(generator, 0.06), draw(generator)
    turned = [{name: (-1) ** t * g for name, g in grad.items()} for t in range(30)]
    same = updates_of(rule, params, [grad] * 30)[-1]
    opposite = updates_of(rule, params, turned)[-1]
    for name in SHAPES:
        assert rms(same[name]) > 1.5 * rms(opposite[name])


def test_a_step_size_is_found(generator: torch.Generator) -> None:
    """On a quadratic that is far too steep for the initial step size, or far too flat."""
    finals = {}
    for curvature in (0.05, 1000.0):
        for rate in (1e-9, 0.03):
            rule = SpectralRule(SpectralConfig(rate=rate)).double().requires_grad_(False)
            p = {"w": 0.06 * torch.ones(8, 8, dtype=torch.float64)}
            target = p["w"] + torch.eye(8, dtype=torch.float64) / curvature
            space = WeightSpace.independent(p)
            state = rule.init(space, p)
            for t in range(200):
                grads = {"w": p["w"] - target}
                update, state = rule.update(p, grads, state, space=space, step=torch.tensor(t))
                p = {"w": p["w"] + update["w"]}
            finals[curvature, rate] = float((p["w"] - target).norm() / (1 / curvature))
    start = 8**0.5
    assert start - finals[0.05, 0.03] > 4 * (start - finals[0.05, 1e-9])
    assert finals[1000.0, 0.03] < 0.8 * finals[1000.0, 1e-9]


def test_matrices_decay_where_updates_make_them_smaller(generator: torch.Generator) -> None:
    params, grads = draw(generator, 0.06), [draw(generator)]
    options: dict[str, Any] = {"correction": 1e-12, "rate": 1e-12}
    with_decay, without = (
        updates_of(SpectralRule(SpectralConfig(**options, weight_decay=decay)).double(), params, grads)[0]
        for decay in (0.5, 0.0)
    )
    torch.testing.assert_close(with_decay["b"], without["b"])
    for name in ("w", "conv"):
        p, step = params[name], float(rms(without[name]))
        size = float(rms(p))
        expected = torch.where(without[name] * p < 0, -0.5 * step * p / size, 0.0)
        # the orthogonal direction has a root mean square of about 1
        torch.testing.assert_close(with_decay[name] - without[name], expected, rtol=0.3, atol=0)


def test_deeper_networks_take_smaller_steps(rule: SpectralRule, generator: torch.Generator) -> None:
    params, grad = draw(generator, 0.06), draw(generator)
    deep = WeightSpace.independent({**params, **{f"{i}": params["w"] for i in range(2)}})
    shallow = WeightSpace.independent(params)
    one, two = (
        rule.update(params, grad, rule.init(space, params), space=space, step=torch.tensor(0))[0]
        for space in (shallow, deep)
    )
    for name in SHAPES:
        torch.testing.assert_close(two[name], one[name] * (2 / 4) ** 0.5)


def test_tensors_larger_than_usual_take_smaller_steps_relative_to_them(generator: torch.Generator) -> None:
    options: dict[str, Any] = {"correction": 1e-12, "rate": 1e-12, "weight_decay": 0.0}
    rule = SpectralRule(SpectralConfig(**options, excess_exponent=1.0)).double()
    grad = [draw(generator)]
    params = {name: p for name, p in draw(generator).items() if name != "b"}
    small, large, larger = (
        updates_of(rule, {name: size * p / rms(p) for name, p in params.items()}, grad)[0]
        for size in (0.01, 0.4, 0.7)
    )
    for name, p in params.items():
        torch.testing.assert_close(large[name], larger[name])
        usual = (3 * p[0].numel()) ** -0.5
        torch.testing.assert_close(large[name], usual / 0.01 * small[name])


def test_a_tensor_of_zeros_moves(rule: SpectralRule, generator: torch.Generator) -> None:
    params = {name: torch.zeros_like(p) for name, p in draw(generator).items()}
    update = updates_of(rule, params, [draw(generator)], total_steps=torch.tensor(1))[0]
    assert all(float(rms(one)) > 1e-3 for one in update.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"features": ("momentum",)}, "expected 'gradient' among them"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralConfig(**options)


@pytest.mark.parametrize(("field", "value"), [("hidden", 8), ("features", "gradient")])
def test_lists_that_are_none(field: str, value: Any) -> None:
    for kind in ("spectral", "mlp"):
        with pytest.raises(TypeError, match=f"{field} is {value!r}, expected a list, such as"):
            make_rule(kind, **{field: value})
