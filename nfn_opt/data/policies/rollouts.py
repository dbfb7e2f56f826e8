"""Real returns: many policies at once in gymnasium's vectorised environments."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from tqdm.auto import tqdm

from nfn_opt.data.policies.architecture import PolicyArchitecture, check_spaces, stacked_outputs

__all__ = ["Returns", "roll_out", "visited_observations"]


@dataclasses.dataclass(frozen=True, eq=False)
class Returns:
    """Returns of N policies over the same E episodes.

    Attributes:
        each: Undiscounted sum of rewards of each episode, float64, shape (N, E).
        lengths: Steps of each episode, int64, shape (N, E).
        seeds: Seed of the reset that begins each episode, length E; all policies start from the same states.
    """

    each: Tensor
    lengths: Tensor
    seeds: tuple[int, ...]

    @property
    def mean(self) -> Tensor:
        """Mean return of each policy, shape (N,)."""
        return self.each.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of each mean over the starts, shape (N,); NaN for one episode."""
        episodes = self.each.shape[1]
        if episodes == 1:
            return torch.full_like(self.mean, torch.nan)
        return self.each.std(1) / episodes**0.5


def roll_out(
    params: Mapping[str, Tensor],
    architecture: PolicyArchitecture,
    environment: str,
    *,
    episodes: int = 10,
    seed: int = 0,
    num_envs: int = 64,
    progress: bool = False,
) -> Returns:
    """Play whole episodes of many policies in ``gymnasium.make_vec``.

    Each sub-environment has a policy of its own. One forward pass over stacked weights gives the actions of
    all; where an episode ends, the next one that waits, of any policy, is begun by a masked reset with its own
    seed. So no step is played twice or in vain, and an episode's return depends on its policy and seed alone. Discrete
    policies take the action of the largest score, the first of equal ones; continuous ones are clipped to the bounds.

    Args:
        params: By the names of ``Policy``, shape (N, *shape).
        architecture: What they are.
        environment: Its name in gymnasium.
        episodes: Episodes of each policy.
        seed: Episode e starts from a reset with the seed ``seed + e``.
        num_envs: Sub-environments at once, at most.
        progress: Show a progress bar.

    Returns:
        The returns; nothing is drawn but the resets.

    Raises:
        ValueError: If a number is below 1, the policies do not fit the environment, or are not finite.

    Example:
        >>> architecture = PolicyArchitecture.of_environment("CartPole-v1", (8,))
        >>> params = {name: torch.zeros(2, *shape) for name, shape in architecture.parameter_shapes.items()}
        >>> found = roll_out(params, architecture, "CartPole-v1", episodes=3)
        >>> found.each.shape, found.seeds, bool((found.each == found.lengths).all())
        (torch.Size([2, 3]), (0, 1, 2), True)
    """
    _check(params, architecture, environment, episodes, num_envs, seed)
    count = len(params["layers.0.bias"])
    waiting = _Episodes(count, episodes, seed)
    returns, lengths = np.zeros(count * episodes), np.zeros(count * episodes, dtype=np.int64)
    size = min(num_envs, count * episodes)
    made = gymnasium.make_vec(
        environment, size, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED}
    )
    bar = tqdm(total=count * episodes, desc=environment, unit="episode", disable=not progress)
    with contextlib.closing(made) as envs, bar:
        playing, seeds = waiting.take(size)
        observations, _ = envs.reset(seed=seeds)  # type: ignore[arg-type]  # one seed for each
        actor = _Actor(params, architecture, envs.single_action_space)
        actor.assign(playing // episodes)
        while (playing >= 0).any():
            observations, rewards, ended, cut, _ = envs.step(actor(observations))
            live, done = playing >= 0, ended | cut
            returns[playing[live]] += rewards[live]
            lengths[playing[live]] += 1
            if done.any():
                bar.update(int((done & live).sum()))
                playing[done], seeds = waiting.take(int(done.sum()))
                everyone = np.zeros(size, dtype=np.int64)
                everyone[done] = seeds
                observations, _ = envs.reset(seed=everyone.tolist(), options={"reset_mask": done})
                actor.assign(playing // episodes)
    if not np.isfinite(returns).all():
        raise ValueError(
            f"{environment} gave rewards that are not finite, expected finite ones; mend its rewards"
        )
    return Returns(
        torch.from_numpy(returns).view(count, episodes),
        torch.from_numpy(lengths).view(count, episodes),
        tuple(range(seed, seed + episodes)),
    )


def visited_observations(
    params: Mapping[str, Tensor],
    architecture: PolicyArchitecture,
    environment: str,
    *,
    count: int,
    generator: torch.Generator,
    policies: int = 32,
    steps: int = 100,
) -> Tensor:
    """Observations that policies see: a random choice of those of some of them, each in a sub-environment.

    Args:
        params: By the names of ``Policy``, shape (N, *shape).
        architecture: What they are.
        environment: Its name in gymnasium.
        count: Number of observations.
        generator: Source of the choices and of the seed of the resets.
        policies: Policies that are played, drawn at random.
        steps: Steps of each; where an episode ends, the next begins.

    Returns:
        Shape (count, observations), float32.

    Raises:
        ValueError: If there are fewer observations than asked for, or the policies do not fit.

    Example:
        >>> architecture = PolicyArchitecture.of_environment("CartPole-v1", (8,))
        >>> params = {name: torch.zeros(2, *shape) for name, shape in architecture.parameter_shapes.items()}
        >>> generator = torch.Generator().manual_seed(0)
        >>> visited_observations(params, architecture, "CartPole-v1", count=5, generator=generator).shape
        torch.Size([5, 4])
    """
    check_spaces(architecture, environment)
    check_params(params, architecture)
    size = min(policies, len(params["layers.0.bias"]))
    if count > size * steps:
        raise ValueError(
            f"count is {count}, expected at most {size * steps}, {steps} steps of {size} policies"
        )
    chosen = torch.randperm(len(params["layers.0.bias"]), generator=generator)[:size]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with contextlib.closing(gymnasium.make_vec(environment, size, vectorization_mode="sync")) as envs:
        actor = _Actor(params, architecture, envs.single_action_space)
        actor.assign(chosen.numpy())
        seen = [envs.reset(seed=seed)[0]]
        while len(seen) < steps:
            seen.append(envs.step(actor(seen[-1]))[0])
    observations = torch.from_numpy(np.concatenate(seen)).float()
    return observations[torch.randperm(len(observations), generator=generator)[:count]]


class _Episodes:
    """Episodes that wait to be played, policy after policy.

    Args:
        count: Number of policies.
        episodes: Episodes of each.
        seed: Of the first episode of each.
    """

    def __init__(self, count: int, episodes: int, seed: int) -> None:
        self.total, self.episodes, self.seed, self.begun = count * episodes, episodes, seed, 0

    def take(self, number: int) -> tuple[np.ndarray, list[int]]:
        """The next episodes, -1 where none is left, and seeds for their resets."""
        taken = np.arange(self.begun, self.begun + number)
        self.begun += number
        seeds = self.seed + taken % self.episodes
        return np.where(taken < self.total, taken, -1), seeds.tolist()


class _Actor:
    """Actions of all sub-environments, each by its own policy."""

    def __init__(
        self, params: Mapping[str, Tensor], architecture: PolicyArchitecture, space: gymnasium.Space[Any]
    ) -> None:
        self.params = {name: params[name].detach() for name in architecture.parameter_shapes}
        self.discrete, self.space = architecture.head == "discrete", space

    def assign(self, policies: np.ndarray) -> None:
        """Give each sub-environment the policy of that number, shape (num_envs,); any, where it is negative."""
        chosen = torch.from_numpy(np.maximum(policies, 0))
        self.current = {name: value[chosen] for name, value in self.params.items()}

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Actions for observations (num_envs, observations)."""
        seen = torch.from_numpy(observations).to(self.current["layers.0.bias"].dtype).unsqueeze(1)
        outputs = stacked_outputs(self.current, seen).squeeze(1)
        if self.discrete:
            return outputs.argmax(1).numpy()
        assert isinstance(self.space, gymnasium.spaces.Box)
        return outputs.numpy().clip(self.space.low, self.space.high).astype(self.space.dtype)


def _check(
    params: Mapping[str, Tensor],
    architecture: PolicyArchitecture,
    environment: str,
    episodes: int,
    num_envs: int,
    seed: int,
) -> None:
    for name, value, least in (("episodes", episodes, 1), ("num_envs", num_envs, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    check_spaces(architecture, environment)
    check_params(params, architecture)


def check_params(params: Mapping[str, Tensor], architecture: PolicyArchitecture) -> None:
    """Refuse weights that are not those of policies of an architecture, or not finite."""
    more = [name for name in params if name not in architecture.parameter_shapes]
    if more:
        raise ValueError(
            f"params has {', '.join(more)} beside {', '.join(architecture.parameter_shapes)}, expected only these for "
            f"{architecture}; give the architecture that the policies have"
        )
    for name, shape in architecture.parameter_shapes.items():
        got = tuple(params[name].shape) if name in params else None
        if got is None or got[1:] != shape or got[0] != len(params["layers.0.bias"]) or not got[0]:
            raise ValueError(
                f"params[{name!r}] must have shape (N, {', '.join(map(str, shape))}) with N >= 1 for {architecture}, "
                f"got {'nothing' if got is None else got}; stack the policies along a first axis"
            )
        if not params[name].isfinite().all():
            raise ValueError(f"params[{name!r}] must be finite, got NaN or infinity; leave such policies out")
