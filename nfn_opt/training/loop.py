"""A supervised training that can be stopped, shared and continued: one object, advanced step by step."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nfn_opt.meta.outer import below
from nfn_opt.meta.processes import Processes
from nfn_opt.training.config import TrainingConfig

__all__ = ["BatchLoss", "Training", "progress_bar"]

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"

COUNTERS = ("step", "seconds", "best", "best_step", "stale", "skipped", "in_a_row", "history")
"""What changes besides tensors, as JSON values."""

BatchLoss = Callable[[Tensor, slice, torch.Generator], Tensor]
"""Mean loss of ``index[share]``, where ``index`` of shape (B,) numbers the examples of a batch. What is drawn from the
generator must be drawn for the whole batch, so that all processes draw the same."""


class Training:
    """Everything that changes while a model is trained, and what one step does to it.

    With several processes, each computes the loss of its share of every batch, and the shares are added: the gradient
    is that of the whole batch in one process, but for rounding.

    Args:
        model: The model, which is changed in place.
        examples: Number of examples that batches are drawn from, with replacement.
        loss: Mean loss of a share of a batch.
        config: How to train.
        measure: The error on validation examples, smaller is better; it chooses the weights that are kept. The
            training loss is taken if not given.
        processes: Those that share the training and all hold the same examples; this one alone if not given.

    Attributes:
        step: Steps made.
        seconds: Time they and the validations took.
        history: One record for each validation: ``step``, ``seconds``, ``train`` (mean loss since the record before)
            and ``validation``.
        best: Smallest validation error so far.
        best_step: The step after which it was measured.
        skipped: Steps that changed nothing, because the loss or the gradient was not finite.
        in_a_row: How many of them came last.

    Raises:
        ValueError: If there are no examples, or more processes than examples in a batch.

    Example:
        >>> model, x = nn.Linear(1, 1), torch.linspace(-1, 1, 8).unsqueeze(1)
        >>> def loss(index, share, generator):
        ...     return (model(x[index[share]]) - 2 * x[index[share]]).square().mean()
        >>> training = Training(model, len(x), loss, config=TrainingConfig(steps=300, lr=0.1, warmup=0))
        >>> while not training.finished:
        ...     _ = training.advance()
        >>> round(model.weight.item(), 2)
        2.0
    """

    def __init__(
        self,
        model: nn.Module,
        examples: int,
        loss: BatchLoss,
        *,
        config: TrainingConfig,
        measure: Callable[[], float] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.processes = config, processes or Processes()
        if self.processes.size > config.batch_size:
            raise ValueError(
                f"there are {self.processes.size} processes for batches of {config.batch_size}; start at "
                "most as many processes, or raise batch_size"
            )
        if examples < 1:
            raise ValueError("there are no examples to train on, expected at least 1")
        self.model, self.examples_count = model, examples
        self._loss, self._measure = loss, measure
        self._order = torch.Generator().manual_seed(config.seed)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self._kept = copy.deepcopy(model.state_dict())
        self._recent: list[float] = []
        self.history: list[dict[str, float]] = []
        self.step = self.best_step = self.stale = self.skipped = self.in_a_row = 0
        self.best, self.seconds = math.inf, 0.0

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or the patience is at its end."""
        return self.step >= self.config.steps or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether so many validations in a row brought nothing better that the training ends."""
        return self.config.patience is not None and self.stale >= self.config.patience

    @property
    def validation_due(self) -> bool:
        """Whether the step made last is one after which the error is measured."""
        return self.step % self.config.validate_every == 0 or self.step == self.config.steps

    @property
    def postfix(self) -> dict[str, str]:
        """The last errors, for a progress bar."""
        if not self.history:
            return {}
        shown = {key: f"{self.history[-1][key]:.4f}" for key in ("train", "validation")}
        return {**shown, "skipped": str(self.skipped)} if self.skipped else shown

    def advance(self) -> dict[str, float]:
        """Make one step.

        Returns:
            ``step``, ``error`` (loss of its batch), ``gradient_norm`` before clipping, ``lr``, ``skipped`` (steps so
            far that changed nothing) and ``seconds`` so far.

        Raises:
            FloatingPointError: If the loss or the gradient was not finite in ``give_up_after`` steps in a row.
        """
        started = time.perf_counter()
        error, norm = self.gradient()
        usable = math.isfinite(error) and math.isfinite(norm)
        lr = self.config.learning_rate(self.step)
        if usable:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self._recent.append(error)
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
        self.step += 1
        self.seconds += time.perf_counter() - started
        if self.in_a_row >= self.config.give_up_after:
            raise FloatingPointError(self._why(error, norm))
        return {
            "step": self.step,
            "error": error,
            "gradient_norm": norm,
            "lr": lr,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
        }

    def gradient(self) -> tuple[float, float]:
        """Leave the clipped gradient of the next batch in the model; the loss, and the norm before clipping."""
        index = torch.randint(self.examples_count, (self.config.batch_size,), generator=self._order)
        share = slice(self.processes.rank, None, self.processes.size)
        loss = self._loss(index, share, self._order)
        self._optimizer.zero_grad()
        if self.processes.size == 1 and not torch.isfinite(loss):
            return loss.item(), math.nan
        loss.backward()
        error = self._add_up(loss, len(index[share]) / len(index))
        return error, float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_norm))

    def _add_up(self, loss: Tensor, share: float) -> float:
        """Make the gradients of all processes their weighted sum; the weighted sum of their losses."""
        if self.processes.size == 1:
            return loss.item()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)])
        flat = self.processes.sum(flat.mul(share).cpu()).to(flat.device)
        for gradient, total in zip(
            gradients, flat[1:].split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(total.view_as(gradient))
        return flat[0].item()

    def _why(self, error: float, norm: float) -> str:
        what = f"error is {error}" if not math.isfinite(error) else f"norm of the gradient is {norm}"
        count = f", as in {self.in_a_row} steps in a row" if self.in_a_row > 1 else ""
        return f"the {what} at step {self.step - 1}{count}; lower lr (now {self.config.lr})"

    def validate(self) -> dict[str, float]:
        """Measure the error on the validation examples, and keep the weights if it is the smallest; the record."""
        started = time.perf_counter()
        train = sum(self._recent) / len(self._recent) if self._recent else math.nan
        measured = train if self._measure is None else self._measure()
        self._recent = []
        if measured < self.best:
            self.best, self.best_step, self.stale = measured, self.step, 0
            self._kept = copy.deepcopy(self.model.state_dict())
        else:
            self.stale += 1
        self.seconds += time.perf_counter() - started
        record = {"step": float(self.step), "seconds": self.seconds, "train": train, "validation": measured}
        self.history.append(record)
        return record

    def keep_best(self) -> None:
        """Give the model the weights that were best on the validation examples."""
        self.model.load_state_dict(self._kept)

    def check_best(self) -> None:
        """Refuse a training without a finite validation error.

        Raises:
            FloatingPointError: If there is none.
        """
        if self.best == math.inf:
            raise FloatingPointError(
                f"the error is {self.history[-1]['validation']} after the last step; lower lr "
                f"(now {self.config.lr})"
            )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that decide how the training goes on: weights, best weights, optimizer, order of examples."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._kept.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
        recent = torch.tensor(self._recent, dtype=torch.float64)
        return {**tensors, "order": self._order.get_state(), "recent": recent}

    def counters(self) -> dict[str, Any]:
        """The rest of what changes, as JSON values."""
        return {name: getattr(self, name) for name in COUNTERS}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Go back to what :meth:`tensors` and :meth:`counters` gave.

        Raises:
            RuntimeError: If the tensors are those of another model.
            KeyError: If some are missing.
        """
        self.model.load_state_dict(below(tensors, "model/"))
        own = self.model.state_dict()
        self._kept = {name: tensor.to(own[name].device) for name, tensor in below(tensors, "best/").items()}
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in below(tensors, "optimizer/").items():
            index, key = name.split("/", 1)
            states.setdefault(int(index), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})
        self._order.set_state(tensors["order"])
        self._recent = tensors["recent"].tolist()
        for name in COUNTERS:
            setattr(self, name, counters[name])
        self.history = [dict(record) for record in counters["history"]]


def progress_bar(training: Training, description: str, *, disable: bool) -> tqdm:
    """A bar of the steps: how many, seconds for each, time to the end."""
    return tqdm(
        total=training.config.steps,
        initial=training.step,
        desc=description,
        unit="step",
        bar_format=BAR_FORMAT,
        disable=disable,
    )
