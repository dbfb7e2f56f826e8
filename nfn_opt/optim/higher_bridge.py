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
from nfn_opt.optim.shell import SHARED, LearnedOptimizer
from nfn_opt.optim.shell_parameters import Entry, Where, compute_dtype, entries, not_finite


class DifferentiableLearnedOptimizer(higher.optim.DifferentiableOptimizer):
    r"""A learned optimizer whose steps are part of the autograd graph.

    .. math:: p_{t+1} = (1 - \text{lr} \cdot \text{weight\_decay}) \, p_t + \text{lr} \cdot u_\theta(p_t, g_t, s_t)

    It goes on from the optimizer's state, which it leaves as it is, and makes the same steps. As ``step`` is
    given the loss, so is the rule. Gradients flow to

    * the initial weights, with ``copy_initial_weights=False``;
    * the outer parameters :math:`\theta` of the rule. If the optimizer was made with an
      :class:`~nfn_opt.optim.UpdateRule`, *that very rule* is used here, with the values that its parameters
      have now: ``meta_loss.backward()`` fills the ``grad`` of ``rule.parameters()``. Rules from files, and
      the default one, are frozen; ``override={"rule": [rule]}`` puts another in their place;
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
        if len(other.rules) > 1:
            raise NotImplementedError(
                f"the optimizer has groups with rules of their own ({', '.join(other.rules)}), expected one rule for "
                "all; give its groups no 'rule'"
            )
        options = dict(override or {})
        self.rule = _rule(other, options.pop("rule", None))
        self.space = other.space
        super().__init__(
            other, reference_params, fmodel, device, options, grad_callback, track_higher_grads, **kwargs
        )
        self._named = other._space is not None
        self._on_nonfinite = other._on_nonfinite
        self._loss: Tensor | None = None
        shared = other.state[SHARED]  # type: ignore[index]
        self.shared = {key: value.to(device or value.device, copy=True) for key, value in shared.items()}
        """The step count, and what the rule remembers of all tensors together."""

    def step(self, loss: Tensor, *args: Any, **kwargs: Any) -> Iterable[Tensor]:
        """As :meth:`higher.optim.DifferentiableOptimizer.step`; the rule sees the loss.

        Raises:
            FloatingPointError: If a gradient or update is not finite, unless the optimizer skips such steps.
        """
        self._loss = loss
        try:
            return super().step(loss, *args, **kwargs)
        finally:
            self._loss = None

    def _update(self, grouped_grads: Sequence[Sequence[Tensor | None]], **kwargs: Any) -> None:
        places = self._places()
        found = {entry.key: grouped_grads[i][j] for (i, j), entry in places.items()}
        grads = {key: grad for key, grad in found.items() if grad is not None}
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
        self.shared = {"step": self.shared["step"] + 1, **shared}

    def _places(self) -> dict[tuple[int, int], Entry]:
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
        self, places: Mapping[tuple[int, int], Entry], grads: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """Updates and new states of the parameters with a gradient, and the new shared state."""
        updates: dict[str, Tensor] = {}
        states: dict[str, Any] = {}
        shared: dict[str, Tensor] | None = None
        for where, bucket in self._buckets(places, grads).items():
            params = {entry.key: entry.param.to(*where) for entry in bucket.values()}
            flowing = {
                key: grads[key].to(*where) if key in grads else torch.zeros_like(p)
                for key, p in params.items()
            }
            state = self._gather(bucket, params, where)
            update, state = _apply_rule(
                self.rule,
                where,
                (params, flowing, state),
                space=self.space,
                step=self.shared["step"].to(where[0]),
                loss=None if self._loss is None else self._loss.to(*where),
            )
            updates.update({key: value for key, value in update.items() if key in grads})
            states.update(state["tensors"])
            shared = state["shared"] if shared is None else shared
        return updates, states, shared or {}

    def _buckets(
        self, places: Mapping[tuple[int, int], Entry], grads: Mapping[str, Tensor]
    ) -> dict[Where, dict[tuple[int, int], Entry]]:
        """The parameters that are updated together; as :meth:`RuleBank.buckets` of the optimizer."""
        found = list(places.values())
        if self.rule.coupled:
            dtype = functools.reduce(torch.promote_types, (e.param.dtype for e in found), torch.float32)
            return {(found[0].param.device, dtype): dict(places)}
        buckets: dict[Where, dict[tuple[int, int], Entry]] = {}
        for place, entry in places.items():
            if entry.key in grads:
                where = (entry.param.device, compute_dtype(entry.param.dtype))
                buckets.setdefault(where, {})[place] = entry
        return buckets

    def _gather(
        self, bucket: Mapping[tuple[int, int], Entry], params: Mapping[str, Tensor], where: Where
    ) -> State:
        """The rule's state for a bucket of parameters; what is missing starts anew."""
        known = {entry.key: self.state[i][j] for (i, j), entry in bucket.items() if j in self.state[i]}
        new = {key: p for key, p in params.items() if key not in known}
        shared = {key: value for key, value in self.shared.items() if key != "step"}
        fresh: State = {"tensors": {}, "shared": shared}
        if new or not shared:
            fresh = self.rule.init(self.space, params if self.rule.coupled else new or params)
        tensors = {key: _cast(known.get(key, fresh["tensors"].get(key)), where) for key in params}
        return {"tensors": tensors, "shared": _cast(shared or fresh["shared"], where)}


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


def _apply_rule(
    rule: UpdateRule, where: Where, arguments: tuple[Any, ...], **options: Any
) -> tuple[dict[str, Tensor], State]:
    """The rule's update, its parameters and buffers moved differentiably where the tensors are."""
    own = {**dict(rule.named_parameters()), **dict(rule.named_buffers())}
    result: tuple[dict[str, Tensor], State] = torch.func.functional_call(
        rule, _cast(own, where), arguments, options
    )
    return result


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
