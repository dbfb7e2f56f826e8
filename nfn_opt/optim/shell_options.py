"""Checks of the options of a :class:`LearnedOptimizer`, those of other optimizers included."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from torch import Tensor

from nfn_opt.optim.rule import UpdateRule
from nfn_opt.weight_space import WeightSpace

AS_HERE: dict[str, tuple[Any, ...]] = {
    "foreach": (None, False),
    "fused": (None, False),
    "capturable": (False,),
    "differentiable": (False,),
    "amsgrad": (False,),
}
"""Options of :mod:`torch.optim` with the values that ask for what this optimizer does anyway."""

INSTEAD = {
    "foreach": "small tensors are worked on together anyway; leave it out",
    "fused": "there is no fused kernel; leave it out",
    "capturable": "a step checks for NaN on the host, and cannot be captured in a CUDA graph; leave it out",
    "differentiable": (
        "differentiate through updates by nfn_opt.meta.unroll, or by the bridge to higher; leave it out"
    ),
    "amsgrad": "the rule decides what is remembered; leave it out",
    "betas": "the rule brings its own decays; leave them out, or make a rule with others by make_rule",
    "momentum": "the rule brings its own decays; leave it out, or make a rule with others by make_rule",
    "eps": "the rule brings its own; leave it out",
}


SMALL_FACTOR = 0.05
"""A largest ``lr`` below this is likely meant as a step size, not as a factor of the rule's own."""


def check_options(
    options: Mapping[str, Any], *, space: object, total_steps: object, maximize: object, on_nonfinite: object
) -> None:
    """Refuse options out of range and those that are none of this optimizer's.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a value has the wrong type, or there is no such option.
        NotImplementedError: If an option of :mod:`torch.optim` asks for what is not there.
    """
    for name, value in options.items():
        if name not in AS_HERE:
            remedy = INSTEAD.get(name, "see LearnedOptimizer for those that there are")
            raise TypeError(f"LearnedOptimizer has no option {name!r}, got {value!r}; {remedy}")
        if not any(value is taken for taken in AS_HERE[name]):
            raise NotImplementedError(
                f"LearnedOptimizer does not support {name}={value!r}, expected "
                f"{' or '.join(map(repr, AS_HERE[name]))}: {INSTEAD[name]}"
            )
    if not isinstance(maximize, bool):
        raise TypeError(f"maximize is {maximize!r}, expected True or False")
    if on_nonfinite not in ("raise", "skip"):
        raise ValueError(f"on_nonfinite is {on_nonfinite!r}, expected 'raise' or 'skip'")
    if space is not None and not isinstance(space, WeightSpace):
        raise TypeError(
            f"space is a {type(space).__name__}, expected a WeightSpace; see WeightSpace.from_module"
        )
    if total_steps is not None and (not isinstance(total_steps, Integral) or isinstance(total_steps, bool)):
        raise TypeError(
            f"total_steps is a {type(total_steps).__name__}, expected the number of updates of the training as an "
            "int, or None"
        )
    if isinstance(total_steps, Integral) and total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}, expected at least 1")


def check_total_steps(rule: UpdateRule, total_steps: int | None) -> None:
    """Refuse a rule that needs the number of updates of the training if it is not given.

    Raises:
        ValueError: Naming the rule.
    """
    if rule.needs_total_steps and total_steps is None:
        raise ValueError(
            f"total_steps is None, and the schedule of a {rule.kind!r} rule goes over the whole training; expected "
            "its number of updates: LearnedOptimizer(..., total_steps=epochs * len(loader))"
        )


def warn_of_small_factor(groups: Iterable[Mapping[str, Any]]) -> None:
    """Warn if ``lr`` of all groups is small, as it is for other optimizers; tensors on a GPU are not looked at."""
    factors = [group["lr"] for group in groups]
    if any(isinstance(lr, Tensor) and lr.device.type != "cpu" for lr in factors):
        return
    largest = max(float(lr) for lr in factors)
    if 0 < largest < SMALL_FACTOR:
        warnings.warn(
            f"lr is a factor of the rule's own step size, and 1 where it is left out: lr={largest:.3g} makes every "
            f"update {1 / largest:.3g} times smaller. Leave lr out, or try factors such as 0.5 and 2. If this one is "
            "meant: warnings.filterwarnings('ignore', 'lr is a factor')",
            UserWarning,
            stacklevel=3,
        )
