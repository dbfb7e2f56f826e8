"""Training editors: the rendered edited INR has to match the edited image."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from editors.editor import Editor
from editors.inr_set import InrSet
from editors.siren import coordinates, siren_apply

__all__ = ["TrainEditorConfig", "editing_error", "no_edit_error", "train_editor"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainEditorConfig:
    """How an editor is trained.

    Attributes:
        steps: Number of optimizer steps.
        batch_size: INRs a step.
        lr: Highest learning rate of AdamW; it warms up linearly and falls to zero as a cosine.
        warmup: Steps of the warm-up.
        weight_decay: Decoupled weight decay.
        max_norm: Gradients are clipped to this norm.
        validate_every: Steps between two measurements on the validation INRs.
        seed: Seed of the order of the INRs.
    """

    steps: int = 500
    batch_size: int = 32
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 1e-2
    max_norm: float = 1.0
    validate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}, expected a positive number")

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def _as_targets(inrs: InrSet, targets: Tensor) -> Tensor:
    """Edited images in [0, 1] as what an INR should predict: (B, P, C) in [-1, 1]."""
    expected = (len(inrs), *inrs.image_size, inrs.config.out_channels)
    if tuple(targets.shape) != expected:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, expected {expected}: the edited image of every INR, "
            "(B, H, W, C) with values in [0, 1]"
        )
    return (2 * targets - 1).flatten(1, 2)


def _rendering_error(inrs: InrSet, params: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Mean squared error of rendered INRs, not clamped: a scalar, image values in [-1, 1]."""
    coords = coordinates(*inrs.image_size, device=targets.device, dtype=targets.dtype)
    return (siren_apply(params, coords, inrs.config) - targets).square().mean()


@torch.no_grad()
def no_edit_error(inrs: InrSet, targets: Tensor) -> float:
    """Error of leaving the INRs as they are; see :func:`editing_error`."""
    return float(_rendering_error(inrs, inrs.params, _as_targets(inrs, targets)))


def editing_error(editor: Editor, inrs: InrSet, targets: Tensor, strength: float = 1.0) -> float:
    """Mean squared error between rendered edited INRs and edited images.

    Args:
        editor: The editor.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C).
        strength: Strength of the edit.

    Returns:
        The error with image values in [-1, 1], as the NFN and NFT papers give it: 4 times that of [0, 1].
    """
    return no_edit_error(editor(inrs, strength), targets)


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

    Args:
        editor: The editor; its statistics are taken from `inrs`.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C).
        config: How to train.
        validation: Further INRs and their edited images, for choosing the weights that are kept.
        progress: Show a progress bar.

    Returns:
        One record for each validation: ``step``, ``seconds``, ``train`` (mean error since the record before) and
        ``validation``, errors with image values in [-1, 1].

    Raises:
        ValueError: If the images do not fit the INRs, or the INRs do not fit the editor.
        FloatingPointError: If the error becomes NaN or infinite; the editor keeps the best weights so far.
    """
    config = config or TrainEditorConfig()
    wanted = _as_targets(inrs, targets)
    if validation:
        _as_targets(*validation)
        editor.check(validation[0])
    editor.standardize(inrs)
    order = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(editor.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    history: list[dict[str, float]] = []
    best, kept = math.inf, copy.deepcopy(editor.state_dict())
    recent: list[float] = []
    started = time.perf_counter()
    with tqdm(
        total=config.steps, desc=f"training {editor.config.edit}", unit="step", disable=not progress
    ) as bar:
        for step in range(config.steps):
            index = torch.randint(len(inrs), (config.batch_size,), generator=order).to(wanted.device)
            params = {name: value[index] for name, value in inrs.params.items()}
            loss = _rendering_error(inrs, editor.edit_params(params), wanted[index])
            if not torch.isfinite(loss):
                editor.load_state_dict(kept)
                raise FloatingPointError(
                    f"the error is {loss.item()} at step {step}; lower lr (now {config.lr})"
                )
            _apply_gradient(editor, optimizer, loss, config, step)
            recent.append(loss.item())
            bar.update()
            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                record = {"step": float(step + 1), "seconds": time.perf_counter() - started}
                record["train"] = sum(recent) / len(recent)
                record["validation"] = editing_error(editor, *validation) if validation else record["train"]
                history.append(record)
                recent = []
                bar.set_postfix(train=f"{record['train']:.4f}", validation=f"{record['validation']:.4f}")
                if record["validation"] < best:
                    best, kept = record["validation"], copy.deepcopy(editor.state_dict())
    editor.load_state_dict(kept)
    if best == math.inf:
        raise FloatingPointError(
            f"the error is {history[-1]['validation']} after the last step; lower lr (now {config.lr})"
        )
    return history


def _apply_gradient(
    editor: Editor, optimizer: torch.optim.Optimizer, loss: Tensor, config: TrainEditorConfig, step: int
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate(step)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(editor.parameters(), config.max_norm)
    optimizer.step()
