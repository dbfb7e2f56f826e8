"""Training of policies by evolution strategies: many independent runs in step, from random to as good as they get."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import gymnasium
import torch
from torch import Tensor

from nfn_opt.data.policies.architecture import Policy, PolicyArchitecture
from nfn_opt.data.policies.episodes import training_returns
from nfn_opt.meta.families.control import ENVIRONMENTS, Environment
from nfn_opt.meta.initialization import default_init
from nfn_opt.meta.randomness import seeded_generator

__all__ = ["PolicyOptions", "PolicyRun", "draw_runs", "train_runs"]

BETAS = (0.9, 0.99)
"""Of Adam."""

EPS = 1e-8
"""Of Adam."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """What decides a zoo of policies. Each training run draws its own values and initial weights, independently.

    Attributes:
        environment: Name in gymnasium: CartPole-v1, Acrobot-v1, Pendulum-v1 or MountainCarContinuous-v0.
        seed: Seed of everything.
        hidden: Widths of the hidden layers.
        snapshots: Policies that are kept of each run: the first, the best on training episodes, and between them those
            whose training returns are closest to equal steps.
        generations: Updates of a run.
        pairs: Pairs of perturbed policies a generation, each perturbation tried with both signs.
        train_episodes: Training episodes of each perturbed policy; all of a run start from the same states.
        learning_rate: Range of Adam's; uniform in the logarithm.
        sigma: Range of the standard deviation of the perturbations; uniform in the logarithm.
        init_scale: Range of a factor on PyTorch's default initial weights; uniform in the logarithm.

    Raises:
        ValueError: If there is no such environment, or a number or range is out of bounds.
    """

    environment: str = "CartPole-v1"
    seed: int = 0
    hidden: tuple[int, ...] = (16, 16)
    snapshots: int = 6
    generations: int = 20
    pairs: int = 8
    train_episodes: int = 1
    learning_rate: tuple[float, float] = (0.02, 0.2)
    sigma: tuple[float, float] = (0.03, 0.3)
    init_scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        environment_class(self.environment)
        for name, least in (("snapshots", 2), ("generations", 1), ("pairs", 1), ("train_episodes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.snapshots > self.generations + 1:
            raise ValueError(
                f"snapshots is {self.snapshots}, expected at most {self.generations + 1}: a run of "
                f"{self.generations} generations has no more policies; raise generations, or lower snapshots"
            )
        for name in ("learning_rate", "sigma", "init_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be two positive numbers, the lower first, got {low}, {high}")

    @property
    def architecture(self) -> PolicyArchitecture:
        """Of all policies."""
        return PolicyArchitecture.of_environment(self.environment, self.hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """How one run is trained; the attributes are those of `PolicyOptions`.

    Attributes:
        number: Which run it is.
    """

    number: int
    learning_rate: float
    sigma: float
    init_scale: float


def draw_runs(options: PolicyOptions, count: int) -> list[PolicyRun]:
    """Draw how each run is trained; a run's draw does not depend on how many there are.

    Raises:
        ValueError: If `count` is below 1.

    Example:
        >>> draw_runs(PolicyOptions(), 5)[:2] == draw_runs(PolicyOptions(), 2)
        True
    """
    if count < 1:
        raise ValueError(f"the number of runs must be >= 1, got {count}")
    return [_draw(options, number) for number in range(count)]


def _draw(options: PolicyOptions, number: int) -> PolicyRun:
    generator = seeded_generator(options.seed, f"policies/hyperparameters/{number}")
    values = {}
    for name in ("learning_rate", "sigma", "init_scale"):  # in an order that must not change
        low, high = map(math.log, getattr(options, name))
        values[name] = math.exp(low + (high - low) * torch.rand(1, generator=generator).item())
    return PolicyRun(number=number, **values)


def environment_class(environment: str) -> type[Environment]:
    """Batched equations of an environment of gymnasium.

    Raises:
        ValueError: If there are none; the message names those that there are.
    """
    found = {each.name: each for each in ENVIRONMENTS.values()}
    if environment not in found:
        raise ValueError(f"environment is {environment!r}, expected one of {', '.join(found)}")
    return found[environment]


def train_runs(
    runs: Sequence[PolicyRun], options: PolicyOptions, *, done: Callable[[int], object] | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    r"""Train some runs in step, by antithetic evolution strategies with ranked returns and Adam (arXiv:1703.03864).

    .. math:: g = \frac{1}{2 P \sigma} \sum_{j=1}^{P} \left( r_j^+ - r_j^- \right) \epsilon_j

    where :math:`r` are ranks of minus the returns of all 2 P perturbed policies, from -0.5 to 0.5. Episodes follow
    :mod:`nfn_opt.meta.families.control`, gymnasium's equations in batched single precision; what is
    trained there is then judged in gymnasium (:func:`~nfn_opt.data.policies.rollouts.roll_out`).

    Args:
        runs: The runs.
        options: Of all of them.
        done: Called with 1 after each generation.

    Returns:
        Parameters by name, shape (R, snapshots, *shape); the generation of each snapshot, int64, shape (R, snapshots),
        increasing; and minus the mean return of the policies around it, shape (R, snapshots).
    """
    es = _EvolutionStrategies(options, runs)
    path, losses = [], []
    for generation in range(options.generations + 1):
        path.append(es.params.clone())
        losses.append(es.step(generation))
        if done is not None:
            done(1)
    table = torch.stack(losses, 1)
    chosen = spread_snapshots(table, options.snapshots)
    rows = torch.arange(len(runs)).unsqueeze(1)
    kept = unpack(torch.stack(path, 1)[rows, chosen], es.shapes)
    return kept, chosen, table[rows, chosen]


def spread_snapshots(losses: Tensor, count: int) -> Tensor:
    """Which generations to keep so that their losses are spread: first, best, and the closest to equal steps between.

    Args:
        losses: Of each run after each generation, shape (R, G), with G >= count.
        count: Number of generations to keep, at least 2.

    Returns:
        Different generations, in order, int64, shape (R, count).

    Example:
        >>> spread_snapshots(torch.tensor([[9.0, 8.0, 5.0, 4.9, 1.0, 2.0]]), 3)
        tensor([[0, 2, 4]])
    """
    chosen = torch.zeros(len(losses), count, dtype=torch.int64)
    for row, each in enumerate(losses):
        best = int(each.argmin())
        free = each.clone()
        free[[0, best]] = torch.inf
        picked = {0, best}
        for level in torch.linspace(float(each[0]), float(each[best]), count)[1:-1].tolist():
            nearest = int((free - level).abs().argmin())
            picked.add(nearest)
            free[nearest] = torch.inf
        spare = [number for number in range(len(each)) if number not in picked]
        picked |= set(spare[: count - len(picked)])
        chosen[row] = torch.tensor(sorted(picked))
    return chosen


def unpack(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Parameters by name, shape (*batch, *shape), of rows (*batch, D) that hold one after the other."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = zip(shapes.items(), flat.split(sizes, -1), strict=True)
    return {name: part.unflatten(-1, shape) for (name, shape), part in parts}


class _EvolutionStrategies:
    """Runs in step; each draws from a stream of its own, so that it does not depend on the others.

    Attributes:
        params: Of each run, shape (R, D).
        shapes: Of the parameters that follow each other in a row.
    """

    def __init__(self, options: PolicyOptions, runs: Sequence[PolicyRun]) -> None:
        self.options, self.shapes = options, options.architecture.parameter_shapes
        horizon = gymnasium.spec(options.environment).max_episode_steps
        assert horizon is not None
        self.horizon, self.environment = horizon, environment_class(options.environment)()
        self.network = Policy(options.architecture)
        self.generators = [seeded_generator(options.seed, f"policies/run/{run.number}") for run in runs]
        self.rates, self.sigmas = (
            torch.tensor([getattr(run, name) for run in runs]).unsqueeze(1)
            for name in ("learning_rate", "sigma")
        )
        self.params = torch.cat([self._initial(*each) for each in zip(runs, self.generators, strict=True)])
        self.first, self.second = torch.zeros_like(self.params), torch.zeros_like(self.params)

    def step(self, generation: int) -> Tensor:
        """Go one generation on; the mean loss of the perturbed policies of each run, shape (R,)."""
        pairs, width = self.options.pairs, self.params.shape[1]
        noise = torch.stack([torch.randn(pairs, width, generator=each) for each in self.generators])
        starts = self.options.train_episodes
        states = torch.stack([self.environment.reset(each, (starts,)) for each in self.generators])
        spread = self.sigmas.unsqueeze(1) * noise
        centre = self.params.unsqueeze(1)
        losses = self._losses(torch.cat([centre + spread, centre - spread], 1), states)
        plus, minus = _ranks(losses).split(pairs, 1)
        gradient = torch.bmm((plus - minus).unsqueeze(1), noise).squeeze(1) / (2 * pairs * self.sigmas)
        self._adam(gradient, generation + 1)
        return losses.mean(1)

    def _losses(self, policies: Tensor, states: Tensor) -> Tensor:
        """Minus mean returns (R, 2 P) of policies (R, 2 P, D), each on its run's initial states (R, E, variables)."""
        count = policies.shape[1]
        params = unpack(policies.flatten(0, 1), self.shapes)
        starts = states.repeat_interleave(count, 0)
        return -training_returns(self.environment, params, starts, self.horizon).mean(1).view(-1, count)

    def _adam(self, gradient: Tensor, count: int) -> None:
        """A step of Adam."""
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.lerp_(gradient.square(), 1 - BETAS[1])
        mean, square = self.first / (1 - BETAS[0] ** count), self.second / (1 - BETAS[1] ** count)
        self.params = self.params - self.rates * mean / (square.sqrt() + EPS)

    def _initial(self, run: PolicyRun, generator: torch.Generator) -> Tensor:
        """Initial parameters of a run, shape (1, D)."""
        drawn = default_init(self.network, generator, 1)
        return run.init_scale * torch.cat([value.flatten(1) for value in drawn.values()], 1)


def _ranks(losses: Tensor) -> Tensor:
    """Ranks in each row, from -0.5 to 0.5, the mean rank for equal losses; shape as given."""
    below = (losses.unsqueeze(2) > losses.unsqueeze(1)).sum(2)
    above = (losses.unsqueeze(2) < losses.unsqueeze(1)).sum(2)
    return (below - above) / (2 * max(losses.shape[1] - 1, 1))
