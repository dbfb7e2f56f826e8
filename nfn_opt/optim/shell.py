"""A learned rule as an ordinary :class:`torch.optim.Optimizer`."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch._compile import (
    _disable_dynamo,
)  # as torch.optim has it: torch.compiler.disable imports the compiler
from torch.optim.optimizer import ParamsT

from nfn_opt.optim import shell_state
from nfn_opt.optim.rule import UpdateRule
from nfn_opt.optim.shell_engine import Engine, Now, Result
from nfn_opt.optim.shell_groups import RuleLike, resolve_rule
from nfn_opt.optim.shell_loading import TensorState, checked
from nfn_opt.optim.shell_options import check_options, check_total_steps, warn_of_small_factor
from nfn_opt.optim.shell_parameters import Entry, entries, gradients, not_finite
from nfn_opt.weight_space import WeightSpace


class LearnedOptimizer(torch.optim.Optimizer):
    r"""Trains a network by a learned update rule; takes the place of :class:`torch.optim.Adam` in any script.

    .. math:: p_{t+1} = (1 - \text{lr} \cdot \text{weight\_decay}) \, p_t + \text{lr} \cdot u_t

    where :math:`u_t` is the rule's update, its learned step size included: ``lr`` is a factor that is 1 for
    the rule as it was trained. Closures, parameter groups with their own ``lr``, ``weight_decay`` and ``rule``,
    schedulers, ``state_dict``, hooks and missing gradients work as in :mod:`torch.optim`. Every group also has the
    number of updates made, ``"step"``, and, where its rule remembers something of all tensors together, that, as
    ``"shared"``.

    Weights of less than 32 bits have their state and arithmetic in float32. Rules of the kinds ``"mlp"`` and
    ``"spectral"`` (without neighbours) are applied in place and piece by piece, so that a step needs little memory
    besides its state.

    Args:
        params: Parameters, ``model.named_parameters()``, or groups of either. A group's ``"rule"`` is used for
            it in place of ``rule``; see :func:`nfn_opt.optim.parameter_groups` for matrices by a learned rule and all
            else by AdamW.
        rule: A rule, the name of one that comes with the library, a kind such as ``"adam"``, or the path of a
            saved one, see :func:`nfn_opt.optim.resolve_rule`. It is copied; this optimizer does not train it. (Its
            form in ``higher`` does, see :mod:`nfn_opt.optim.higher_bridge`.)
        space: The network's weight space, for rules that use its symmetry; the parameters must then be given
            with their names, as ``model.named_parameters()``. Without it no axis of one tensor is tied to one
            of another.
        lr: Factor of the update, a number or a tensor of one. Values that suit Adam, such as 0.001, are warned of:
            they make the rule's updates as many times smaller.
        weight_decay: Decoupled weight decay. As ``lr`` is usually 1 and not 0.001, typical values are
            1000 times smaller than in :class:`torch.optim.AdamW`.
        total_steps: Number of updates that the training will have, where known. Rules that have learned a
            schedule over the whole training want it, and hand-designed ones (``"scheduled"``) need it. It is no
            part of the state: a training that goes on may be given another.
        maximize: Whether the loss is to grow.
        on_nonfinite: What to do if a gradient or update is NaN or infinite: ``"raise"``
            :class:`FloatingPointError`, or ``"skip"`` the whole step with a warning. Both name the
            parameters, and leave weights and state as they were.
        **options: Options of other optimizers. Those that ask for what happens here anyway, such as
            ``foreach=False``, are taken; all others are refused.

    Raises:
        ValueError: If an option is out of range, the parameters do not fit the space, or a rule needs
            ``total_steps`` that are not given.
        TypeError: If an argument has the wrong type, or is none of this optimizer's.
        NotImplementedError: If a parameter is complex or a gradient is sparse, or an option of
            :mod:`torch.optim` is asked for that is not there.

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
        rule: RuleLike = "default",
        *,
        space: WeightSpace | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        total_steps: int | None = None,
        maximize: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        **options: Any,
    ) -> None:
        check_options(
            options, space=space, total_steps=total_steps, maximize=maximize, on_nonfinite=on_nonfinite
        )
        self._engines: dict[str, Engine] = {}
        self._given = rule if isinstance(rule, UpdateRule) else None
        self._space = space
        self._default = self._engine_key(rule)
        self._independent: WeightSpace | None = None
        self._total_steps = None if total_steps is None else int(total_steps)
        self._maximize = maximize
        self._on_nonfinite = on_nonfinite
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "rule": self._default})
        shell_state.check_complete(self._any_coupled, space, self._entries())
        warn_of_small_factor(self.param_groups)
        if "higher" in sys.modules:
            importlib.import_module("nfn_opt.optim.higher_bridge").register(type(self))

    @property
    def rule(self) -> UpdateRule:
        """The rule, frozen; that of groups which name none."""
        return self._engines[self._default].rule

    @property
    def rules(self) -> dict[str, UpdateRule]:
        """All rules in use, frozen, by what the groups call them."""
        return {key: engine.rule for key, engine in self._engines.items()}

    @property
    def total_steps(self) -> int | None:
        """Number of updates that the training will have, where known."""
        return self._total_steps

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in :class:`torch.optim.Optimizer`; nothing is added if it is refused."""
        known, groups = dict(self._engines), len(self.param_groups)
        try:
            if isinstance(param_group, dict):
                # A copy: the same group may be given to another optimizer, which counts its own steps.
                key = self._engine_key(param_group["rule"]) if "rule" in param_group else self._default
                step, shared = self._step if groups else 0, self._shared(key)
                given = {name: value for name, value in param_group.items() if name != "shared"}
                param_group = {**given, "rule": key, "step": step, **({"shared": shared} if shared else {})}
            super().add_param_group(param_group)
            shell_state.check_group(self.param_groups[-1], groups)
            check_total_steps(self._engines[self.param_groups[-1]["rule"]].rule, self._total_steps)
            shell_state.check_names(self._space, self._entries())
        except Exception:
            self._engines = known
            del self.param_groups[groups:]
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
        with contextlib.ExitStack() as stack:
            for device in {p.device.type for group in self.param_groups for p in group["params"]}:
                if torch.amp.is_autocast_available(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            self._step_once(loss)
        return loss

    @_disable_dynamo  # in a compiled training step this runs as it is, piece by piece and in place
    def _step_once(self, loss: Any) -> None:
        """One update from the gradients that there are."""
        self._check_groups()
        found = [entry for entry in self._entries() if entry.param.numel() > 0]
        with_gradient = [entry for entry in found if entry.param.grad is not None]
        if not with_gradient:
            return
        grads = gradients(with_gradient, negative=self._maximize)
        if self._refuse("gradient", with_gradient, not_finite(grads)):
            return
        told = -loss if self._maximize and loss is not None else loss
        now = Now(self.space, torch.tensor(self._step), told, self._total_steps)
        divided = {
            key: engine.divide([entry for entry in found if entry.group["rule"] == key], grads, now.space)
            for key, engine in self._engines.items()
        }
        results = {key: self._compute(key, slow, found, grads, now) for key, (slow, _) in divided.items()}
        updates = {key: update for result in results.values() for key, update in result.updates.items()}
        if self._refuse("update", with_gradient, not_finite(updates)):
            return
        for key, (slow, fast) in divided.items():
            self.state.update(self._engines[key].apply_fast(fast, grads, self.state, now))
            for entry in slow:
                entry.apply(updates[entry.key])
                self.state[entry.param] = results[key].states[entry.key]
        for group in self.param_groups:
            group["step"] += 1
            if results[group["rule"]].shared:
                group["shared"] = results[group["rule"]].shared

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`torch.optim.Optimizer.state_dict`, with descriptions of the rules.

        ``"rules"`` describes them, by what the groups call them. A state without it, as
        :mod:`torch.distributed.checkpoint` hands it on, can be loaded as well.
        """
        described = {key: shell_state.describe(rule) for key, rule in self.rules.items()}
        return {**super().state_dict(), "rules": described}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, exactly.

        Args:
            state_dict: What :meth:`state_dict` gave, for the same rule and parameters of the same shapes.
                Parameters of which it has nothing start anew.

        Raises:
            ValueError: If the state is damaged, or of another optimizer, rule or model; nothing is changed.
        """
        loaded: list[tuple[Tensor, TensorState]] = []

        def check(_: torch.optim.Optimizer, final: dict[str, Any]) -> dict[str, Any]:
            final, states = checked(final, self.rules, self.space, self._entries(), self.param_groups)
            loaded.extend(states)
            return final

        def restore(_: torch.optim.Optimizer) -> None:
            self.state.update({p: shell_state.owned(p, state) for p, state in loaded})

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
    def _step(self) -> int:
        """Number of updates made; the same in all groups."""
        return self.param_groups[0]["step"]

    def _shared(self, key: str) -> TensorState:
        """What a rule remembers of all tensors together."""
        found = (group["shared"] for group in self.param_groups if group["rule"] == key and "shared" in group)
        return next(found, {})

    def _entries(self) -> list[Entry]:
        return entries(self.param_groups, named=self._space is not None)

    def _check_groups(self) -> None:
        """Refuse what groups were changed to; warn where the training is longer than was told."""
        for index, group in enumerate(self.param_groups):
            shell_state.check_numbers(group, index)
            if group["rule"] not in self._engines:
                raise ValueError(
                    f"the rule of group {index} was changed to {group['rule']!r}, which is none of this optimizer's "
                    f"({', '.join(self._engines)}); make a new optimizer to train on with another rule"
                )
        if self._total_steps is not None and self._step == self._total_steps:
            warnings.warn(
                f"more updates are made than total_steps={self._total_steps}; those of rules with a schedule are tiny "
                "from here on. Pass the number of updates of the whole training, all epochs together",
                RuntimeWarning,
                stacklevel=7,
            )

    def _refuse(self, what: str, found: list[Entry], bad: set[str]) -> bool:
        """Raise, or warn and return whether to skip the step, if anything is not finite."""
        if not bad:
            return False
        names = ", ".join(entry.label for entry in found if entry.key in bad)
        message = f"the {what} of {names} is NaN or infinite; weights and optimizer state are unchanged"
        if self._on_nonfinite == "raise":
            raise FloatingPointError(f"{message}; pass on_nonfinite='skip' to skip such steps")
        warnings.warn(f"step skipped: {message}", RuntimeWarning, stacklevel=8)
        return True

    def _compute(
        self, key: str, own: list[Entry], found: list[Entry], grads: Mapping[str, Tensor], now: Now
    ) -> Result:
        """Updates and new states of a rule's parameters, without changing anything."""
        if not own:
            return Result({}, {}, {})
        states = {
            e.key: self.state[e.param] for e in found if e.group["rule"] == key and e.param in self.state
        }
        return self._engines[key].compute(own, found, grads, states, self._shared(key), now)

    def _engine_key(self, rule: RuleLike) -> str:
        """What groups call a rule, which is made ready."""
        if isinstance(rule, str) and rule in self._engines:
            return rule
        resolved = resolve_rule(rule, space=self._space)
        key = shell_state.rule_key(resolved)
        if key not in self._engines:
            self._engines[key] = Engine(resolved)
        return key

    @property
    def _any_coupled(self) -> bool:
        return any(rule.coupled for rule in self.rules.values())

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_default", "_maximize", "_on_nonfinite", "_space", "_total_steps")
        own = {name: getattr(self, name) for name in kept}
        engines = {key: engine.fresh() for key, engine in self._engines.items()}
        return {**super().__getstate__(), **own, "_engines": engines, "_independent": None, "_given": None}
