"""The outer optimizer: from the gradients of all tasks to the next outer parameters."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nfn_opt.meta.config import OuterConfig
from nfn_opt.optim.rule import UpdateRule

BALANCE_DECAY = 0.99
"""Decay of the running mean of the norm of each task's gradient."""


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


class OuterOptimizer:
    """AdamW on the mean of the gradients of several tasks, of which those that are not finite are left out.

    Args:
        config: Options.
        rule: The rule that is trained.
        tasks: Number of tasks of the run.

    Raises:
        ValueError: If a pattern of ``lr_factors`` matches no outer parameter, or nothing is left to train.
    """

    def __init__(self, config: OuterConfig, rule: UpdateRule, tasks: int) -> None:
        self.config, self.rule = config, rule
        groups = _groups(config.lr_factors, rule)
        for p in groups.pop(0.0, []):
            p.requires_grad_(False)
        self.parameters = [p for group in groups.values() for p in group]
        if not self.parameters:
            raise ValueError(
                f"nothing is left to train: a {rule.kind!r} rule has {len(list(rule.parameters()))} outer parameters, "
                f"and lr_factors is {dict(config.lr_factors)}; leave some with a factor above 0"
            )
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "factor": factor} for factor, group in groups.items()],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.norms = torch.zeros(tasks, dtype=torch.float64)
        self.average = (
            None if config.ema is None else AveragedModel(rule, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        )

    @property
    def size(self) -> int:
        """Number of outer parameters that are trained."""
        return sum(p.numel() for p in self.parameters)

    @property
    def trained(self) -> UpdateRule:
        """The rule with the outer parameters that the run is to give."""
        return self.rule if self.average is None else cast(UpdateRule, self.average.module)

    def apply(self, step: int, tasks: Sequence[int], gradients: Tensor, usable: Tensor) -> float:
        """Make one outer step, unless no gradient is usable.

        Args:
            step: The outer step, counted from 0.
            tasks: Number of the task of each row of the gradients.
            gradients: One flat gradient in a row, float64, shape (rows, size).
            usable: Which rows count, bool (rows,): those with finite meta-losses and gradients.

        Returns:
            Norm of the mean gradient before clipping; NaN if no step was made.
        """
        if not bool(usable.any()):
            return math.nan
        rows = gradients[usable]
        if self.config.balance:
            rows = self._balanced(torch.tensor(tasks)[usable], rows)
        mean = rows.sum(0) / len(rows)
        norm = float(mean.norm())
        self._step(step, mean * min(1.0, self.config.clip / max(norm, 1e-300)))
        return norm

    def _balanced(self, tasks: Tensor, rows: Tensor) -> Tensor:
        now, before = rows.norm(dim=1), self.norms[tasks]
        self.norms[tasks] = torch.where(before > 0, now.lerp(before, BALANCE_DECAY), now)
        return rows / self.norms[tasks].clamp(min=1e-300).unsqueeze(1)

    def _step(self, step: int, gradient: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step) * group["factor"]
        for p, part in zip(
            self.parameters, gradient.split([p.numel() for p in self.parameters]), strict=True
        ):
            p.grad = part.reshape(p.shape).to(p.device, p.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.rule)

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how the outer optimization goes on, the rule included."""
        tensors = {f"rule/{name}": tensor for name, tensor in self.rule.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.state_dict().items()}
        return {**tensors, "norms": self.norms}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`tensors` gave.

        Raises:
            RuntimeError: If the tensors are those of another rule.
            KeyError: If some are missing.
        """
        self.rule.load_state_dict(below(tensors, "rule/"))
        if self.average is not None:
            self.average.load_state_dict(below(tensors, "average/"))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in below(tensors, "optimizer/").items():
            index, key = name.split("/", 1)
            states.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.norms = tensors["norms"].clone()


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, which is taken off."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _groups(factors: Mapping[str, Any], rule: UpdateRule) -> dict[float, list[nn.Parameter]]:
    """Outer parameters by the factor of their learning rate."""
    named = dict(rule.named_parameters())
    for pattern in factors:
        if not fnmatch.filter(named, pattern):
            raise ValueError(
                f"lr_factors has the pattern {pattern!r}, which matches none of the outer parameters of a "
                f"{rule.kind!r} rule: {', '.join(named)}"
            )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in named.items():
        matching = (
            float(factor) for pattern, factor in factors.items() if fnmatch.fnmatchcase(name, pattern)
        )
        groups.setdefault(next(matching, 1.0), []).append(p)
    return groups
