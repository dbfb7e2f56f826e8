"""Training many inner networks at once with an update rule, differentiably where asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nfn_opt.meta.stepper import InnerStep
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.optim.rule import State, UpdateRule


class Unrolled(NamedTuple):
    """Where an unroll ended and how it went there.

    Attributes:
        params: Parameters after the last update, ``{name: (n, *shape)}``.
        state: State of the rule after the last update, leaves with a leading axis ``n``.
        losses: Minibatch loss *before* each update, shape (steps, n).
    """

    params: Params
    state: State
    losses: Tensor


def init_state(rule: UpdateRule, task: Task, params: Mapping[str, Tensor]) -> State:
    """The state of the rule for ``n`` networks that start from ``params``; leaves start with axis n."""
    return torch.func.vmap(lambda one: rule.init(task.space, one))(dict(params))


def unroll(
    rule: UpdateRule,
    task: Task,
    params: Mapping[str, Tensor],
    state: State,
    *,
    steps: int,
    start_step: int | Tensor,
    generator: torch.Generator,
    differentiable: bool = False,
    second_order: bool = False,
    scale: Mapping[str, Tensor] | None = None,
    shift: Mapping[str, Tensor] | None = None,
    theta: Mapping[str, Tensor] | None = None,
    total_steps: int | Tensor | None = None,
    inner: InnerStep | None = None,
) -> Unrolled:
    r"""Make ``steps`` updates of ``n`` independent networks.

    .. math:: p_{t+1} = p_t + u_\theta(p_t, g_t, s_t), \qquad g_t = \partial \ell_t / \partial p_t

    with a fresh minibatch for each network and step.

    Args:
        rule: The update rule.
        task: Draws the minibatches and gives the loss.
        params: Parameters to start from, ``{name: (n, *shape)}``.
        state: State to start from, as from :func:`init_state`.
        steps: Number of updates.
        start_step: Number of updates made before: one for all networks, or shape (n,).
        generator: Source of the minibatches.
        differentiable: Keep the graph from the losses, parameters and state to the parameters of the rule.
        second_order: If differentiable, also differentiate the inner gradients :math:`g_t` with respect to
            the inner parameters, which gives the exact gradient of the losses. Otherwise :math:`g_t` is held
            constant: the Hessian of the inner loss is left out, which saves time and memory.
        scale: Reparametrisation: the networks are evaluated at ``scale[name] * params[name]``, broadcast.
        shift: What is added to that, broadcast.
        theta: Outer parameters of each network, ``{parameter name of the rule: (n, *shape)}``; without, all
            networks are trained with the parameters of the rule.
        total_steps: Length of the whole training, for rules that ask for it: one for all, or shape (n,).
        inner: A step of this rule and kind of gradient to make the updates with, which keeps its kernels from
            one unroll to the next if it is compiled; without, an eager step.

    Raises:
        ValueError: If ``second_order`` is asked for without ``differentiable``, ``steps`` is not positive, or
            ``inner`` is for another rule or kind of gradient.
    """
    if second_order and not differentiable:
        raise ValueError(
            "second_order=True needs differentiable=True: without a graph there is no meta-gradient"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    params, n = dict(params), len(next(iter(params.values())))
    device = next(iter(params.values())).device
    start = torch.as_tensor(start_step, device=device).expand(n)
    total = None if total_steps is None else torch.as_tensor(total_steps, device=device).expand(n)
    if inner is None:
        inner = InnerStep(rule, task, differentiable=differentiable, second_order=second_order)
    inner.check(rule, differentiable=differentiable, second_order=second_order)
    history = []
    with torch.set_grad_enabled(differentiable):
        for t in range(steps):
            batch = task.batch(generator, n)
            params, state, losses = inner(
                params, state, batch, step=start + t, total_steps=total, theta=theta, scale=scale, shift=shift
            )
            history.append(losses)
    return Unrolled(params, state, torch.stack(history))
