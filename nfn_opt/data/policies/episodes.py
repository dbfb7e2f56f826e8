"""Training episodes of many policies, in batched equations: those that have ended leave the batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nfn_opt.meta.families.control import Environment

__all__ = ["training_returns"]

LOOK = 5
"""Steps between two looks at which episodes have ended."""

SHRINK = 0.8
"""Policies that have ended leave when fewer than this share goes on."""


@torch.no_grad()
def training_returns(
    environment: Environment, params: Mapping[str, Tensor], states: Tensor, horizon: int
) -> Tensor:
    """Returns by the batched equations of :mod:`nfn_opt.meta.families.control`, to train with; not gymnasium's own.

    Most policies of an environment like CartPole-v1 fall at once, and a few go on to the horizon; so what goes on is
    packed anew now and then.

    Args:
        environment: The equations.
        params: Weights of N policies by the names of ``Policy``, shape (N, *shape).
        states: Initial states, shape (N, E, variables).
        horizon: Largest number of steps of an episode.

    Returns:
        Undiscounted returns, float32, shape (N, E).
    """
    # Networks come last: for such small ones products and sums over all of them are faster than products of matrices.
    layers = [
        (
            params[f"layers.{number}.weight"].permute(1, 2, 0).unsqueeze(2).contiguous(),
            params[f"layers.{number}.bias"].t().unsqueeze(1).contiguous(),
        )
        for number in range(len(params) // 2)
    ]
    state = tuple(states.permute(2, 1, 0).contiguous().unbind(0))
    total, alive = torch.zeros_like(state[0]), torch.ones_like(state[0])
    returns, places = total, torch.arange(total.shape[1])
    for step in range(horizon):
        action = environment.act(_outputs(layers, environment.observe(state)))
        state, reward, ended = environment.step(state, action)
        returns = torch.addcmul(returns, reward, alive)
        if ended is None:
            continue
        alive = alive * ~ended
        if step % LOOK == LOOK - 1:
            going = torch.nonzero(alive.any(0)).squeeze(1)
            if len(going) < SHRINK * len(places):
                total[:, places] = returns
                places, returns, alive = places[going], returns[:, going], alive[:, going]
                state = tuple(value[:, going] for value in state)
                layers = [(weight[..., going], bias[..., going]) for weight, bias in layers]
            if not len(going):
                break
    total[:, places] = returns
    return total.t()


def _outputs(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Outputs (outputs, E, N) of N policies for observations (observations, E, N)."""
    for depth, (weight, bias) in enumerate(layers):
        x = (weight * (x.tanh() if depth else x)).sum(1) + bias
    return x
