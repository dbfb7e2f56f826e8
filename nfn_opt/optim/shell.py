"""A learned rule as an ordinary :class:`torch.optim.Optimizer`."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from nfn_opt.optim import shell_state
from nfn_opt.optim.bundled import pretrained
from nfn_opt.optim.rule import State, UpdateRule
from nfn_opt.optim.shell_parameters import Entry, RuleBank, compute_dtype, entries, gradients, not_finite
from nfn_opt.optim.storage import load_rule
from nfn_opt.weight_space import WeightSpace

SHARED = "shared"
"""Key of ``optimizer.state`` for the step count and what the rule remembers of all tensors together."""


class LearnedOptimizer(torch.optim.Optimizer):
    r"""Trains a network by a learned update rule; takes the place of :class:`torch.optim.Adam` in any script.

    .. math:: p_{t+1} = (1 - \text{lr} \cdot \text{weight\_decay}) \, p_t + \text{lr} \cdot u_t

    where :math:`u_t` is the rule's update, its learned step size included: ``lr`` is a factor that is 1 for
    the rule as it was trained. Closures, parameter groups with their own ``lr`` and ``weight_decay``,
    schedulers, ``state_dict``, hooks and missing gradients work as in :mod:`torch.optim`.

    Weights of less than 32 bits have their state and arithmetic in float32.

    Args:
        params: Parameters, ``model.named_parameters()``, or groups of either.
        rule: A rule, the path of a saved one, or ``None`` for the one that comes with the library. It is
            copied; this optimizer does not train it. (Its form in ``higher`` does, see
            :mod:`nfn_opt.optim.higher_bridge`.)
        space: The network's weight space, for rules that use its symmetry; the parameters must then be given
            with their names, as ``model.named_parameters()``. Without it no axis of one tensor is tied to one
            of another.
        lr: Factor of the update.
        weight_decay: Decoupled weight decay. As ``lr`` is usually 1 and not 0.001, typical values are
            1000 times smaller than in :class:`torch.optim.AdamW`.
        on_nonfinite: What to do if a gradient or update is NaN or infinite: ``"raise"``
            :class:`FloatingPointError`, or ``"skip"`` the whole step with a warning. Both name the
            parameters, and leave weights and state as they were.

    Raises:
        ValueError: If an option is out of range, or the parameters do not fit the space.
        TypeError: If an argument has the wrong type.
        NotImplementedError: If a parameter is complex or a gradient is sparse.

    Example:
        >>> from nfn_opt.optim import make_rule
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = LearnedOptimizer(model.parameters(), rule=make_rule("mlp"))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(1, 2)).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> losses = [optimizer.step(closure).item() for _ in range(50)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        params: ParamsT,
        rule: UpdateRule | str | os.PathLike[str] | None = None,
        *,
        space: WeightSpace | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        on_nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        if on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}, expected 'raise' or 'skip'")
        if space is not None and not isinstance(space, WeightSpace):
            raise TypeError(
                f"space is a {type(space).__name__}, expected a WeightSpace; see WeightSpace.from_module"
            )
        self._bank = RuleBank(_resolve(rule))
        self._given = rule if isinstance(rule, UpdateRule) else None
        self._space = space
        self._independent: WeightSpace | None = None
        self._on_nonfinite = on_nonfinite
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.state[SHARED] = {"step": torch.zeros((), dtype=torch.int64)}  # type: ignore[index]
        shell_state.check_complete(self.rule, space, self._entries())
        if "higher" in sys.modules:
            importlib.import_module("nfn_opt.optim.higher_bridge").register(type(self))

    @property
    def rule(self) -> UpdateRule:
        """The rule, frozen."""
        return self._bank.rule

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in :class:`torch.optim.Optimizer`; nothing is added if it is refused."""
        super().add_param_group(param_group)
        try:
            shell_state.check_group(self.param_groups[-1], len(self.param_groups) - 1)
            shell_state.check_names(self._space, self._entries())
        except Exception:
            self.param_groups.pop()
            raise
        self._independent = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one update of every parameter that has a gradient.

        Args:
            closure: Evaluates the model anew and returns the loss, as in :mod:`torch.optim`.

        Returns:
            The closure's loss, if there is one.

        Raises:
            FloatingPointError: If a gradient or update is not finite and ``on_nonfinite="raise"``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [entry for entry in self._entries() if entry.param.numel() > 0]
        with_gradient = [entry for entry in found if entry.param.grad is not None]
        if not with_gradient:
            return loss
        grads = gradients(with_gradient)
        if self._refuse("gradient", with_gradient, not_finite(grads)):
            return loss
        updates, states, shared = self._compute(found, grads, loss)
        if self._refuse("update", with_gradient, not_finite(updates)):
            return loss
        for entry in with_gradient:
            entry.apply(updates[entry.key])
            self.state[entry.param] = states[entry.key]
        self.state[SHARED] = {"step": self._step + 1, **shared}  # type: ignore[index]
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`torch.optim.Optimizer.state_dict`, with a description of the rule under ``"rule"``."""
        return {**super().state_dict(), "rule": shell_state.describe(self.rule)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, exactly.

        Args:
            state_dict: What :meth:`state_dict` gave, for the same rule and parameters of the same shapes.

        Raises:
            ValueError: If the state is of another optimizer, rule or model; nothing is changed.
        """
        loaded: dict[int | str, Any] = {}

        def check(_: torch.optim.Optimizer, final: dict[str, Any]) -> None:
            shell_state.check_loaded(self.rule, self.space, self._entries(), self.param_groups, final)
            loaded.update(final["state"])

        def restore(_: torch.optim.Optimizer) -> None:
            self._restore(loaded)

        # torch casts a state to the dtype of its parameter; after it, the values are put back as they were.
        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    @property
    def space(self) -> WeightSpace:
        """The weight space given, or one in which all axes are independent."""
        if self._space is not None:
            return self._space
        if self._independent is None:
            self._independent = WeightSpace.independent(
                {entry.key: entry.param for entry in self._entries() if entry.param.numel() > 0}
            )
        return self._independent

    @property
    def _step(self) -> Tensor:
        return self.state[SHARED]["step"]  # type: ignore[index]

    def _entries(self) -> list[Entry]:
        return entries(self.param_groups, named=self._space is not None)

    def _refuse(self, what: str, found: list[Entry], bad: set[str]) -> bool:
        """Raise, or warn and return whether to skip the step, if anything is not finite."""
        if not bad:
            return False
        names = ", ".join(entry.label for entry in found if entry.key in bad)
        message = f"the {what} of {names} is NaN or infinite; weights and optimizer state are unchanged"
        if self._on_nonfinite == "raise":
            raise FloatingPointError(f"{message}; pass on_nonfinite='skip' to skip such steps")
        warnings.warn(f"step skipped: {message}", RuntimeWarning, stacklevel=5)
        return True

    def _compute(
        self, found: list[Entry], grads: dict[str, Tensor], loss: Any
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Updates and new states of the parameters, without changing anything."""
        updates: dict[str, Tensor] = {}
        states: dict[str, dict[str, Tensor]] = {}
        shared: dict[str, Tensor] | None = None
        for bank_key, bucket in self._bank.buckets(found, grads).items():
            state = self._gather(bank_key, bucket)
            update, state = self._bank.rule_for(bank_key).update(
                {entry.key: entry.param.detach().to(*bank_key) for entry in bucket},
                {entry.key: _gradient(entry, grads, bank_key) for entry in bucket},
                state,
                space=self.space,
                step=self._step.to(bank_key[0]),
                loss=_loss(loss, bank_key),
            )
            updates.update({key: value for key, value in update.items() if key in grads})
            states.update(state["tensors"])
            shared = state["shared"] if shared is None else shared
        return updates, states, shared or {}

    def _gather(self, bank_key: tuple[torch.device, torch.dtype], bucket: list[Entry]) -> State:
        """The rule's state for a bucket of parameters; what is missing starts anew."""
        params = {entry.key: entry.param.detach().to(*bank_key) for entry in bucket}
        new = {
            key: p
            for (key, p), entry in zip(params.items(), bucket, strict=True)
            if entry.param not in self.state
        }
        shared = {key: value for key, value in self.state[SHARED].items() if key != "step"}  # type: ignore[index]
        fresh: State = {"tensors": {}, "shared": shared}
        if new or not shared:
            rule = self._bank.rule_for(bank_key)
            fresh = rule.init(self.space, params if rule.coupled else new or params)
        tensors = {
            e.key: self.state[e.param] if e.param in self.state else fresh["tensors"][e.key] for e in bucket
        }
        moved = {key: shell_state.cast(state, *bank_key) for key, state in tensors.items()}
        return {"tensors": moved, "shared": shell_state.cast(shared or fresh["shared"], *bank_key)}

    def _restore(self, loaded: dict[int | str, Any]) -> None:
        indexed = enumerate(p for group in self.param_groups for p in group["params"])
        for index, p in indexed:
            if index in loaded:
                cast = shell_state.cast(loaded[index], p.device, compute_dtype(p.dtype))
                self.state[p] = {key: value.clone() for key, value in cast.items()}
        self.state[SHARED] = {key: value.clone() for key, value in loaded[SHARED].items()}  # type: ignore[index]

    def __getstate__(self) -> dict[str, Any]:
        own = {"_bank": RuleBank(self.rule), "_space": self._space, "_on_nonfinite": self._on_nonfinite}
        return {**super().__getstate__(), **own, "_independent": None, "_given": None}


def _resolve(rule: UpdateRule | str | os.PathLike[str] | None) -> UpdateRule:
    if rule is None:
        return pretrained()
    if isinstance(rule, UpdateRule):
        return rule
    if isinstance(rule, (str, os.PathLike)):
        return load_rule(rule)
    raise TypeError(
        f"rule is a {type(rule).__name__}, expected an UpdateRule, the path of a saved rule, or None for the "
        "default"
    )


def _gradient(entry: Entry, grads: dict[str, Tensor], where: tuple[torch.device, torch.dtype]) -> Tensor:
    if entry.key in grads:
        return grads[entry.key].to(*where)
    return torch.zeros_like(entry.param, device=where[0], dtype=where[1])


def _loss(loss: Any, where: tuple[torch.device, torch.dtype]) -> Tensor | None:
    return None if loss is None else torch.as_tensor(loss).detach().to(*where)
