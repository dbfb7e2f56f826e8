"""A meta-training run: everything that changes, and one outer step."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch

from nfn_opt.data import ImageData, load_images
from nfn_opt.meta.checkpoint import load_checkpoint, save_checkpoint
from nfn_opt.meta.classification import CNNClassification, MLPClassification
from nfn_opt.meta.config import MetaTrainConfig, OuterConfig, TaskConfig
from nfn_opt.meta.estimators import TruncatedBackprop
from nfn_opt.meta.evaluate import Curves, Tuned, evaluate, tuned_adam
from nfn_opt.meta.pieces import MetaGradient
from nfn_opt.meta.tasks import Task
from nfn_opt.optim import UpdateRule, load_rule, make_rule

GIVE_UP_AFTER = 50
"""Outer steps in a row without a finite gradient after which a run is given up."""


def make_task(config: TaskConfig, data: ImageData, device: torch.device | str = "cpu") -> Task:
    """The inner problem of a configuration on given images."""
    if config.network == "mlp":
        return MLPClassification(
            data,
            hidden=config.widths,
            activation=config.activation,
            batch_size=config.batch_size,
            device=device,
        )
    return CNNClassification(
        data,
        channels=config.widths,
        activation=config.activation,
        batch_size=config.batch_size,
        device=device,
    )


def split_images(config: TaskConfig, source: str) -> tuple[ImageData, ImageData]:
    """The images that a configuration trains on, and those that it keeps for evaluation."""
    data = load_images(source, size=config.size, gray=config.gray)
    parts = data.split({"train": 1 - config.held_out, "held_out": config.held_out})
    return parts["train"], parts["held_out"]


def learning_rate(config: OuterConfig, step: int) -> float:
    """The outer learning rate of a step, counted from 0: linear warm-up, then cosine decay.

    Example:
        >>> config = OuterConfig(steps=110, lr=1.0, warmup=10)
        >>> [round(learning_rate(config, step), 3) for step in (0, 9, 10, 60)]
        [0.1, 1.0, 1.0, 0.5]
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_estimator(config: MetaTrainConfig) -> MetaGradient:
    """The estimator of the outer gradient of a configuration."""
    inner = config.inner
    return TruncatedBackprop(
        tasks=inner.tasks,
        truncation=inner.truncation,
        horizon=inner.horizon,
        shortest_horizon=inner.shortest_horizon,
        second_order=inner.second_order,
        stagger=inner.stagger,
        reparametrization=inner.reparametrization(),
    )


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator whose stream belongs to one seed and one purpose, and to no plain ``manual_seed``."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _make_rule(config: MetaTrainConfig, task: Task) -> UpdateRule:
    if config.start_from is not None:
        rule = load_rule(config.start_from)
    else:
        generator = seeded_generator(config.seed, "rule")
        rule = make_rule(config.rule, generator=generator, **config.rule_options)
    return rule.to(config.device)


class Run:
    """Everything that changes during a run, and what one outer step does to it.

    Args:
        config: What the run is to do.
    """

    def __init__(self, config: MetaTrainConfig) -> None:
        self.config = config
        images = {source: split_images(config.task, source) for source in config.task.images}
        self.tasks = {s: make_task(config.task, train, config.device) for s, (train, _) in images.items()}
        self.held_out = {s: make_task(config.task, held, config.device) for s, (_, held) in images.items()}
        self.rule = _make_rule(config, next(iter(self.tasks.values())))
        self.parameters = list(self.rule.parameters())
        outer = config.outer
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=outer.lr, betas=(outer.beta1, outer.beta2), weight_decay=outer.weight_decay
        )
        self.estimator = make_estimator(config)
        self.generator = seeded_generator(config.seed, "inner problems")
        self.carries = [self.estimator.start(self.rule, task, self.generator) for task in self.tasks.values()]
        self.step = 0
        self.skipped = 0
        self.in_a_row = 0
        self.seconds = 0.0

    def advance(self) -> dict[str, Any]:
        """Make one outer step; what to log."""
        start = time.perf_counter()
        lr = learning_rate(self.config.outer, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        losses = []
        for index, task in enumerate(self.tasks.values()):
            loss, self.carries[index] = self.estimator.step(
                self.rule, task, self.carries[index], self.generator
            )
            losses.append(float(loss))
        norm = self._apply(sum(math.isfinite(loss) for loss in losses))
        self.step += 1
        self.seconds += time.perf_counter() - start
        return {
            "step": self.step,
            "meta_loss": sum(losses) / len(losses),
            "gradient_norm": norm,
            "lr": lr,
            "finished": sum(int(carry.finished) for carry in self.carries),
            "dropped": sum(int(carry.dropped) for carry in self.carries),
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
        }

    def _apply(self, tasks: int) -> float:
        """Step with the gradients summed over ``tasks`` image sets, unless they are not finite; their norm."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        for grad in grads:
            grad /= max(1, tasks)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.outer.clip))
        if grads and math.isfinite(norm):
            self.optimizer.step()
            self.in_a_row = 0
            return norm
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= GIVE_UP_AFTER:
            raise RuntimeError(
                f"no outer gradient was finite in {self.in_a_row} outer steps up to step {self.step + 1}; lower the "
                "outer learning rate, the clipping norm or the truncation, or start from another rule"
            )
        return math.nan

    def evaluate(self) -> dict[str, Curves]:
        """Train on held-out images with fixed seeds."""
        seeds, steps = range(self.config.evaluation_seeds), self.config.inner.horizon
        return {s: evaluate(self.rule, task, seeds=seeds, steps=steps) for s, task in self.held_out.items()}

    def adam(self) -> dict[str, Tuned]:
        """The same with tuned Adam."""
        seeds, steps = range(self.config.evaluation_seeds), self.config.inner.horizon
        return {s: tuned_adam(task, seeds=seeds, steps=steps) for s, task in self.held_out.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        progress = {
            "step": self.step,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "seconds": self.seconds,
        }
        save_checkpoint(
            path,
            rule=self.rule,
            optimizer=self.optimizer,
            carries=self.carries,
            generator=self.generator,
            progress=progress,
        )

    def load(self, path: Path) -> None:
        """Go back to a checkpoint."""
        self.carries, progress = load_checkpoint(
            path, rule=self.rule, optimizer=self.optimizer, carries=self.carries, generator=self.generator
        )
        self.step, self.skipped = progress["step"], progress["skipped"]
        self.in_a_row, self.seconds = progress["in_a_row"], progress["seconds"]
