"""Zoos of policies: trained run by run to a file, judged in gymnasium, resumed where they were stopped."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor

from nfn_opt.data.images import part_sizes
from nfn_opt.data.policies.rollouts import roll_out
from nfn_opt.data.policies.training import PolicyOptions, PolicyRun, draw_runs, train_runs
from nfn_opt.data.zoos.shards import ZooShards, build_in_shards
from nfn_opt.data.zoos.table import Column
from nfn_opt.data.zoos.zoo import Zoo
from nfn_opt.meta.processes import Processes
from nfn_opt.meta.randomness import seeded_generator

__all__ = ["build_policy_zoo", "split_runs"]


@dataclasses.dataclass(frozen=True)
class _Member:
    """A policy of a zoo.

    Attributes:
        number: Which it is.
        run: The run that it comes from.
        steps: Updates that the run makes.
    """

    number: int
    run: PolicyRun
    steps: int


def build_policy_zoo(
    path: str | os.PathLike[str],
    *,
    runs: int,
    options: PolicyOptions | None = None,
    episodes: int = 8,
    episode_seed: int = 1_000_000,
    shard_runs: int = 64,
    resume: bool = False,
    processes: Processes | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Zoo:
    """Train policies in many independent runs, keep some of each run, and play them in gymnasium.

    Columns of the table: ``number``, ``run``, ``step`` (updates so far), the hyperparameters of the run,
    ``mean_return``, its ``standard_error`` over the starts, ``mean_length`` in steps and ``episodes``. All policies
    play from the same starts. As all policies of a run descend from the same initial weights, cut such a zoo into
    parts with `split_runs`.

    Args:
        path: File to write, conventionally ``*.safetensors``; its table is written beside it, as ``.csv``.
        runs: Number of independent training runs; each gives ``options.snapshots`` policies.
        options: What each run draws its hyperparameters from; None stands for ``PolicyOptions()``.
        episodes: Episodes in gymnasium by which each policy is judged.
        episode_seed: Seed of the reset before the first of them, the next has the next seed.
        shard_runs: Runs that are trained in step and written at once; what a stop can cost.
        resume: Go on with a zoo that was stopped, of the same options. One that is complete is only read.
        processes: The processes that ``torchrun`` started; None for one alone.
        meta: More that is to be kept in `Zoo.meta`: anything that JSON can hold. That of the start counts.
        progress: Show a progress bar.

    Raises:
        FileExistsError: If the file, or a zoo that was stopped, is there already, and `resume` is False.
        FileNotFoundError: If `resume` is True and there is no zoo to resume.
        ValueError: If an option differs from those of the zoo to be resumed (it is named), or a number is below 1.
        ArtifactError: If a shard is damaged or of another zoo; it is named.
        OSError: If the disk is full, say; what is complete stays, and `resume` goes on from there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "zoo.safetensors"
        >>> options = PolicyOptions(hidden=(4,), generations=3, snapshots=2)
        >>> zoo = build_policy_zoo(path, runs=2, options=options, episodes=2)
        >>> zoo, zoo.table["run"].tolist()
        (Zoo(4 x policy 4-4-2 of 30 parameters, mean return ... to ...), [0, 0, 1, 1])
    """
    for name, value in (("episodes", episodes), ("shard_runs", shard_runs)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    options = options or PolicyOptions()
    options.architecture  # noqa: B018  (refuses what cannot be built, before anything is written)
    members = [
        _Member(run.number * options.snapshots + place, run, options.generations + 1)
        for run in draw_runs(options, runs)
        for place in range(options.snapshots)
    ]
    size = shard_runs * options.snapshots
    record = {
        "options": dataclasses.asdict(options),
        "runs": runs,
        "episodes": episodes,
        "episode_seed": episode_seed,
        "gymnasium": gymnasium.__version__,
        "shard_size": size,
    }
    chunks: Any = [members[start : start + size] for start in range(0, len(members), size)]
    return build_in_shards(
        ZooShards(Path(path), chunks, record, Zoo),
        lambda chunk, done: _judged(chunk, options, episodes, episode_seed, done),
        resume=resume,
        processes=processes,
        meta=meta,
        progress=progress,
    )


def _judged(
    members: Sequence[_Member],
    options: PolicyOptions,
    episodes: int,
    episode_seed: int,
    done: Callable[[int], object],
) -> Zoo:
    """Train the runs of some policies, and judge these."""
    runs = [member.run for member in members[:: options.snapshots]]
    kept, steps, _ = train_runs(runs, options, done=lambda made: done(made * len(members)))
    params = {name: value.flatten(0, 1).contiguous() for name, value in kept.items()}
    found = roll_out(params, options.architecture, options.environment, episodes=episodes, seed=episode_seed)
    table: dict[str, Column] = {
        "number": torch.tensor([member.number for member in members]),
        "run": torch.tensor([member.run.number for member in members]),
        "step": steps.flatten(),
    }
    for name in ("learning_rate", "sigma", "init_scale"):
        table[name] = torch.tensor([getattr(member.run, name) for member in members], dtype=torch.float64)
    table |= {
        "mean_return": found.mean,
        "standard_error": found.standard_error,
        "mean_length": found.lengths.double().mean(1),
        "episodes": torch.full((len(members),), episodes),
    }
    return Zoo(params, options.architecture, table)


def split_runs(zoo: Zoo, sizes: Mapping[str, float] | None = None, *, seed: int = 0) -> dict[str, Zoo]:
    """Cut a zoo of policies into parts that share no training run.

    Args:
        zoo: With the column ``run``.
        sizes: Name and size of each part, in runs: all counts (int) or all fractions (float). None stands for train
            0.8, val 0.1 and test 0.1.
        seed: Seed of the order in which the runs are dealt out, part after part.

    Raises:
        ValueError: If there is no such column, a part would be empty, or they sum to more than there are.
        TypeError: If counts and fractions are mixed.
    """
    column = zoo.table.get("run")
    if not isinstance(column, Tensor):
        raise ValueError(
            f"{zoo!r} has not the column 'run', expected the number of each policy's training run; build the zoo "
            "with build_policy_zoo"
        )
    numbers = column.unique()
    counts = part_sizes(sizes, len(numbers), "run")
    order = torch.randperm(len(numbers), generator=seeded_generator(seed, "policies/split"))
    dealt = numbers[order].split([*counts.values(), len(numbers) - sum(counts.values())])
    return {name: zoo[torch.isin(column, part)] for name, part in zip(counts, dealt, strict=False)}
