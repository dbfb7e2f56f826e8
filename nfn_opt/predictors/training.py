"""Training of predictors, on networks of one architecture or of many."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.predictors.augmentation import permute_each
from nfn_opt.predictors.group import NetworkGroup
from nfn_opt.predictors.predictor import Predictor
from nfn_opt.predictors.scores import kendall_tau
from nfn_opt.training import TrainingConfig, TrainingResult, train

__all__ = ["SCORE_NAMES", "prediction_score", "predictions", "train_on_groups", "train_predictor"]

SCORE_NAMES = {
    "score": "Kendall's tau",
    "class": "accuracy",
    "value": "minus the error in standard deviations",
}
"""What chooses the best weights, by the target."""

GROUPS_A_STEP = 4
"""Architectures in a batch, where there are several."""


def train_predictor(
    predictor: Predictor,
    params: Mapping[str, Tensor],
    targets: Tensor,
    val_params: Mapping[str, Tensor],
    val_targets: Tensor,
    *,
    inputs: Tensor | None = None,
    val_inputs: Tensor | None = None,
    config: TrainingConfig | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    record: Mapping[str, Any] | None = None,
    command: str = "",
    progress: bool = False,
) -> TrainingResult:
    """Train a predictor, in place, on networks of its own weight space.

    It ends with the weights that were best on the validation networks: of the largest Kendall's tau (scores, mean
    over the outputs), accuracy (classes) or minus the error (values).

    Args:
        predictor: The predictor; if it has not been fitted before (:meth:`Predictor.fit`), it is fitted to the
            training networks first.
        params: Weights of the training networks, ``{name: (N, *shape)}``.
        targets: What to predict of them, shape (N,) or (N, outputs).
        val_params: Weights of the validation networks.
        val_targets: What to predict of them.
        inputs: The further numbers of ``config.inputs``, shape (N, I).
        val_inputs: Those of the validation networks.
        config: How to train.
        folder: See :func:`nfn_opt.training.train`; and so for the arguments after it.
        resume: See there.
        record: See there; the predictor's configuration is added.
        command: See there.
        progress: See there.

    Raises:
        ValueError: If networks, targets or inputs do not fit; and as :func:`nfn_opt.training.train`.

    Example:
        >>> from nfn_opt.predictors import PredictorConfig
        >>> from nfn_opt.weight_space import WeightSpace
        >>> space = WeightSpace.independent({"w": torch.zeros(5)})
        >>> w = torch.linspace(-1, 1, 64).unsqueeze(1) * torch.ones(5)
        >>> predictor = Predictor(space, PredictorConfig(kind="statnn", target="value", embedding=16, head_width=16))
        >>> config = TrainingConfig(steps=100, warmup=0, validate_every=50)
        >>> result = train_predictor(predictor, {"w": w}, w[:, 0], {"w": w}, w[:, 0], config=config)
        >>> bool((predictor.predict({"w": w})[:, 0] - w[:, 0]).abs().mean() < 0.2)
        True
    """
    group = NetworkGroup(params, targets, inputs)
    val_group = NetworkGroup(val_params, val_targets, val_inputs)
    if predictor.range is None:
        predictor.fit([group])

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        weights = {name: batch[f"params/{name}"] for name in params}
        return _loss(predictor, NetworkGroup(weights, batch["targets"], batch.get("inputs")), generator)

    data = {f"params/{name}": value for name, value in params.items()} | {"targets": targets}
    data |= {} if inputs is None else {"inputs": inputs}
    return _train(predictor, data, loss, [val_group], config, folder, resume, record, command, progress)


def train_on_groups(
    predictor: Predictor,
    groups: Sequence[NetworkGroup],
    val_groups: Sequence[NetworkGroup],
    *,
    config: TrainingConfig | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    record: Mapping[str, Any] | None = None,
    command: str = "",
    progress: bool = False,
) -> TrainingResult:
    """Train a predictor of kind ``"relation"``, in place, on networks of several architectures.

    A batch has networks of some architectures (four, or fewer in small batches), each drawn as often as it has
    networks; those of one architecture are read at once.

    Args:
        predictor: The predictor.
        groups: Training networks, those of one architecture in a group.
        val_groups: Validation networks, likewise.
        config: How to train.
        folder: See :func:`nfn_opt.training.train`; and so for the arguments after it.
        resume: See there.
        record: See there; the predictor's configuration is added.
        command: See there.
        progress: See there.

    Raises:
        ValueError: If there are several architectures for a predictor of one; and as :func:`train_predictor`.
    """
    if not predictor.shared and len(groups) > 1:
        raise ValueError(
            f"there are {len(groups)} architectures for a predictor of kind {predictor.config.kind!r}, expected one; "
            "take kind='relation' for several"
        )
    config = config or TrainingConfig()
    if predictor.range is None:
        predictor.fit(groups)
    together = min(GROUPS_A_STEP, config.batch_size, len(groups))
    each = config.batch_size // together

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        losses = []
        for number in batch["group"].tolist():
            index = torch.randint(len(groups[number]), (each,), generator=generator)
            losses.append(_loss(predictor, groups[number][index], generator))
        return torch.stack(losses).mean()

    # One example for each network, which stands for its group.
    owners = torch.cat([torch.full((len(group),), number) for number, group in enumerate(groups)])
    drawn = dataclasses.replace(config, batch_size=together)
    return _train(
        predictor, {"group": owners}, loss, val_groups, drawn, folder, resume, record, command, progress
    )


def _loss(predictor: Predictor, group: NetworkGroup, generator: torch.Generator) -> Tensor:
    params = group.params
    if predictor.config.kind == "mlp-augmented":
        params = permute_each(params, predictor.space, generator)
    device = predictor.target_mean.device
    params = {name: value.to(device) for name, value in params.items()}
    return predictor.loss(predictor(params, group.inputs, group.space), group.targets.to(device))


def _train(
    predictor: Predictor,
    data: dict[str, Tensor],
    loss: Any,
    val_groups: Sequence[NetworkGroup],
    config: TrainingConfig | None,
    folder: str | os.PathLike[str] | None,
    resume: bool,
    record: Mapping[str, Any] | None,
    command: str,
    progress: bool,
) -> TrainingResult:
    whole = {**(record or {}), "predictor": dataclasses.asdict(predictor.config)}
    return train(
        predictor,
        data,
        loss,
        config=config,
        score=lambda: prediction_score(predictor, val_groups),
        folder=folder,
        resume=resume,
        record=whole,
        command=command,
        progress=progress,
        description=f"predictor ({predictor.config.kind})",
    )


def predictions(predictor: Predictor, groups: Sequence[NetworkGroup]) -> tuple[Tensor, Tensor]:
    """Predictions and targets of all networks, group after group, on the CPU.

    Returns:
        Two tensors of shape (N, outputs); (N,) for classes.
    """
    found = [predictor.predict(group.params, group.inputs, group.space).cpu() for group in groups]
    predicted = torch.cat(found)
    targets = torch.cat([group.targets for group in groups])
    return predicted, targets if predictor.config.target == "class" else targets.reshape(predicted.shape)


def prediction_score(predictor: Predictor, groups: Sequence[NetworkGroup]) -> float:
    """How good a predictor is; higher is better, and :data:`SCORE_NAMES` says what it is."""
    predicted, targets = predictions(predictor, groups)
    if predictor.config.target == "class":
        return (predicted == targets).double().mean().item()
    if predictor.config.target == "score":
        columns = zip(predicted.unbind(1), targets.unbind(1), strict=True)
        return sum(kendall_tau(*pair) for pair in columns) / predicted.shape[1]
    errors = (predicted - targets) / predictor.target_std.cpu()
    return -errors.square().mean().sqrt().item()
