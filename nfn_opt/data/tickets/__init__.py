"""Winning tickets (arXiv:1803.03635) as data: initial weights, and masks that pruning found for them.

Example:
    >>> PruningOptions(sparsity=0.95, rounds=1)
    PruningOptions(sparsity=0.95, rounds=1, scope='global')
"""

from nfn_opt.data.tickets.architecture import (
    Architecture,
    MlpArchitecture,
    SmallMlp,
    initial_parameters,
    make_module,
    prunable,
)
from nfn_opt.data.tickets.building import build_tickets
from nfn_opt.data.tickets.masks import (
    Masks,
    apply_masks,
    kept_share,
    magnitude_masks,
    overlap,
    random_masks,
    random_masks_like,
    top_masks,
)
from nfn_opt.data.tickets.pruning import (
    PruningOptions,
    TrainOptions,
    accuracy,
    find_tickets,
    ticket_data,
    train_masked,
)
from nfn_opt.data.tickets.ticket_set import TicketSet

__all__ = [
    # networks
    "Architecture",
    "MlpArchitecture",
    "SmallMlp",
    "initial_parameters",
    "make_module",
    # masks
    "Masks",
    "apply_masks",
    "kept_share",
    "magnitude_masks",
    "overlap",
    "prunable",
    "random_masks",
    "random_masks_like",
    "top_masks",
    # pruning
    "PruningOptions",
    "TicketSet",
    "TrainOptions",
    "build_tickets",
    "find_tickets",
    "accuracy",
    "ticket_data",
    "train_masked",
]
