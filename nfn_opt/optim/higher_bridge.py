"""The bridge to `higher <https://github.com/facebookresearch/higher>`_: learned optimizers in its inner loops.

A :class:`~nfn_opt.optim.LearnedOptimizer` that is made after ``import higher`` works in
``higher.innerloop_ctx`` at once. Importing this module does the same for optimizers made before, and for
``higher.create_diff_optim``. ``nfn_opt`` by itself does not import ``higher``.

The library's own :func:`nfn_opt.meta.unroll` does the same for many networks at once and is much faster; the
bridge is for models and loops that are written for ``higher`` already.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import higher
import torch
from torch import Tensor

from nfn_opt.optim.rule import State, UpdateRule
from nfn_opt.optim.shell import LearnedOptimizer
from nfn_opt.optim.shell_parameters import Entry, Where, compute_dtype, entries, not_finite

Places = dict[tuple[int, int], Entry]
"""Parameters by group and place in it."""


class DifferentiableLearnedOptimizer(higher.optim.DifferentiableOptimizer):
    r"""A learned optimizer whose steps are part of the autograd graph.

    .. math:: p_{t+1} = (1 - \text{lr} \cdot \text{weight\_decay}) \, p_t + \text{lr} \cdot u_\theta(p_t, g_t, s_t)

    It goes on from the optimizer's state, which it leaves as it is, and makes the same steps. As ``step`` is
    given the loss, so is the rule. Gradients flow to

    * the initial weights, with ``copy_initial_weights=False``;
    * the outer parameters :math:`\theta` of the rule. If the optimizer was made with an
      :class:`~nfn_opt.optim.UpdateRule`, *that very rule* is used here, with the values that its parameters
      have now: ``meta_loss.backward()`` fills the ``grad`` of ``rule.parameters()``. Rules from files or by
      name are frozen; ``override={"rule": [rule]}`` puts another in the place of the optimizer's. Rules of
      single groups are always frozen;
    * ``lr`` and ``weight_decay``, given as tensors in ``override``, one for all groups or one for each.

    With ``track_higher_grads=False`` there is no graph from one step to the next.

    Args:
        other: The optimizer.
        reference_params: The parameters of the model.
        fmodel: The model patched by ``higher``, whose weights are updated.
        device: Where the state goes; by default it stays.
        override: Options in place of those of the parameter groups, and ``"rule"``.
        grad_callback: Called with the gradients before each update.
        track_higher_grads: Whether to keep the graph.

    Raises:
        ValueError: If ``other`` is of another model, or the rule in ``override`` is not exactly one.
        TypeError: If the rule in ``override`` is no :class:`~nfn_opt.optim.UpdateRule`.

    Example:
        >>> import higher
        >>> from nfn_opt.optim import LearnedOptimizer, make_rule
        >>> model, rule = torch.nn.Linear(2, 1), make_rule("mlp")
        >>> optimizer = LearnedOptimizer(model.parameters(), rule=rule)
        >>> with higher.innerloop_ctx(model, optimizer) as (network, inner):
        ...     for _ in range(3):
        ...         _ = inner.step(network(torch.ones(1, 2)).square().sum())
        ...     network(torch.ones(1, 2)).square().sum().backward()
        >>> all(p.grad is not None for p in rule.step_size.parameters())
        True
    """

    def __init__(
        self,
        other: LearnedOptimizer,
        reference_params: Iterable[Tensor],
        fmodel: Any = None,
        device: torch.device | None = None,
        override: Mapping[str, Sequence[Any]] | None = None,
        grad_callback: Callable[[list[Tensor]], list[Tensor]] | None = None,
        track_higher_grads: bool = True,
        **kwargs: Any,
    ) -> None:
        options = dict(override or {})
        self.rule = _rule(other, options.pop("rule", None))
        self.rules: dict[str, UpdateRule] = {**other.rules, other._default: self.rule}
        self.space, self.total_steps = other.space, other.total_steps
        super().__init__(
            other, reference_params, fmodel, device, options, grad_callback, track_higher_grads, **kwargs
        )
        self._named = other._space is not None
        self._on_nonfinite = other._on_nonfinite
        self._maximize = other._maximize
        self._loss: Tensor | None = None
        self.steps_made = torch.tensor(other._step)
        """Number of updates made, those of the optimizer included, shape ()."""
        self.shared = {
            key: {
                name: value.to(device or value.device, copy=True)
                for name, value in other._shared(key).items()
            }
            for key in self.rules
        }
        """What each rule remembers of all tensors together."""

    def step(self, loss: Tensor, *args: Any, **kwargs: Any) -> Iterable[Tensor]:
        """As :meth:`higher.optim.DifferentiableOptimizer.step`; the rule sees the loss.

        Raises:
            FloatingPointError: If a gradient or update is not finite, unless the optimizer skips such steps.
        """
        self._loss = -loss if self._maximize else loss
        try:
            return super().step(loss, *args, **kwargs)
        finally:
            self._loss = None

    def _update(self, grouped_grads: Sequence[Sequence[Tensor | None]], **kwargs: Any) -> None:
        places = self._places()
        found = {entry.key: grouped_grads[i][j] for (i, j), entry in places.items()}
        sign = -1 if self._maximize else 1
        grads = {key: sign * grad for key, grad in found.items() if grad is not None}
        with torch.set_grad_enabled(self._track_higher_grads):
            if not grads or self._refuse("gradient", places, grads):
                return
            updates, states, shared = self._compute(places, grads)
            if self._refuse("update", places, updates):
                return
            for (i, j), entry in places.items():
                if entry.key in updates:
                    self.param_groups[i]["params"][j] = _applied(entry, updates[entry.key])
                    self.state[i][j] = states[entry.key]
        self.steps_made = self.steps_made + 1
        self.shared = {**self.shared, **shared}

    def _places(self) -> Places:
        """The parameters that are not empty, as they are now, by group and place in it."""
        found = iter(entries(self.param_groups, named=self._named))
        every = {
            (i, j): next(found) for i, g in enumerate(self.param_groups) for j in range(len(g["params"]))
        }
        return {place: entry for place, entry in every.items() if entry.param.numel() > 0}

    def _refuse(self, what: str, places: Mapping[Any, Entry], tensors: Mapping[str, Tensor]) -> bool:
        """Raise, or warn and return whether to skip the step, if anything is not finite."""
        bad = not_finite({key: tensor.detach() for key, tensor in tensors.items()})
        if not bad:
            return False
        names = ", ".join(entry.label for entry in places.values() if entry.key in bad)
        message = f"the {what} of {names} is NaN or infinite; weights and optimizer state are unchanged"
        if self._on_nonfinite == "raise":
            raise FloatingPointError(f"{message}; pass on_nonfinite='skip' to skip such steps")
        warnings.warn(f"step skipped: {message}", RuntimeWarning, stacklevel=5)
        return True

    def _compute(
        self, places: Places, grads: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, dict[str, Tensor]]]:
        """Updates and new states of the parameters with a gradient, and what the rules share, by rule."""
        updates: dict[str, Tensor] = {}
        states: dict[str, Any] = {}
        shared: dict[str, dict[str, Tensor]] = {}
        for key, rule in self.rules.items():
            own = {e.key for e in places.values() if e.group["rule"] == key and e.key in grads}
            for where, bucket in _buckets(rule, places, own).items():
                update, state = self._apply(key, where, bucket, own, grads, self.shared[key])
                updates.update({name: value for name, value in update.items() if name in own})
                states.update({name: value for name, value in state["tensors"].items() if name in own})
                shared.setdefault(key, state["shared"])
        return updates, states, shared

    def _apply(
        self,
        rule_key: str,
        where: Where,
        bucket: Places,
        own: set[str],
        grads: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], State]:
        """What a rule makes of a bucket; its parameters and buffers are moved there differentiably."""
        params = {entry.key: entry.param.to(*where) for entry in bucket.values()}
        flowing = {
            key: grads[key].to(*where) if key in own else torch.zeros_like(p) for key, p in params.items()
        }
        rule, state = self.rules[rule_key], self._gather(rule_key, bucket, params, where, shared)
        values = _cast({**dict(rule.named_parameters()), **dict(rule.named_buffers())}, where)
        total = None if self.total_steps is None else torch.tensor(self.total_steps, device=where[0])
        options = {
            "space": self.space,
            "step": self.steps_made.to(where[0]),
            "loss": None if self._loss is None else self._loss.to(*where),
            "total_steps": total,
        }
        result: tuple[dict[str, Tensor], State] = torch.func.functional_call(
            rule, values, (params, flowing, state), options
        )
        return result

    def _gather(
        self,
        rule_key: str,
        bucket: Places,
        params: Mapping[str, Tensor],
        where: Where,
        shared: Mapping[str, Tensor],
    ) -> State:
        """The rule's state for a bucket of parameters; what is missing starts anew."""
        rule = self.rules[rule_key]
        known = {
            entry.key: self.state[i][j]
            for (i, j), entry in bucket.items()
            if entry.group["rule"] == rule_key and j in self.state[i]
        }
        new = {key: p for key, p in params.items() if key not in known}
        fresh: State = {"tensors": {}, "shared": shared}
        if new or not shared:
            fresh = rule.init(self.space, params if rule.coupled else new or params)
        tensors = {key: known[key] if key in known else fresh["tensors"][key] for key in params}
        moved = {key: _cast(state, where) for key, state in tensors.items()}
        return {"tensors": moved, "shared": _cast(shared or fresh["shared"], where)}


def _buckets(rule: UpdateRule, places: Places, own: set[str]) -> dict[Where, Places]:
    """The parameters that a rule sees together, by device and dtype; all of them if it is coupled.

    The same as an optimizer's: a coupled rule takes the widest dtype and the first device.
    """
    found = list(places.values())
    if rule.coupled and own:
        dtype = functools.reduce(torch.promote_types, (e.param.dtype for e in found), torch.float32)
        return {(found[0].param.device, dtype): places}
    buckets: dict[Where, Places] = {}
    for place, entry in places.items():
        if entry.key in own:
            where = (entry.param.device, compute_dtype(entry.param.dtype))
            buckets.setdefault(where, {})[place] = entry
    return buckets


def _rule(other: LearnedOptimizer, override: Sequence[Any] | None) -> UpdateRule:
    """The rule in ``override``, else the one that the optimizer was given, else its own copy."""
    if override is None:
        return other.rule if other._given is None else other._given
    if len(override) != 1:
        raise ValueError(f"override['rule'] has {len(override)} entries, expected a list of one rule")
    if not isinstance(override[0], UpdateRule):
        raise TypeError(
            f"override['rule'] holds a {type(override[0]).__name__}, expected an UpdateRule; see load_rule"
        )
    return override[0]


def _applied(entry: Entry, update: Tensor) -> Tensor:
    """The new value of a parameter; :meth:`Entry.apply` without changing anything in place."""
    lr, weight_decay = entry.group["lr"], entry.group["weight_decay"]
    update = update.to(entry.param.device)
    kept = entry.param.to(update.dtype) * (1 - lr * weight_decay)
    return (kept + lr * update).to(entry.param.dtype)


def _cast(tensors: Mapping[str, Tensor], where: Where) -> dict[str, Tensor]:
    device, dtype = where
    return {
        key: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for key, tensor in tensors.items()
    }


def register(optimizer: type[LearnedOptimizer]) -> None:
    """Make a class of learned optimizers known to ``higher``, unless it has a differentiable form already."""
    if optimizer not in higher.optim._opt_mapping:
        higher.register_optim(optimizer, DifferentiableLearnedOptimizer)


register(LearnedOptimizer)
