"""Real returns: equal to a plain loop over one environment, and to the batched equations; refusals by name."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from nfn_opt.data.policies import Policy, PolicyArchitecture, roll_out
from nfn_opt.data.policies.architecture import check_spaces, stacked_outputs
from nfn_opt.data.policies.episodes import training_returns
from nfn_opt.meta.families.control import ENVIRONMENTS, Environment
from nfn_opt.meta.families.policies import PolicyTask

NAMES = [environment.name for environment in ENVIRONMENTS.values()]


def policies(
    name: str, count: int, scale: float = 1.0, hidden: tuple[int, ...] = (5, 3)
) -> dict[str, Tensor]:
    architecture = PolicyArchitecture.of_environment(name, hidden)
    generator = torch.Generator().manual_seed(1)
    return {
        key: scale * torch.randn(count, *shape, generator=generator)
        for key, shape in architecture.parameter_shapes.items()
    }


def plain_return(policy: Policy, name: str, seed: int) -> tuple[float, int]:
    """One episode, as anyone would play it."""
    with gymnasium.make(name) as env:
        observation, _ = env.reset(seed=seed)
        total, steps, over = 0.0, 0, False
        while not over:
            with torch.no_grad():
                out = policy(torch.from_numpy(observation).unsqueeze(0)).squeeze(0).numpy()
            space = env.action_space
            action = (
                np.clip(out, space.low, space.high)
                if isinstance(space, gymnasium.spaces.Box)
                else int(out.argmax())
            )
            observation, reward, ended, cut, _ = env.step(action)
            total, steps, over = total + float(reward), steps + 1, ended or cut
    return total, steps


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_returns_are_those_of_a_plain_loop(name: str) -> None:
    params, architecture = policies(name, 3), PolicyArchitecture.of_environment(name, (5, 3))
    found = roll_out(params, architecture, name, episodes=2, seed=7, num_envs=4)
    assert found.seeds == (7, 8)
    for number in range(3):
        policy = Policy(architecture)
        policy.load_state_dict({key: value[number] for key, value in params.items()})
        for place, seed in enumerate(found.seeds):
            total, steps = plain_return(policy, name, seed)
            assert found.lengths[number, place] == steps
            assert found.each[number, place] == pytest.approx(total, rel=1e-3)


def test_an_episode_depends_on_its_policy_and_seed_alone() -> None:
    params, architecture = (
        policies("CartPole-v1", 5),
        PolicyArchitecture.of_environment("CartPole-v1", (5, 3)),
    )
    whole = roll_out(params, architecture, "CartPole-v1", episodes=4, num_envs=64)
    few = roll_out(params, architecture, "CartPole-v1", episodes=4, num_envs=3)
    one = {key: value[2:3] for key, value in params.items()}
    alone = roll_out(one, architecture, "CartPole-v1", episodes=2, seed=2)
    assert torch.equal(whole.each, few.each)
    assert torch.equal(whole.each[2:3, 2:], alone.each)
    assert len(whole.each.unique()) > 3
    torch.testing.assert_close(whole.mean, whole.each.mean(1))
    torch.testing.assert_close(whole.standard_error, whole.each.std(1) / 2)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values())
def test_training_returns_are_those_of_the_policy_task(
    environment: type[Environment], generator: torch.Generator
) -> None:
    """The twin keeps all episodes to the end; here those that have ended leave."""
    params = policies(environment.name, 30, scale=0.7)
    task = PolicyTask(environment(), hidden=(5, 3), horizon=60, evaluated=1)
    states = environment().reset(generator, (30, 2))
    returns = training_returns(environment(), params, states, 60)
    named = dict(zip((key for key, _ in task.network.named_parameters()), params.values(), strict=True))
    expected = task.losses(named, {"states": states})
    torch.testing.assert_close(environment().loss(returns, 60).mean(1), expected)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values())
def test_the_batched_equations_agree_with_gymnasium(environment: type[Environment]) -> None:
    """From the same states, up to single precision: of one step, and where chaos leaves it, of whole episodes."""
    name, steps = environment.name, 25
    params, architecture = policies(name, 4, scale=0.7), PolicyArchitecture.of_environment(name, (5, 3))
    starts, totals = [], torch.zeros(4)
    for number in range(4):
        policy = Policy(architecture)
        policy.load_state_dict({key: value[number] for key, value in params.items()})
        with gymnasium.make(name, max_episode_steps=steps) as env:
            env.reset(seed=number)
            starts.append(torch.tensor(np.asarray(env.unwrapped.state, dtype=np.float64)))  # type: ignore[attr-defined]
        with pytest.MonkeyPatch.context() as patch:
            make = gymnasium.make
            patch.setattr(gymnasium, "make", lambda each, make=make: make(each, max_episode_steps=steps))
            totals[number] = plain_return(policy, name, number)[0]
    states = torch.stack(starts).float().unsqueeze(1)
    returns = training_returns(environment(), params, states, steps).squeeze(1)
    torch.testing.assert_close(returns, totals, atol=2e-3 * steps, rtol=1e-3)


def test_stacked_outputs_are_those_of_the_modules(generator: torch.Generator) -> None:
    params = policies("CartPole-v1", 3)
    seen = torch.randn(3, 6, 4, generator=generator)
    for number, out in enumerate(stacked_outputs(params, seen)):
        policy = Policy(PolicyArchitecture(observations=4, outputs=2, hidden=(5, 3)))
        policy.load_state_dict({key: value[number] for key, value in params.items()})
        torch.testing.assert_close(out, policy(seen[number]))


def test_what_does_not_fit_is_said() -> None:
    params, architecture = (
        policies("CartPole-v1", 2),
        PolicyArchitecture.of_environment("CartPole-v1", (5, 3)),
    )
    with pytest.raises(
        ValueError, match=r"take 4 observations and give 2 scores of actions, expected 3 .* continuous"
    ):
        roll_out(params, architecture, "Pendulum-v1")
    with pytest.raises(ValueError, match="episodes must be >= 1, got 0"):
        roll_out(params, architecture, "CartPole-v1", episodes=0)
    with pytest.raises(ValueError, match="seed must be >= 0, got -3"):
        roll_out(params, architecture, "CartPole-v1", seed=-3)
    with pytest.raises(ValueError, match=r"params has layers.9.weight beside .*, expected only these"):
        roll_out({**params, "layers.9.weight": torch.zeros(2, 1)}, architecture, "CartPole-v1")
    with pytest.raises(ValueError, match=r"'layers.0.bias'\] must be finite"):
        roll_out({**params, "layers.0.bias": torch.full((2, 5), torch.nan)}, architecture, "CartPole-v1")
    with pytest.raises(ValueError, match=r"layers.1.bias.*got nothing"):
        roll_out(
            {key: value for key, value in params.items() if key != "layers.1.bias"},
            architecture,
            "CartPole-v1",
        )
    check_spaces(architecture, "CartPole-v1")


class Grid(gymnasium.Env[Any, Any]):
    """An environment whose observations are no vector."""

    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(2)


def test_environments_that_no_policy_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium, "make", lambda name: Grid())
    with pytest.raises(
        ValueError, match=r"Grid has observations Discrete\(3\), expected a Box of one dimension"
    ):
        PolicyArchitecture.of_environment("Grid")
    monkeypatch.setattr(Grid, "observation_space", gymnasium.spaces.Box(0, 1, (2,)))
    monkeypatch.setattr(Grid, "action_space", gymnasium.spaces.MultiDiscrete([2, 2]))
    with pytest.raises(ValueError, match=r"Grid has actions MultiDiscrete\(\[2 2\]\)"):
        PolicyArchitecture.of_environment("Grid")


def test_an_environment_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="gymnasium cannot make the environment 'Pole-v9'"):
        PolicyArchitecture.of_environment("Pole-v9")


def test_architectures_that_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one hidden layer"):
        PolicyArchitecture(observations=2, outputs=1, hidden=())
    with pytest.raises(ValueError, match="head is 'softmax', expected"):
        PolicyArchitecture(observations=2, outputs=1, head="softmax")  # type: ignore[arg-type]
