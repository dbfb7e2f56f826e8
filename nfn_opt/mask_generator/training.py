"""Training of mask generators on sets of tickets."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor

from nfn_opt.data.tickets.architecture import architecture_record
from nfn_opt.data.tickets.ticket_set import TicketSet
from nfn_opt.mask_generator.generator import MaskGenerator
from nfn_opt.training import TrainingConfig, TrainingResult, train

__all__ = ["evidence_bound", "train_mask_generator"]

PREFIX = "mask/"
"""Of the names of masks among the examples."""


def train_mask_generator(
    model: MaskGenerator,
    tickets: TicketSet,
    validation: TicketSet,
    *,
    config: TrainingConfig | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    command: str = "",
    progress: bool = False,
) -> TrainingResult:
    """Train a mask generator, in place; it ends with the weights of the best validation bound.

    Args:
        model: The model. Its base logits start from the frequencies of the masks.
        tickets: Networks at initialisation with their masks.
        validation: Others of the same architecture, for the choice of the weights that are kept.
        config: How to train.
        folder: Write checkpoints to this folder; see `nfn_opt.training.train`.
        resume: Go on with the training that the folder holds.
        command: How the training was started, for the record in the folder.
        progress: Show a progress bar.

    Returns:
        The course of the training; its score is the bound of `evidence_bound`.

    Raises:
        ValueError: If model and sets are of different architectures.
    """
    for name, some in (("tickets", tickets), ("validation", validation)):
        if some.architecture != model.architecture:
            raise ValueError(
                f"{name} is of {some.architecture}, expected {model.architecture}, as the model; make a model of the "
                "architecture of the set"
            )
    model.base.fit(tickets.masks)
    data = {**tickets.params, **{PREFIX + name: mask for name, mask in tickets.masks.items()}}

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        params = {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
        return model.loss(params, {name: batch[PREFIX + name] for name in model.names}, generator)

    record: dict[str, Any] = {
        "model": dataclasses.asdict(model.config),
        "architecture": architecture_record(model.architecture),
        "tickets": len(tickets),
    }
    return train(
        model,
        data,
        loss,
        config=config,
        score=lambda: evidence_bound(model, validation),
        folder=folder,
        resume=resume,
        record=record,
        command=command,
        progress=progress,
        description="training a mask generator",
    )


@torch.no_grad()
def evidence_bound(model: MaskGenerator, tickets: TicketSet, *, at_once: int = 8) -> float:
    """The evidence lower bound of masks, in nats for each weight, higher is better; one latent draw a network.

    Args:
        model: The model.
        tickets: Networks at initialisation with their masks.
        at_once: Networks in a batch.
    """
    generator, total = torch.Generator().manual_seed(0), 0.0
    for start in range(0, len(tickets), at_once):
        some = tickets[slice(start, start + at_once)]
        total -= model.loss(some.params, some.masks, generator).item() * len(some)
    return total / len(tickets)
