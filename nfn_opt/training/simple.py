"""Training on tensors that are all in memory, in one call, with or without a folder of checkpoints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.meta.logs import CsvLog
from nfn_opt.meta.run_folder import RunFolder
from nfn_opt.meta.stopping import StopRequest
from nfn_opt.training.config import TrainingConfig
from nfn_opt.training.loop import Training, progress_bar

__all__ = ["TrainingResult", "train"]

KIND = "training"
"""What a checkpoint says that it is."""

COLUMNS = ("step", "loss", "score", "seconds")

Tensors = Mapping[str, Tensor]
"""Examples: tensors with the same first axis."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What became of a training.

    Attributes:
        history: One record for each validation: ``step``, ``loss`` (mean since the record before), ``score`` (minus
            the loss, if there is no score) and ``seconds``.
        best_step: The step whose weights the model has now.
        best_score: Their score.
        steps: Steps made.
        seconds: Time they and the validations took.
        stopped_by: Number of the signal that stopped the training before its end, if one did.
    """

    history: list[dict[str, float]]
    best_step: int
    best_score: float
    steps: int
    seconds: float
    stopped_by: int | None = None


def train(
    model: nn.Module,
    data: Tensors,
    loss: Callable[[dict[str, Tensor], torch.Generator], Tensor],
    *,
    config: TrainingConfig | None = None,
    score: Callable[[], float] | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    record: Mapping[str, Any] | None = None,
    command: str = "",
    progress: bool = False,
    description: str = "training",
) -> TrainingResult:
    """Train a model, in place, and leave it with the weights of the best validation score.

    All that is drawn in a step, dropout included, depends on the seed and the number of the step alone: a training
    that is resumed goes on to the same bits, and PyTorch's own random state is left as it was.

    Args:
        model: The model; in training mode in steps, in evaluation mode in `score` and in the end.
        data: Examples, tensors of shape (N, ...): weights of networks under their names, targets, and so on.
        loss: Mean loss of a batch, given as tensors of shape (B, ...) under the names of `data`, and a generator to
            draw from.
        config: How to train.
        score: Score on validation examples, higher is better: accuracy, Kendall's tau, minus the error. Called
            without gradients. Minus the training loss if not given.
        folder: Write checkpoints (``checkpoint.safetensors``, at every validation), ``config.json`` and
            ``train.csv`` to this folder. Ctrl-C and termination signals then end the training after a checkpoint.
        resume: Go on with the training that the folder holds, or start it where there is no checkpoint yet.
        record: Further configuration that a resumed training must share, as JSON.
        command: How the training was started, for ``config.json``.
        progress: Show a progress bar.
        description: What it says.

    Returns:
        The course of the training.

    Raises:
        ValueError: If `data` has no tensors or they differ in their number of examples, or if `resume` is asked for
            without a folder or with another configuration than the folder's.
        FileExistsError: If the folder holds something already.
        ArtifactError: If the checkpoint is damaged.
        FloatingPointError: If the loss, its gradient or the score is not finite; the model keeps the best weights
            so far.

    Example:
        >>> model, x = nn.Linear(1, 1), torch.linspace(-1, 1, 16).unsqueeze(1)
        >>> def squared_error(batch, generator):
        ...     return (model(batch["x"]) - batch["y"]).square().mean()
        >>> config = TrainingConfig(steps=300, lr=0.1, warmup=0)
        >>> result = train(model, {"x": x, "y": 3 * x}, squared_error, config=config)
        >>> result.steps, round(model.weight.item(), 2)
        (300, 3.0)
    """
    config, data = config or TrainingConfig(), dict(data)
    if resume and folder is None:
        raise ValueError("resume is asked for without a folder; give the folder of the training")
    place = None if folder is None else _open(Path(folder), config, record or {}, command, resume)

    def batch_loss(index: Tensor, share: slice, _: torch.Generator) -> Tensor:
        rows = index[share]
        batch = {name: value[rows.to(value.device)] for name, value in data.items()}
        return loss(batch, torch.Generator().manual_seed(_step_seed(config.seed, training.step)))

    def measure() -> float:
        assert score is not None
        model.eval()
        with torch.no_grad():
            found = -float(score())
        model.train()
        return found

    training = Training(model, _examples(data), batch_loss, config=config, measure=score and measure)
    if place is not None and resume and place.checkpoint.exists():
        _restore(place, training)
    model.train()
    with StopRequest() if place else _Unstoppable() as stop:
        try:
            _loop(training, place, stop, progress, description)
        finally:
            training.keep_best()
            model.eval()
    if training.finished:
        training.check_best()
    return TrainingResult(
        [_row(one) for one in training.history],
        training.best_step,
        -training.best,
        training.step,
        training.seconds,
        None if training.finished else stop.signal,
    )


class _Unstoppable:
    """Catches no signal: without a folder there is nothing to go on from."""

    signal: int | None = None

    def __enter__(self) -> _Unstoppable:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _examples(data: Tensors) -> int:
    sizes = {name: len(value) for name, value in data.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the tensors of data have {sizes} examples, expected one number for all")
    return next(iter(sizes.values()))


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _open(
    folder: Path, config: TrainingConfig, record: Mapping[str, Any], command: str, resume: bool
) -> RunFolder:
    place = RunFolder(folder)
    whole = {**record, "training": dataclasses.asdict(config)}
    if resume and place.config.exists():
        place.reopen(whole)
    else:
        place.claim(whole, command)
    return place


def _row(one: Mapping[str, float]) -> dict[str, float]:
    return {
        "step": int(one["step"]),
        "loss": one["train"],
        "score": -one["validation"],
        "seconds": one["seconds"],
    }


def _loop(
    training: Training,
    place: RunFolder | None,
    stop: StopRequest | _Unstoppable,
    progress: bool,
    description: str,
) -> None:
    """Make steps to the end, or until a signal; log and save at validations."""
    log = CsvLog(place.train_log, COLUMNS, training.step or None) if place else None
    devices = sorted({p.device.index or 0 for p in training.model.parameters() if p.device.type == "cuda"})
    try:
        with (
            torch.random.fork_rng(devices=devices),
            progress_bar(training, description, disable=not progress) as bar,
        ):
            while not training.finished and stop.signal is None:
                torch.manual_seed(_step_seed(training.config.seed + 1, training.step))
                training.advance()
                bar.update()
                if training.validation_due:
                    row = _row(training.validate())
                    bar.set_postfix(loss=f"{row['loss']:.4f}", score=f"{row['score']:.4f}")
                    if log:
                        log.write(row)
                if place and (training.validation_due or stop.signal is not None):
                    _save(place, training)
    finally:
        if log:
            log.close()


def _save(place: RunFolder, training: Training) -> None:
    save_artifact(place.checkpoint, training.tensors(), kind=KIND, metadata={"progress": training.counters()})


def _restore(place: RunFolder, training: Training) -> None:
    try:
        tensors, metadata = load_artifact(place.checkpoint, kind=KIND)
        training.restore(tensors, metadata["progress"])
    except (ArtifactError, RuntimeError, KeyError) as error:
        raise ArtifactError(
            f"the checkpoint cannot be used: {error}; start anew in another folder"
        ) from error
