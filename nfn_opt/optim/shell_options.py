"""Checks of the options of a :class:`LearnedOptimizer`, those of other optimizers included."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

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


def check_options(
    options: Mapping[str, Any], *, space: object, total_steps: object, on_nonfinite: object
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
        if value not in AS_HERE[name]:
            raise NotImplementedError(
                f"LearnedOptimizer does not support {name}={value!r}, expected "
                f"{' or '.join(map(repr, AS_HERE[name]))}: {INSTEAD[name]}"
            )
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
