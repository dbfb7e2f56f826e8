"""Quadratics, policies and initial parameters against what they are defined to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nfn_opt.meta.families import Initializer, PolicyTask, QuadraticTask, make_family
from nfn_opt.meta.families.control import ENVIRONMENTS, CartPole, Environment
from nfn_opt.meta.families.modules import CharRecurrent
from nfn_opt.meta.stepper import losses_and_grads

ANY: Any = "xavier"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments_follow_gymnasium_step_by_step(name: str, generator: torch.Generator) -> None:
    environment = ENVIRONMENTS[name]()
    reference: Any = gymnasium.make(environment.name).unwrapped
    reference.reset(seed=0)
    for _ in range(5):
        start = environment.reset(generator, ()).double()
        reference.state = start.numpy()
        if name == "cartpole":
            reference.steps_beyond_terminated = None
        follow(environment, reference, tuple(start.unbind()), generator)


def follow(
    environment: Environment, reference: Any, state: tuple[Tensor, ...], generator: torch.Generator
) -> None:
    """Go along with gymnasium, with random outputs of a policy."""
    for _ in range(60):
        outputs = 2 * torch.randn(environment.outputs, generator=generator, dtype=torch.float64)
        action = environment.act(outputs)
        discrete = isinstance(reference.action_space, gymnasium.spaces.Discrete)
        given = int(outputs.argmax()) if discrete else np.array([action.item()])
        observed, reward, ended, _, _ = reference.step(given)
        state, mine, over = environment.step(state, action)
        np.testing.assert_allclose(environment.observe(state).numpy(), observed, rtol=1e-5, atol=1e-5)
        assert mine.item() == pytest.approx(reward, abs=1e-9)
        assert bool(ended) == (over is not None and bool(over))
        if ended:
            break
        # Gymnasium keeps some states in single precision, which chaos would amplify.
        state = tuple(torch.tensor(float(value), dtype=torch.float64) for value in reference.state)


def test_episodes_end_as_they_do_in_gymnasium(generator: torch.Generator) -> None:
    start = torch.tensor([2.35, 1.0, 0.0, 0.0], dtype=torch.float64)
    reference: Any = gymnasium.make("CartPole-v1").unwrapped
    reference.reset(seed=0)
    reference.state = start.numpy()
    follow(CartPole(), reference, tuple(start.unbind()), generator)
    assert reference.steps_beyond_terminated is not None


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_losses_are_those_of_rollouts_one_by_one(name: str, generator: torch.Generator) -> None:
    environment = ENVIRONMENTS[name]()
    task = PolicyTask(environment, hidden=(5, 4), horizon=30, evaluated=3, dtype=torch.float64)
    params = task.init(generator, 2)
    batch = task.batch(generator, 2)
    losses = task.losses(params, batch)
    for i in range(2):
        one = {key: p[i] for key, p in params.items()}
        expected = [rollout(task, one, start) for start in batch["states"][i]]
        assert losses[i].item() == pytest.approx(sum(expected) / 2, rel=1e-9)
        assert task.loss(one, {"states": batch["states"][i]}).item() == pytest.approx(losses[i].item())
    assert task.full_losses(params).shape == (2,)


def rollout(task: PolicyTask, params: dict[str, Tensor], start: Tensor) -> float:
    """The loss of one episode, by the module itself."""
    state, total = tuple(start.unbind()), torch.zeros(1, dtype=torch.float64)
    for _ in range(task.horizon):
        outputs = torch.func.functional_call(task.network, params, (task.environment.observe(state),))
        state, reward, ended = task.environment.step(state, task.environment.act(outputs))
        total += reward
        if ended is not None and ended:
            break
    return task.environment.loss(total, task.horizon).item()


def test_evolution_strategies_are_those_of_the_formula(generator: torch.Generator) -> None:
    task = PolicyTask(CartPole(), horizon=40, pairs=3, sigma=0.5, dtype=torch.float64)
    params, batch = task.init(generator, 2), task.batch(generator, 2)
    losses, grads = task.losses_and_grads(params, batch)
    expected = {key: torch.zeros_like(p) for key, p in params.items()}
    mean = torch.zeros(2, dtype=torch.float64)
    for j in range(3):
        both = [
            task.losses({key: p + sign * 0.5 * batch["noise"][key][:, j] for key, p in params.items()}, batch)
            for sign in (1, -1)
        ]
        mean += (both[0] + both[1]) / 6
        for key, value in expected.items():
            difference = ((both[0] - both[1]) / (2 * 0.5 * 3)).view(2, *(1,) * (value.dim() - 1))
            expected[key] = value + difference * batch["noise"][key][:, j]
    torch.testing.assert_close(losses, mean)
    for key, value in expected.items():
        torch.testing.assert_close(grads[key], value)
    assert max(value.abs().max() for value in expected.values()) > 0


def test_policies_learn_to_balance_a_pole(generator: torch.Generator) -> None:
    task = PolicyTask(CartPole(), horizon=60)
    params = task.init(generator, 4)
    before = task.full_losses(params)
    for _ in range(60):
        _, grads = losses_and_grads(task, params, task.batch(generator, 4))
        params = {key: p - 0.5 * grads[key] for key, p in params.items()}
    assert task.full_losses(params).mean() < 0.7 * before.mean()


def quadratic(noise: float = 0.0) -> QuadraticTask:
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    eigenvalues = torch.tensor([1, 2, 3, 4, 5, 60.0], dtype=torch.float64)
    minimum = 3 * torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return QuadraticTask(eigenvalues, rotation, minimum, scale=3.0, noise=noise)


def test_a_quadratic_has_its_spectrum_and_minimum(generator: torch.Generator) -> None:
    task = quadratic()
    zero = torch.zeros(2, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return task.loss({"x": x.view(2, 3)}, zero)

    hessian = torch.autograd.functional.hessian(loss, task.minimum.flatten())
    found = torch.linalg.eigvalsh(hessian)
    torch.testing.assert_close(found / found[0], torch.tensor([1, 2, 3, 4, 5, 60.0], dtype=torch.float64))
    assert loss(task.minimum.flatten()).item() == 0


def test_a_quadratic_starts_at_one_and_its_noise_has_no_value(generator: torch.Generator) -> None:
    task = quadratic(noise=2.0)
    losses = []
    for seed in range(400):
        other = quadratic()
        other.minimum = 3 * torch.randn(2, 3, generator=generator, dtype=torch.float64)
        losses.append(other.full_losses(other.init(torch.Generator().manual_seed(seed), 1)))
    assert torch.cat(losses).mean().item() == pytest.approx(1.0, abs=0.15)
    params = task.init(generator, 500)
    batch = task.batch(generator, 500)
    value, grads = losses_and_grads(task, params, batch)
    _, exact = losses_and_grads(task, params, torch.zeros_like(batch))
    torch.testing.assert_close(value, task.full_losses(params))
    torch.testing.assert_close(grads["x"] - exact["x"], batch)


INITIAL: dict[str, Callable[[Tensor], float]] = {
    "lecun_normal": lambda w: w.std().item() * 30**0.5,
    "he_normal": lambda w: w.std().item() * 15**0.5,
    "glorot_uniform": lambda w: w.std().item() * 25**0.5,
    "gpt": lambda w: w.std().item() / 0.02,
    "siren": lambda w: w.abs().max().item() * 30,
    "orthogonal": lambda w: ((w @ w.mT - torch.eye(20)).abs().max().item() < 1e-4) * 1.0,
    "default": lambda w: w.abs().max().item() * 30**0.5,
}


@pytest.mark.parametrize("kind", INITIAL)
def test_initial_distributions(kind: Any, generator: torch.Generator) -> None:
    network = nn.Linear(30, 20, device="meta")
    weight = Initializer(kind=kind)(network, generator, 50)["weight"]
    assert INITIAL[kind](weight) == pytest.approx(1.0, rel=0.02)
    doubled = Initializer(kind=kind, scale=2.0)(network, generator, 50)
    assert doubled["weight"].std().item() == pytest.approx(2 * weight.std().item(), rel=0.05)
    assert doubled["bias"].abs().max().item() <= 30**-0.5


def test_initial_parameters_of_models(generator: torch.Generator) -> None:
    with torch.device("meta"):
        network = CharRecurrent(9, 4, 16, "relu")
    params = Initializer(kind="irnn")(network, generator, 3)
    assert torch.equal(params["recurrent.weight_hh_l0"][1], torch.eye(16))
    assert not params["recurrent.bias_hh_l0"].any()
    assert params["recurrent.weight_ih_l0"].abs().max() <= 0.25
    assert params["embedding.weight"].std().item() == pytest.approx(1.0, abs=0.3)
    later = Initializer(kind="siren", omega=10.0)(
        nn.Sequential(nn.Linear(2, 24), nn.Linear(24, 24)), generator, 30
    )
    assert later["0.weight"].abs().max().item() == pytest.approx(0.5, rel=0.01)
    assert later["1.weight"].abs().max().item() == pytest.approx((6 / 24) ** 0.5 / 10, rel=0.01)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Initializer(kind=ANY), "kind is 'xavier', expected one of default"),
        (lambda: Initializer(scale=0.0), "expected positive numbers"),
        (lambda: PolicyTask(CartPole(), pairs=0), "pairs=0"),
        (lambda: QuadraticTask(torch.ones(3), torch.eye(2), torch.zeros(2)), r"eigenvalues \(3,\)"),
        (lambda: QuadraticTask(-torch.ones(2), torch.eye(2), torch.zeros(2)), "must not be negative"),
    ],
)
def test_refused_options(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_teachers_can_be_learned(generator: torch.Generator) -> None:
    task = make_family("teacher-student").sample(torch.Generator().manual_seed(3))
    params = {key: p.requires_grad_() for key, p in task.init(generator, 2).items()}
    before, adam = task.full_losses(params), torch.optim.Adam(params.values(), lr=1e-2)
    for _ in range(100):
        adam.zero_grad()
        task.losses(params, task.batch(generator, 2)).sum().backward()
        adam.step()
    assert (task.full_losses(params) < 0.7 * before).all()
