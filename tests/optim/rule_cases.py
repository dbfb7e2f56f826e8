"""The rules that every test of the contract runs on: a rule joins by one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.optim import MLPConfig, MLPRule, State, UpdateRule, make_rule
from nfn_opt.weight_space import WeightSpace

FEW = ("gradient", "parameter", "momentum", "scaled_momentum")


def seeded(seed: int) -> torch.Generator:
    """Untrained, a network of its own goes up or down by chance; with the seeds below, down."""
    return torch.Generator().manual_seed(seed)


RULES: dict[str, Callable[[], UpdateRule]] = {
    "sgd": lambda: make_rule("sgd", lr=0.05),
    "sgd momentum": lambda: make_rule("sgd", lr=0.05, momentum=0.9),
    "adam": lambda: make_rule("adam"),
    "mlp": lambda: make_rule("mlp"),
    "mlp, few features": lambda: make_rule("mlp", features=FEW, hidden=(4,), by_kind=False, schedule=False),
    "mlp, other order": lambda: make_rule("mlp", features=("row", "factored_momentum", "gradient")),
    "mlp, normalised": lambda: make_rule("mlp", normalise_output=True, use_time=False),
    "nfn": lambda: make_rule("nfn"),
    "nfn, one layer": lambda: make_rule("nfn", hidden=(4,), channels=3, features=FEW),
    "spectral": lambda: make_rule("spectral"),
    "spectral, neighbours": lambda: make_rule("spectral", neighbours=True, control=5),
    "spectral, linear": lambda: make_rule(
        "spectral", hidden=(), features=("gradient", "momentum"), momentum_decays=(0.9,)
    ),
    "celo2 base": lambda: MLPRule(MLPConfig.celo2_base()),
    "celo2": lambda: MLPRule(MLPConfig.celo2()),
    "small_fc": lambda: make_rule("small_fc", generator=seeded(46)),
    "small_fc, fixed decays": lambda: make_rule(
        "small_fc", learn_decays=False, features=FEW, hidden=(5,), generator=seeded(10)
    ),
    "unf": lambda: make_rule("unf", sharing="by_relation", hidden=(6, 5), correction=0.02),
    "unf, deep sets": lambda: make_rule("unf", last="deep_sets", hidden=(6,), correction=0.02),
    "unf, pointwise": lambda: make_rule("unf", last="pointwise", use_time=False, correction=0.02),
    "relational": lambda: make_rule("relational", neighbour_scale=0.5),
    "relational, alone": lambda: make_rule("relational", neighbours=False),
    "celo2, flat": lambda: MLPRule(dataclasses.replace(MLPConfig.celo2(), orthogonal="flat")),
}

SHAPES = {
    "w": (4, 3),
    "b": (4,),
    "conv": (3, 4, 2, 2),
    "square": (3, 3),
    "scalar": (),
    "thin": (1, 5),
    "tokens": (2, 3, 4),
}


def draw(generator: torch.Generator, *batch: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random tensors of :data:`SHAPES`."""
    return {
        name: torch.randn((*batch, *shape), generator=generator, dtype=dtype)
        for name, shape in SHAPES.items()
    }


def run(
    rule: UpdateRule,
    space: WeightSpace,
    params: dict[str, Tensor],
    gradients: Sequence[dict[str, Tensor]],
    state: State | None = None,
    start: int = 0,
) -> tuple[dict[str, Tensor], State]:
    """Parameters and state after one update for each gradient."""
    state = rule.init(space, params) if state is None else state
    for t, grads in enumerate(gradients):
        options = {"loss": torch.tensor(1.0, dtype=torch.float64), "total_steps": torch.tensor(100)}
        updates, state = rule.update(
            params, grads, state, space=space, step=torch.tensor(start + t), **options
        )
        params = {name: params[name] + updates[name] for name in params}
    return params, state


def leaves(tree: Any) -> list[Tensor]:
    """All tensors of a state."""
    found: list[Tensor] = torch.utils._pytree.tree_leaves(tree)
    assert all(isinstance(leaf, Tensor) for leaf in found)
    return found
