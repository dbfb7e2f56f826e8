"""Training editors: the rendered edited INR has to match the edited image."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from editors.editor import Editor
from editors.errors import editing_error, no_edit_error, squared_errors
from editors.inr_set import InrSet
from editors.training_config import TrainEditorConfig
from editors.training_targets import Examples, training_targets
from nfn_opt.meta.outer import below
from nfn_opt.meta.processes import Processes

__all__ = [
    "EditorTraining",
    "TrainEditorConfig",
    "editing_error",
    "no_edit_error",
    "progress_bar",
    "train_editor",
]

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"

COUNTERS = ("step", "seconds", "best", "best_step", "stale", "skipped", "in_a_row", "history")
"""What changes besides tensors, as JSON values."""


def train_editor(
    editor: Editor,
    inrs: InrSet,
    targets: Tensor,
    *,
    config: TrainEditorConfig | None = None,
    validation: tuple[InrSet, Tensor] | None = None,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Train an editor, in place, and leave it with the weights that were best on the validation INRs.

    For a run with checkpoints in a folder see :func:`editors.training_runs.run_training`.

    Args:
        editor: The editor; its statistics are taken from `inrs`.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C). For an editor of several edits the images
            before the edit: every step draws edits and makes its targets from these.
        config: How to train.
        validation: Further INRs and their images, likewise, for choosing the weights that are kept.
        progress: Show a progress bar.

    Returns:
        One record for each validation: ``step``, ``seconds``, ``train`` (mean error since the record before) and
        ``validation``, errors with image values in [-1, 1].

    Raises:
        ValueError: If the images do not fit the INRs, or the INRs do not fit the editor.
        FloatingPointError: If the error is NaN or infinite in ``config.give_up_after`` steps in a row; the editor
            keeps the best weights so far.
    """
    training = EditorTraining(editor, inrs, targets, config=config, validation=validation)
    try:
        with progress_bar(training, disable=not progress) as bar:
            while not training.finished:
                training.advance()
                bar.update()
                if training.validation_due:
                    training.validate()
                    bar.set_postfix(training.postfix)
    except FloatingPointError:
        training.keep_best()
        raise
    training.keep_best()
    training.check_best()
    return training.history


def progress_bar(training: EditorTraining, *, disable: bool) -> tqdm:
    """A bar of the steps: how many, seconds for each, time to the end."""
    return tqdm(
        total=training.config.steps,
        initial=training.step,
        desc=f"training {training.editor.config.edit}",
        unit="step",
        bar_format=BAR_FORMAT,
        disable=disable,
    )


class EditorTraining:
    """Everything that changes while an editor is trained, and what one step does to it.

    With several processes, each computes the error of its share of every batch and of the validation INRs, and the
    shares are added: the gradient is that of the whole batch in one process, but for rounding.

    Args:
        editor: The editor, which is changed in place; its statistics are taken from `inrs`.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C). For an editor of several edits the images
            before the edit: every step draws edits and makes its targets from these.
        config: How to train.
        validation: Further INRs and their images, likewise, for choosing the weights that are kept.
        processes: Those that share the training and all hold the same INRs; this one alone if not given.

    Attributes:
        step: Steps made.
        seconds: Time they and the validations took.
        history: One record for each validation, see :func:`train_editor`.
        examples: The validation INRs with their edited images, for a family with each of its edits.
        best: Smallest validation error so far.
        best_step: The step after which it was measured.
        skipped: Steps that changed nothing, because the error or the gradient was not finite.
        in_a_row: How many of them came last.

    Raises:
        ValueError: If the images do not fit the INRs, the INRs do not fit the editor, or there are more processes
            than INRs in a batch.

    Example:
        >>> from editors import EditorConfig, fit
        >>> images = torch.rand(4, 6, 6, 1, generator=torch.Generator().manual_seed(0))
        >>> inrs = fit(images, steps=5)
        >>> editor = Editor(EditorConfig(siren=inrs.config, edit="invert", image_size=(6, 6)))
        >>> training = EditorTraining(editor, inrs, 1 - images, config=TrainEditorConfig(batch_size=2))
        >>> training.advance()["step"], training.finished
        (1, False)
    """

    def __init__(
        self,
        editor: Editor,
        inrs: InrSet,
        targets: Tensor,
        *,
        config: TrainEditorConfig | None = None,
        validation: tuple[InrSet, Tensor] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.processes = config or TrainEditorConfig(), processes or Processes()
        if self.processes.size > self.config.batch_size:
            raise ValueError(
                f"there are {self.processes.size} processes for batches of {self.config.batch_size} INRs; start at "
                "most as many processes, or raise batch_size"
            )
        self.editor, self._inrs, self._targets = editor, inrs, training_targets(editor, inrs, targets)
        self.examples: Examples | None = None
        if validation:
            editor.check(validation[0])
            self.examples = Examples.of(editor.family, *validation)
        editor.standardize(inrs)
        self._order = torch.Generator().manual_seed(self.config.seed)
        self._optimizer = torch.optim.AdamW(
            editor.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self._kept = copy.deepcopy(editor.state_dict())
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
            ``step``, ``error`` of its batch, ``gradient_norm`` before clipping, ``lr``, ``skipped`` (steps so far
            that changed nothing) and ``seconds`` so far.

        Raises:
            FloatingPointError: If the error or the gradient was not finite in ``give_up_after`` steps in a row.
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
        """Leave the clipped gradient of the next batch in the editor; the error, and the norm before clipping."""
        index = torch.randint(len(self._inrs), (self.config.batch_size,), generator=self._order)
        share = slice(self.processes.rank, None, self.processes.size)
        targets, condition = self._targets.batch(index, share, self._order)
        mine = index[share].to(targets.device)
        params = {name: value[mine] for name, value in self._inrs.params.items()}
        edited = self.editor.edit_params(params, condition=condition)
        loss = squared_errors(self._inrs, edited, targets).mean()
        self._optimizer.zero_grad()
        if self.processes.size == 1 and not torch.isfinite(loss):
            return loss.item(), math.nan
        loss.backward()
        error = self._add_up(loss, len(mine) / len(index))
        return error, float(torch.nn.utils.clip_grad_norm_(self.editor.parameters(), self.config.max_norm))

    def _add_up(self, loss: Tensor, share: float) -> float:
        """Make the gradients of all processes their weighted sum; the weighted sum of their losses."""
        if self.processes.size == 1:
            return loss.item()
        gradients = [p.grad for p in self.editor.parameters() if p.grad is not None]
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
        """Measure the error on the validation INRs, and keep the weights if it is the smallest; the record."""
        started = time.perf_counter()
        train = sum(self._recent) / len(self._recent) if self._recent else math.nan
        measured = train if self.examples is None else self._validation_error(self.examples)
        self._recent = []
        if measured < self.best:
            self.best, self.best_step, self.stale = measured, self.step, 0
            self._kept = copy.deepcopy(self.editor.state_dict())
        else:
            self.stale += 1
        self.seconds += time.perf_counter() - started
        record = {"step": float(self.step), "seconds": self.seconds, "train": train, "validation": measured}
        self.history.append(record)
        return record

    def _validation_error(self, examples: Examples) -> float:
        mine = examples[self.processes.rank :: self.processes.size]
        part = (mine.inrs, mine.targets, 1.0, mine.edits)
        if self.processes.size == 1:
            return editing_error(self.editor, *part)
        error = len(mine) / len(examples) * editing_error(self.editor, *part) if len(mine) else 0.0
        return self.processes.sum(torch.tensor(error, dtype=torch.float64)).item()

    def keep_best(self) -> None:
        """Give the editor the weights that were best on the validation INRs."""
        self.editor.load_state_dict(self._kept)

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
        """All tensors that decide how the training goes on: weights, best weights, optimizer, order of the INRs."""
        tensors = {f"editor/{name}": tensor for name, tensor in self.editor.state_dict().items()}
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
            RuntimeError: If the tensors are those of another editor.
            KeyError: If some are missing.
        """
        self.editor.load_state_dict(below(tensors, "editor/"))
        device = self.editor.mean.device
        self._kept = {name: tensor.to(device) for name, tensor in below(tensors, "best/").items()}
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
