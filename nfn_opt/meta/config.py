"""Configuration of a meta-training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfn_opt.meta.config_parts import FamilyConfig, InnerConfig, OuterConfig, TaskConfig

__all__ = [
    "FREE_TO_CHANGE",
    "FamilyConfig",
    "InnerConfig",
    "MetaTrainConfig",
    "OuterConfig",
    "TaskConfig",
    "differences",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaTrainConfig:
    """A meta-training run.

    Attributes:
        out: Folder that everything is written to.
        rule: Kind of update rule; not read with start_from.
        rule_options: Options of the rule; with start_from those that change.
        start_from: File of a rule, checkpoint of a run, or name of a rule that comes with the library, whose outer
            parameters are trained further, in place of a new rule. Those that changed options add are new.
        families: Families of inner problems.
        data: Image sets that the families ask for by name, each a file, a folder or a name known to
            nfn_opt.data.load_images.
        data_limit: Largest number of images taken of a set.
        task: The inner problems of the family "images".
        inner: The inner training.
        outer: The outer optimization.
        seed: Seed of the initial rule and of all inner problems.
        device: Where to compute, such as "cpu" or "cuda". Random numbers are always drawn on the CPU.
        evaluate_every: Outer steps between evaluations on held-out inner problems.
        evaluate_minutes: Evaluate also when this many minutes have passed since the last evaluation.
        evaluation_seeds: Number of seeds of an evaluation.
        evaluation_steps: Updates of an evaluation; the horizon if not given.
        evaluation_instances: Instances of each family that evaluations draw anew and never train on.
        evaluation_families: Families that are evaluated on and not trained on, in recipes only.
        compare_with_adam: Also train with Adam at several learning rates on what is evaluated, once.
        checkpoint_every: Outer steps between checkpoints.
        checkpoint_minutes: Write a checkpoint also when this many minutes have passed since the last one.
        minutes: Stop, with a checkpoint, after this many minutes; resume to go on.
        log_tasks_every: Outer steps between log rows of every single instance.
        tensorboard: Also log for TensorBoard.
        quiet: Show no progress.
    """

    out: Path
    rule: str = "nfn"
    rule_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start_from: Path | None = None
    families: tuple[FamilyConfig, ...] = (FamilyConfig(),)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data_limit: int = 4096
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    inner: InnerConfig = dataclasses.field(default_factory=InnerConfig)
    outer: OuterConfig = dataclasses.field(default_factory=OuterConfig)
    seed: int = 0
    device: str = "cpu"
    evaluate_every: int = 50
    evaluate_minutes: float | None = None
    evaluation_seeds: int = 5
    evaluation_steps: int | None = None
    evaluation_instances: int = 1
    evaluation_families: tuple[FamilyConfig, ...] = ()
    compare_with_adam: bool = True
    checkpoint_every: int = 100
    checkpoint_minutes: float | None = None
    minutes: float | None = None
    log_tasks_every: int = 20
    tensorboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in (
            "evaluate_every",
            "evaluation_seeds",
            "evaluation_steps",
            "evaluation_instances",
            "checkpoint_every",
            "log_tasks_every",
            "data_limit",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name in ("evaluate_minutes", "checkpoint_minutes", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, expected a positive number")
        if not self.families:
            raise ValueError("families is empty, expected at least one family of inner problems")

    @property
    def steps(self) -> int:
        """All outer steps of the run."""
        return self.outer.steps

    def record(self) -> dict[str, Any]:
        """All options as nested dicts of JSON values."""
        return plain_record(self)


FREE_TO_CHANGE = (
    "out",
    "checkpoint_every",
    "checkpoint_minutes",
    "evaluate_minutes",
    "minutes",
    "tensorboard",
    "quiet",
)
"""Options that do not change the result, so that a resumed run may have others."""


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two records of a configuration, one line for each option.

    Example:
        >>> differences({"seed": 0, "outer": {"lr": 0.1}}, {"seed": 0, "outer": {"lr": 0.2}})
        ['outer.lr was 0.1, now 0.2']
    """
    found = []
    for key in sorted(stored.keys() | now.keys()):
        before, after = (_numbered(record.get(key)) for record in (stored, now))
        if not prefix and key in FREE_TO_CHANGE:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {before!r}, now {after!r}")
    return found


def _numbered(value: Any) -> Any:
    """A list of records as a record, so that differences name what is in it."""
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return value


def plain_record(config: Any) -> dict[str, Any]:
    """A dataclass of options as nested dicts of JSON values."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
