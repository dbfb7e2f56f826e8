"""The spectral rule in the fast step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nfn_opt.optim.shell_fast_forms import BOUND, Form, Output, Told, largest_output, with_bias
from nfn_opt.optim.shell_fast_stack import together
from nfn_opt.optim.spectral import REMEMBERED, SpectralRule, normalised
from nfn_opt.optim.spectral_step import (
    GAIN,
    HIGHEST,
    LARGEST_EXCESS,
    LARGEST_SIZE,
    StepControl,
    Sums,
    depth,
)

LARGEST_STEP = 1e28
"""Step sizes of a rule that is taken here are known to stay below this: updates are then finite in float32."""

LARGEST_LOGARITHM = math.log(LARGEST_SIZE) + 5
"""A bound for logarithms of sizes and fan-ins, relative to usual ones."""

LARGEST_DECAY = 10.0
"""Most that the logarithm of the weight decay may be moved for updates to stay finite in float32."""


REPLACED = ("update", "step_sizes", "decayed", "_values")
"""Methods of the rule whose work is done in a fast step."""


class SpectralForm(Form):
    """:class:`SpectralRule` with a network and without neighbours as the fast step applies it.

    Args:
        rule: The rule.
    """

    rule_class = SpectralRule
    methods: ClassVar = dict.fromkeys(REPLACED, SpectralRule)
    beside, compares, also = True, True, ("gradient", "momentum", "parameter")

    def __init__(self, rule: SpectralRule) -> None:
        super().__init__(rule)
        self.rule = rule

    @classmethod
    def bounded(cls, rule: SpectralRule) -> bool:
        """See :class:`Form`; the weights of neighbours are not followed here."""
        if rule.neighbours is not None or rule.rest is None:
            return False
        outputs = largest_output(rule.first, with_bias(rule.rest)).sum()
        return float(outputs) < BOUND and steps_are_bounded(rule)

    def finish(self, output: Output, told: Told) -> Sequence[Tensor]:
        """Normalised directions, orthogonal where they are matrices, times minus the step sizes."""
        shape = (1, *output.segment.spec.shape)
        steps, size = (
            x.reshape(-1, *[1] * (len(shape) - 1))
            for x in (self._steps(output, told), torch.stack([state["size"] for state in output.states]))
        )
        direction, parameter = (
            together([one.reshape(shape) for one in output.wholes(x)])
            for x in (output.direction, output.stack.parameter.to(output.direction))
        )
        return self.rule.decayed(normalised(direction), parameter, size).mul_(-steps).unbind()

    def _steps(self, output: Output, told: Told) -> Tensor:
        """Step sizes of the tensors, ``(tensors,)``; what they remember takes in the gradient."""
        sums, states, segment = output.sums, output.states, output.segment
        assert sums.products is not None
        square, momenta, parameter = (output.per_tensor(sums.square(name)) for name in self.also)
        size = torch.sqrt(parameter[:, 0] / segment.spec.numel)
        found = Sums(square, momenta, output.per_tensor(sums.products), size)
        memory = {key: torch.stack([state[key] for state in states]) for key in REMEMBERED}
        steps, memory = self.rule.step_sizes(
            [segment] * len(states), found, memory, told.step, told.total_steps, depth(told.space)
        )
        for key, values in memory.items():
            torch._foreach_copy_([state[key] for state in states], list(values))
        return steps


def steps_are_bounded(rule: SpectralRule) -> bool:
    """Whether step sizes and weight decay are finite, whatever the tensors and the time are."""
    if min(rule.config.momentum_decays) <= 0 or not rule.config.gradient_clip < BOUND:
        return False
    if rule.shrinking is not None and not GAIN * float(rule.shrinking) < LARGEST_DECAY:
        return False
    return _control_is_bounded(rule.control)


def _control_is_bounded(control: StepControl) -> bool:
    largest = {name: float(p.double().abs().max()) for name, p in control.named_parameters()}
    powers = LARGEST_LOGARITHM * (largest["size"] + largest["width"])
    powers += largest["depth"] + LARGEST_EXCESS * largest["excess"]
    powers += largest["log_lr"] + largest["schedule"]
    exponent = max(map(math.log, control.start)) + GAIN * powers + 2 + HIGHEST
    network = [0.0]
    if control.hidden:
        inputs = LARGEST_LOGARITHM * control.weight.numel() * largest["weight"] + largest["bias"]
        network = [inputs, largest["out"]]
    limits = [
        (exponent, math.log(LARGEST_STEP)),
        *((value, BOUND) for value in (*network, largest["target"])),
        *((GAIN * largest[name], 60.0) for name in ("decay", "warmup", "rate")),
    ]
    return all(value < limit for value, limit in limits)
