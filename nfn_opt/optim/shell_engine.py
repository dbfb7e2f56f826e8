"""What applies one rule to the parameters of an optimizer: the rule itself, or the fast step where that is the same."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.optim import shell_state
from nfn_opt.optim.rule import State, UpdateRule
from nfn_opt.optim.shell_fast import FastStep
from nfn_opt.optim.shell_fast_chunks import Scratch, Where, filled
from nfn_opt.optim.shell_fast_linear import LinearStep
from nfn_opt.optim.shell_parameters import Entry, compute_dtype, not_finite
from nfn_opt.weight_space import WeightSpace

TensorState = dict[str, Tensor]

TOGETHER = 2**20
"""Parameters of a rule that takes any subset are given to it in parts of about this many weights."""

STEPS: tuple[type[LinearStep] | type[FastStep], ...] = (LinearStep, FastStep)
"""Fast steps, each for some rules."""


@dataclasses.dataclass(frozen=True)
class Now:
    """What a rule is told besides parameters and gradients.

    Attributes:
        space: The weight space.
        step: Number of updates made, shape ``()``.
        loss: The training loss, where known.
        total_steps: Number of updates that the training will have, where known.
    """

    space: WeightSpace
    step: Tensor
    loss: Any = None
    total_steps: int | None = None

    def at(self, where: Where) -> dict[str, Any]:
        """As keyword arguments of :meth:`UpdateRule.update`, on a device."""
        device, _ = where
        loss = None if self.loss is None else torch.as_tensor(self.loss).detach().to(*where)
        total = None if self.total_steps is None else torch.tensor(self.total_steps, device=device)
        return {"space": self.space, "step": self.step.to(device), "loss": loss, "total_steps": total}


@dataclasses.dataclass
class Result:
    """Updates that are computed and not applied, and new states.

    Attributes:
        updates: By key.
        states: By key.
        shared: What the rule remembers of all tensors together.
    """

    updates: dict[str, Tensor]
    states: dict[str, TensorState]
    shared: TensorState


class Engine:
    """A frozen copy of a rule, and further copies for the devices and dtypes that parameters have.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = copy.deepcopy(rule).requires_grad_(False)
        self._copies: dict[Where, UpdateRule] = {}
        self._fast: dict[Where, LinearStep | FastStep | None] = {}
        self._scratch = Scratch()

    def fresh(self) -> Engine:
        """The same with nothing but the rule, for copying and pickling."""
        return Engine(self.rule)

    def rule_for(self, where: Where) -> UpdateRule:
        """The rule on a device, in a dtype."""
        if where not in self._copies:
            self._copies[where] = copy.deepcopy(self.rule).to(*where)
        return self._copies[where]

    def divide(
        self, own: Sequence[Entry], grads: Mapping[str, Tensor], space: WeightSpace
    ) -> tuple[list[Entry], list[Entry]]:
        """The parameters with a gradient that the rule itself updates, and those of the fast step.

        What comes out of the fast step is finite if what goes in is: gradients are looked at before, weights
        here.
        """
        with_gradient = [entry for entry in own if entry.key in grads]
        fast: list[Entry] = []
        if self.rule.coupled:
            return with_gradient, []
        least = 0
        for entry in with_gradient:
            step = self._fast_step(_where(entry))
            if step is not None and step.takes(space, entry.key):
                fast.append(entry)
                least = step.least
        if not fast or sum(entry.param.numel() for entry in fast) < least:
            return with_gradient, []
        bad = not_finite({entry.key: entry.param.detach() for entry in fast})
        fast = [entry for entry in fast if entry.key not in bad]
        keys = {entry.key for entry in fast}
        return [entry for entry in with_gradient if entry.key not in keys], fast

    def compute(
        self,
        own: Sequence[Entry],
        every: Sequence[Entry],
        grads: Mapping[str, Tensor],
        states: Mapping[str, TensorState],
        shared: TensorState,
        now: Now,
    ) -> Result:
        """Updates and new states of some parameters by the rule itself, without changing anything.

        Args:
            own: The parameters, with a gradient.
            every: Those of all groups; a coupled rule sees the ones that are not its own as frozen.
            grads: Gradients by key.
            states: States by key of the rule's own parameters, so far as they have any.
            shared: What the rule remembers of all tensors together, so far.
            now: What else it is told.
        """
        result = Result({}, {}, {})
        keys = {entry.key for entry in own}
        for where, bucket in self._buckets(own, every):
            params = {entry.key: entry.param.detach().to(*where) for entry in bucket}
            flowing = {
                key: grads[key].to(*where) if key in keys else torch.zeros_like(p)
                for key, p in params.items()
            }
            state = self._gather(params, states, shared, where, now.space)
            updates, state = self.rule_for(where).update(params, flowing, state, **now.at(where))
            result.updates.update({key: value for key, value in updates.items() if key in keys})
            result.states.update(
                {key: _contiguous(value) for key, value in state["tensors"].items() if key in keys}
            )
            result.shared = result.shared or state["shared"]
        return result

    def apply_fast(
        self,
        fast: Sequence[Entry],
        grads: Mapping[str, Tensor],
        states: Mapping[Tensor, TensorState],
        now: Now,
    ) -> dict[Tensor, TensorState]:
        """Update parameters and their states in place; returns all states, new ones and those moved included."""
        after: dict[Tensor, TensorState] = {}
        for where, bucket in _by_place(fast).items():
            step = self._fast_step(where)
            assert step is not None
            own = self._states_in_place(bucket, states, where, now.space)
            told = now.at(where)
            del told["loss"]  # no rule of the fast step reads it
            for entry, update in step.updates(bucket, grads, own, **told):
                entry.apply(update)
            after.update({entry.param: own[entry.key] for entry in bucket})
        return after

    def _states_in_place(
        self, bucket: Sequence[Entry], states: Mapping[Tensor, TensorState], where: Where, space: WeightSpace
    ) -> dict[str, TensorState]:
        """States by key, contiguous on their device."""
        rule, fresh = self.rule_for(where), dict[str, TensorState]()
        for entry in bucket:
            if entry.param not in states:
                fresh |= rule.init(space, {entry.key: entry.param.detach().to(*where)})["tensors"]
        old = {entry.key: states[entry.param] for entry in bucket if entry.param in states}
        moved = {key: shell_state.cast(state, *where) for key, state in {**old, **fresh}.items()}
        return {key: _contiguous(state) for key, state in moved.items()}

    def _fast_step(self, where: Where) -> LinearStep | FastStep | None:
        if where not in self._fast:
            known = [kind for kind in STEPS if kind.supports(self.rule)]
            made = [kind(self.rule_for(where), where, self._scratch) for kind in known]
            self._fast[where] = made[0] if made else None
        return self._fast[where]

    def _buckets(
        self, own: Sequence[Entry], every: Sequence[Entry]
    ) -> Iterator[tuple[Where, Sequence[Entry]]]:
        """The parameters that are updated together, by device and dtype.

        A coupled rule needs all parameters at once, those without gradient included, and takes the widest
        dtype and the first device. Any other rule takes those with a gradient, each with its own, and some at a
        time, so that what it makes on the way does not grow with the network.
        """
        if not self.rule.coupled:
            for where, bucket in _by_place(own).items():
                yield from ((where, part) for part in _parts(bucket))
        elif own:
            dtype = torch.float32
            for entry in every:
                dtype = torch.promote_types(dtype, entry.param.dtype)
            yield (every[0].param.device, dtype), every

    def _gather(
        self,
        params: Mapping[str, Tensor],
        states: Mapping[str, TensorState],
        shared: TensorState,
        where: Where,
        space: WeightSpace,
    ) -> State:
        """The rule's state for some parameters; what is missing starts anew."""
        new = {key: p for key, p in params.items() if key not in states}
        fresh: State = {"tensors": {}, "shared": shared}
        if new or not shared:
            fresh = self.rule_for(where).init(space, params if self.rule.coupled else new or params)
        tensors = {key: states[key] if key in states else fresh["tensors"][key] for key in params}
        moved = {key: shell_state.cast(state, *where) for key, state in tensors.items()}
        return {"tensors": moved, "shared": shell_state.cast(shared or fresh["shared"], *where)}


def _contiguous(state: TensorState) -> TensorState:
    return {key: tensor.contiguous() for key, tensor in state.items()}


def _where(entry: Entry) -> Where:
    return entry.param.device, compute_dtype(entry.param.dtype)


def _by_place(found: Sequence[Entry]) -> dict[Where, list[Entry]]:
    buckets: dict[Where, list[Entry]] = {}
    for entry in found:
        buckets.setdefault(_where(entry), []).append(entry)
    return buckets


def _parts(bucket: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Consecutive parameters of at most :data:`TOGETHER` weights, or one that has more."""
    for places in filled(range(len(bucket)), [entry.param.numel() for entry in bucket], TOGETHER):
        yield [bucket[i] for i in places]
