"""Training many inner networks at once with an update rule, differentiably where asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

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

    Raises:
        ValueError: If ``second_order`` is asked for without ``differentiable``, or ``steps`` is not positive.
    """
    if second_order and not differentiable:
        raise ValueError(
            "second_order=True needs differentiable=True: without a graph there is no meta-gradient"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    params, n = dict(params), len(next(iter(params.values())))
    step = torch.as_tensor(start_step, device=next(iter(params.values())).device).expand(n)
    history = []
    with torch.set_grad_enabled(differentiable):
        for t in range(steps):
            batch = task.batch(generator, n)
            losses, grads = losses_and_grads(
                task, params, batch, differentiable=differentiable, second_order=second_order, scale=scale
            )
            feature = losses if second_order else losses.detach()
            params, state = _update(rule, task, params, grads, state, step + t, feature)
            history.append(losses)
    return Unrolled(params, state, torch.stack(history))


def losses_and_grads(
    task: Task,
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    differentiable: bool = False,
    second_order: bool = False,
    scale: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Params]:
    """Losses (n,) of ``n`` networks and their gradients ``{name: (n, *shape)}``.

    The networks do not interact, so the gradient of the sum of their losses holds the gradient of each; this
    needs no ``vmap`` around the gradient and one backward pass.

    Args:
        task: Gives the losses.
        params: Parameters, ``{name: (n, *shape)}``.
        batch: One minibatch for each network.
        differentiable: Whether the losses can be differentiated with respect to ``params``.
        second_order: Whether the gradients can, too.
        scale: As for :func:`unroll`.
    """
    with torch.enable_grad():
        leaves = {
            name: p if second_order and p.requires_grad else p.detach().requires_grad_()
            for name, p in params.items()
        }
        points = leaves if scale is None else {name: p * scale[name] for name, p in leaves.items()}
        losses = task.losses(points, batch)
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=second_order)
    if not second_order:
        losses = losses.detach()
    if differentiable and not second_order:
        losses = _KnownGradient.apply(losses, len(grads), *params.values(), *grads)
    return losses, dict(zip(leaves, grads, strict=True))


def _update(
    rule: UpdateRule, task: Task, params: Params, grads: Params, state: State, step: Tensor, losses: Tensor
) -> tuple[Params, State]:
    def update_one(p: Params, g: Params, s: State, t: Tensor, loss: Tensor) -> tuple[Params, State]:
        return rule.update(p, g, s, space=task.space, step=t, loss=loss)

    updates, state = torch.func.vmap(update_one)(params, grads, state, step, losses)
    return {name: p + updates[name] for name, p in params.items()}, state


class _KnownGradient(torch.autograd.Function):
    """Losses (n,) whose gradients with respect to the parameters are already known.

    The inner gradient was just computed for the update; the backward pass of the unroll uses it again instead
    of going through the network a second time.
    """

    @staticmethod
    def forward(ctx: Any, losses: Tensor, count: int, *params_and_grads: Tensor) -> Tensor:
        ctx.save_for_backward(*params_and_grads[count:])
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.saved_tensors
        flow = (grad.reshape(-1, *(1,) * (g.dim() - 1)) * g for g in known)
        return (None, None, *flow, *(None for _ in known))
