"""One update of many inner networks: losses, gradients and the rule, eagerly or compiled into one kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nfn_opt.meta.kernels import Kernel, kernel
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.optim.rule import State, UpdateRule

Stepped = tuple[Params, State, Tensor]


class InnerStep:
    r"""One update of ``n`` independent networks.

    .. math:: p_{t+1} = p_t + u_\theta(p_t, g_t, s_t), \qquad g_t = \partial \ell_t / \partial p_t

    Compiled, gradients and rule become one flat graph of tensor operations, which
    :func:`torch.compile` turns into fused kernels: several times faster on small networks, where the time goes
    into dispatch. The graph is made at the first call, in some tens of seconds, and kept for this object. If
    the step is differentiable there are kernels for its backward pass, too.

    Args:
        rule: The update rule. Its parameters are read at every call.
        task: Gives the losses.
        compiled: Whether to compile. A task that is not traceable computes its gradients eagerly, and only
            the rule is compiled.
        differentiable: As for :func:`nfn_opt.meta.unroll`.
        second_order: As for :func:`nfn_opt.meta.unroll`.
        backend: Of :func:`torch.compile`.
    """

    def __init__(
        self,
        rule: UpdateRule,
        task: Task,
        *,
        compiled: bool = False,
        differentiable: bool = False,
        second_order: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.rule, self.task, self.compiled, self.backend = rule, task, compiled, backend
        self._options = {"differentiable": differentiable, "second_order": second_order}
        self._kernels: dict[Any, Kernel] = {}

    def __call__(
        self,
        params: Mapping[str, Tensor],
        state: State,
        batch: Any,
        *,
        step: Tensor,
        total_steps: Tensor | None = None,
        theta: Mapping[str, Tensor] | None = None,
        scale: Mapping[str, Tensor] | None = None,
        shift: Mapping[str, Tensor] | None = None,
    ) -> Stepped:
        """Make the update.

        Args:
            params: Parameters, ``{name: (n, *shape)}``.
            state: State of the rule, leaves with a leading axis ``n``.
            batch: A minibatch for each network, from the task.
            step: Number of updates made before by each, int64, shape (n,).
            total_steps: Length of the training of each, int64, shape (n,), where known.
            theta: Outer parameters for each network, ``{name: (n, *shape)}``; those of the rule if ``None``.
            scale: Reparametrisation, as for :func:`nfn_opt.meta.unroll`.
            shift: What is added after it, likewise.

        Returns:
            New parameters, new state, and the losses (n,) before the update.
        """
        shared = theta is None
        values: Params = dict(self.rule.named_parameters() if theta is None else theta)
        if not self.compiled:
            return self._eager(shared, values, dict(params), state, batch, step, total_steps, scale, shift)
        arguments = (values, dict(params), state, batch, step, total_steps, scale, shift)
        if self.task.traceable:
            return self._run(self._whole, shared, arguments)
        losses, grads = losses_and_grads(self.task, params, batch, scale=scale, shift=shift, **self._options)
        feature = losses if self._options["second_order"] else losses.detach()
        found = (values, dict(params), grads, state, feature, step, total_steps)
        moved, state = self._run(self._update, shared, found)
        return moved, state, losses

    def check(self, rule: UpdateRule, *, differentiable: bool, second_order: bool) -> None:
        """Refuse to be used for another rule or kind of gradient.

        Raises:
            ValueError: Naming what differs.
        """
        if rule is not self.rule:
            raise ValueError(
                f"the inner step is of another {type(self.rule).__name__}; make an InnerStep for this rule"
            )
        asked = {"differentiable": differentiable, "second_order": second_order}
        if asked != self._options:
            raise ValueError(f"the inner step has {self._options}, expected {asked}; make another InnerStep")

    def _eager(
        self,
        shared: bool,
        theta: Params,
        params: Params,
        state: State,
        batch: Any,
        step: Tensor,
        total_steps: Tensor | None,
        scale: Mapping[str, Tensor] | None,
        shift: Mapping[str, Tensor] | None,
    ) -> Stepped:
        losses, grads = losses_and_grads(self.task, params, batch, scale=scale, shift=shift, **self._options)
        feature = losses if self._options["second_order"] else losses.detach()
        moved, state = self._update(shared, theta, params, grads, state, feature, step, total_steps)
        return moved, state, losses

    def _whole(self, shared: bool, *arguments: Any) -> Stepped:
        return self._eager(shared, *arguments)

    def _update(
        self,
        shared: bool,
        theta: Params,
        params: Params,
        grads: Params,
        state: State,
        losses: Tensor,
        step: Tensor,
        total_steps: Tensor | None,
    ) -> tuple[Params, State]:
        space = self.task.space

        def one(
            theta: Params, p: Params, g: Params, s: State, loss: Tensor, t: Tensor, total: Tensor | None
        ) -> tuple[Params, State]:
            options = {"space": space, "step": t, "loss": loss, "total_steps": total}
            updates, new = torch.func.functional_call(self.rule, theta, (p, g, s), options)
            return updates, new

        in_dims = (None if shared else 0, 0, 0, 0, 0, 0, None if total_steps is None else 0)
        updates, state = torch.func.vmap(one, in_dims)(theta, params, grads, state, losses, step, total_steps)
        return {name: p + updates[name] for name, p in params.items()}, state

    def _run(self, function: Callable[..., Any], shared: bool, arguments: tuple[Any, ...]) -> Any:
        """Call the kernel for arguments of this form, which is made if there is none."""
        with torch.set_grad_enabled(self._options["differentiable"]):
            leaves, structure = pytree.tree_flatten(arguments)
            key = (function.__name__, shared, structure, tuple(_form(leaf) for leaf in leaves))
            if key not in self._kernels:
                self._kernels[key] = kernel(
                    functools.partial(function, shared),
                    structure,
                    leaves,
                    differentiable=self._options["differentiable"],
                    backend=self.backend,
                )
            return self._kernels[key](leaves)


def _form(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def losses_and_grads(
    task: Task,
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    differentiable: bool = False,
    second_order: bool = False,
    scale: Mapping[str, Tensor] | None = None,
    shift: Mapping[str, Tensor] | None = None,
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
        scale: As for :func:`nfn_opt.meta.unroll`.
        shift: Likewise.

    Raises:
        NotImplementedError: If second derivatives are asked of a task that only estimates its gradient.
    """
    estimated = _estimated(task, params, batch, scale, shift)
    if estimated is not None:
        if second_order:
            raise NotImplementedError(
                f"{type(task).__name__} estimates its gradients, which have no derivative; "
                "use second_order=False, or evolution strategies as the estimator"
            )
        losses, found = estimated
        grads = [found[name] for name in params]
    else:
        with torch.enable_grad():
            leaves = {
                name: p if second_order and p.requires_grad else p.detach().requires_grad_()
                for name, p in params.items()
            }
            losses = task.losses(_points(leaves, scale, shift), batch)
            grads = list(torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=second_order))
    if not second_order:
        losses = losses.detach()
    if differentiable and not second_order:
        losses = _KnownGradient.apply(losses, len(grads), *params.values(), *grads)
    return losses, dict(zip(params, grads, strict=True))


def _points(
    params: Mapping[str, Tensor], scale: Mapping[str, Tensor] | None, shift: Mapping[str, Tensor] | None
) -> Params:
    """Where the networks are evaluated."""
    points = dict(params)
    if scale is not None:
        points = {name: p * scale[name] for name, p in points.items()}
    return points if shift is None else {name: p + shift[name] for name, p in points.items()}


def _estimated(
    task: Task,
    params: Mapping[str, Tensor],
    batch: Any,
    scale: Mapping[str, Tensor] | None,
    shift: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Params] | None:
    """What a task without derivative gives; by the chain rule the gradient is scaled, too."""
    if task.traceable:
        return None
    points = _points({name: p.detach() for name, p in params.items()}, scale, shift)
    found = task.losses_and_grads(points, batch)
    if found is None or scale is None:
        return found
    return found[0], {name: g * scale[name] for name, g in found[1].items()}


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
