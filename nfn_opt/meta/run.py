"""A meta-training run: everything that changes, and one outer step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nfn_opt.artifacts import ArtifactError
from nfn_opt.meta.checkpoint import load_checkpoint, save_checkpoint
from nfn_opt.meta.config import MetaTrainConfig
from nfn_opt.meta.estimator_choice import make_estimator
from nfn_opt.meta.evaluate import Curves, Tuned, evaluate, tuned_adam
from nfn_opt.meta.guards import DivergenceError
from nfn_opt.meta.initial_rule import initial_rule
from nfn_opt.meta.outer import OuterOptimizer, below, learning_rate
from nfn_opt.meta.problems import (
    TaskSource,
    held_out_sources,
    make_task,
    split_images,
    training_sources,
)
from nfn_opt.meta.processes import Processes
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.meta.slots import COUNTS, Slot
from nfn_opt.meta.tasks import Task

__all__ = ["Run", "learning_rate", "make_task", "seeded_generator", "split_images"]

PROGRESS = ("step", "left_out", "skipped", "in_a_row", "updates", "seconds")
"""Counters of a run that a checkpoint holds."""

Measured = TypeVar("Measured")


class Run:
    """Everything that changes during a run, and what one outer step does to it.

    The slots are divided among the processes. A slot's inner problems and random numbers do not depend on the
    process, and the gradients of all slots are added in the order of the slots: the run is the same, bit for bit,
    whatever the number of processes.

    Args:
        config: What the run is to do.
        processes: Those that share it; this one alone if not given.

    Raises:
        ValueError: If there are more processes than slots trained at once.
    """

    def __init__(self, config: MetaTrainConfig, processes: Processes | None = None) -> None:
        self.config, self.processes = config, processes or Processes()
        device = self.processes.device(config.device)
        self.sources = training_sources(config, device)
        self.held_out = held_out_sources(config, device)
        self._check_sizes()
        self.rule = initial_rule(config, [*self.sources, *self.held_out]).to(device)
        self.outer = OuterOptimizer(config.outer, self.rule, len(self.sources))
        self.slots = {
            index: Slot(source, make_estimator(config, source.family), self.rule, seed=config.seed)
            for index, source in enumerate(self.sources)
            if self.processes.owns(index)
        }
        self.counts = torch.zeros(len(self.sources), 2, dtype=torch.float64)
        self.step = 0
        self.left_out = 0
        self.skipped = 0
        self.in_a_row = 0
        self.updates = 0
        self.seconds = 0.0
        self.task_losses: dict[str, float] = {}

    def advance(self) -> dict[str, Any]:
        """Make one outer step; what to log.

        Raises:
            DivergenceError: If no task has given a finite gradient for many outer steps.
        """
        start = time.perf_counter()
        active = self.active()
        rows = self._rows(active)
        losses, counts = rows[:, -COUNTS], rows[:, 1 - COUNTS :]
        usable = torch.isfinite(losses)
        usable &= torch.isfinite(rows[:, :-COUNTS]).all(1)
        norm = self.outer.apply(self.step, active, rows[:, :-COUNTS], usable)
        self.counts[active] = counts
        self.left_out += int((~usable).sum())
        self.task_losses = {self.sources[i].name: float(loss) for i, loss in zip(active, losses, strict=True)}
        lr = learning_rate(self.config.outer, self.step)
        self.step += 1
        self.updates += sum(self._updates(self.sources[index]) for index in active)
        self.seconds += time.perf_counter() - start
        finished, dropped = (int(count) for count in self.counts.sum(0))
        self._watch(norm)
        return {
            "step": self.step,
            "meta_loss": float(losses[usable].mean()),
            "gradient_norm": norm,
            "lr": lr,
            "finished": finished,
            "dropped": dropped,
            "left_out": self.left_out,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
        }

    def active(self) -> list[int]:
        """Numbers of the slots that the next outer step trains."""
        size, total = self.config.outer.tasks_per_step or len(self.sources), len(self.sources)
        return [(self.step * size + i) % total for i in range(min(size, total))]

    def evaluate(self) -> dict[str, Curves]:
        """Train on held-out inner problems with fixed seeds; all processes call it together."""
        return self._measured(
            lambda task, seeds, steps: _on_cpu(evaluate(self.outer.trained, task, seeds=seeds, steps=steps))
        )

    def adam(self) -> dict[str, Tuned]:
        """The same with tuned Adam."""

        def measure(task: Task, seeds: range, steps: int) -> Tuned:
            tuned = tuned_adam(task, seeds=seeds, steps=steps)
            return Tuned({lr: _on_cpu(curves) for lr, curves in tuned.curves.items()}, tuned.best)

        return self._measured(measure)

    def save(self, path: Path) -> None:
        """Write a checkpoint; all processes call it together, and the main one writes."""
        gathered = self.processes.gathered(
            {
                index: {name: tensor.cpu() for name, tensor in slot.tensors().items()}
                for index, slot in self.slots.items()
            }
        )
        if not self.processes.main:
            return
        slots = {index: tensors for part in gathered for index, tensors in part.items()}
        save_checkpoint(
            path,
            rule=self.rule,
            outer={**self.outer.tensors(), "counts": self.counts},
            slots=dict(sorted(slots.items())),
            progress={name: getattr(self, name) for name in PROGRESS},
        )

    def load(self, path: Path) -> None:
        """Go back to a checkpoint, whatever the number of processes was that wrote it.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            ArtifactError: If it is damaged or of another run.
        """
        tensors, progress = self.processes.shared(load_checkpoint(path) if self.processes.main else ({}, {}))
        try:
            self.outer.restore(tensors)
            self.counts = tensors["counts"].clone()
            for index, slot in self.slots.items():
                slot.restore(below(tensors, f"slot/{index}/"), progress["step"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path} does not fit this run: {error}") from error
        for name in PROGRESS:
            setattr(self, name, progress[name])

    def _rows(self, active: list[int]) -> Tensor:
        """What :meth:`Slot.advance` gives for each slot, from whichever process has it."""
        rows = torch.zeros(len(active), self.outer.size + COUNTS, dtype=torch.float64)
        for row, index in enumerate(active):
            if index in self.slots:
                rows[row] = self.slots[index].advance(self.step, self.outer.parameters)
        return self.processes.sum(rows)

    def _watch(self, norm: float) -> None:
        """Count outer steps without a gradient, and give up after many in a row."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row < self.config.outer.give_up_after:
            return
        counts = zip(self.sources, self.counts.tolist(), strict=True)
        dropped = ", ".join(f"{source.name} {int(count[1])}" for source, count in counts)
        raise DivergenceError(
            f"no outer gradient was finite in {self.in_a_row} outer steps up to step {self.step}: the inner training "
            f"of every task diverges, or its gradient does (inner problems dropped so far: {dropped}); lower the "
            "outer learning rate, the clipping norm or the truncation, or start from another rule"
        )

    def _measured(self, measure: Callable[[Task, range, int], Measured]) -> dict[str, Measured]:
        """A measurement on every held-out task, divided among the processes."""
        seeds = range(self.config.evaluation_seeds)
        own = {}
        for index, source in enumerate(self.held_out):
            if self.processes.owns(index):
                steps = self.config.evaluation_steps or source.family.horizon or self.config.inner.horizon
                own[source.name] = measure(source.draw(0), seeds, steps)
        all_of_them = {name: value for part in self.processes.gathered(own) for name, value in part.items()}
        return {source.name: all_of_them[source.name] for source in self.held_out}

    def _updates(self, source: TaskSource) -> int:
        """Inner updates of an outer step; evolution strategies train every problem in two versions."""
        inner = self.config.inner
        versions = sum(1 if name == "backprop" else 2 for name in inner.mixture or [inner.estimator])
        return versions * (source.family.networks or inner.tasks) * inner.truncation

    def _check_sizes(self) -> None:
        size, total = self.config.outer.tasks_per_step or len(self.sources), len(self.sources)
        if total % size:
            raise ValueError(
                f"tasks_per_step is {size}, expected a divisor of the number of instances, {total}, so that all "
                "have their turn equally often"
            )
        if self.processes.size > size:
            raise ValueError(
                f"there are {self.processes.size} processes for the {size} instances that one outer step trains on; "
                "start at most as many processes, or train on more instances (families.0.instances)"
            )


def _on_cpu(curves: Curves) -> Curves:
    tensors = {key: value for key, value in vars(curves).items() if value is not None}
    return Curves(**{key: tensor.cpu() for key, tensor in tensors.items()})
