"""The per-weight MLP rule in the fast step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nfn_opt.optim.features import EPS
from nfn_opt.optim.layout import Segment
from nfn_opt.optim.learned import LearnedRule, bias_correction
from nfn_opt.optim.matrices import orthogonal_update
from nfn_opt.optim.mlp import MLPRule
from nfn_opt.optim.shell_fast_features import Piece
from nfn_opt.optim.shell_fast_forms import BOUND, Form, Output, Told, largest_output, with_bias
from nfn_opt.optim.shell_fast_stack import Stack


class MLPForm(Form):
    """:class:`MLPRule` as the fast step applies it.

    Args:
        rule: The rule.
    """

    rule_class = MLPRule
    methods: ClassVar = {"update": MLPRule, "body": MLPRule, "finish": LearnedRule, "_scaled": LearnedRule}

    def __init__(self, rule: MLPRule) -> None:
        super().__init__(rule)
        self.rule, self.config, self.over = rule, rule.config, rule.config.normalise_over
        self.layers = _scaled_layers(rule)

    @classmethod
    def bounded(cls, rule: MLPRule) -> bool:
        """See :class:`Form`."""
        bound = largest_output(rule.first, _scaled_layers(rule))[1]
        if rule.config.base == "adam":
            bound = bound + 1 / (1 - rule.config.second_moment_decay)
        exponents = [p.double().abs().reshape(len(p), -1).sum(1).max() for p in rule.step_size.parameters()]
        return float(bound + sum(exponents, bound.new_zeros(())).exp()) < BOUND

    def takes(self, segment: Segment) -> bool:
        """See :class:`Form`."""
        return segment.factored is not None or self.config.vectors == "learned"

    def add_base(self, stack: Stack, piece: Piece, scratch: Tensor) -> None:
        """Add the direction of Adam, if the rule corrects that."""
        config = self.config
        if config.base != "adam":
            return
        step = stack.step.repeat_interleave(stack.view.matrices).reshape(-1, 1, 1, 1)
        m_weight = bias_correction(config.momentum_decays[0], step, scratch.dtype)
        v_weight = bias_correction(config.second_moment_decay, step, scratch.dtype)
        torch.add(piece.second_moment, config.eps**2 * v_weight, out=scratch)
        scratch.rsqrt_().mul_(piece.momentum[:, :1]).mul_(v_weight.sqrt() / m_weight)
        piece.output.add_(scratch[:, 0])

    def finish(self, output: Output, told: Told) -> Sequence[Tensor]:
        """Directions made orthogonal and normalised where asked, times minus the step size."""
        config, stack, segment, direction = self.config, output.stack, output.segment, output.direction
        if config.orthogonal != "none" and segment.factored is not None:
            made = [orthogonal_update(one, config.orthogonal) for one in output.wholes(direction)]
            direction = torch.cat([stack.view.entries(one) for one in made])
        scale = (-self.rule.step_size(told.time)[segment.kind]).expand(len(direction), 1)
        if config.normalise_output:
            norm = torch.linalg.vector_norm(direction, dim=(1, 2)).unsqueeze(1)
            mean = stack.pooled(norm.square_() / (stack.shape[1] * stack.shape[2]))
            scale = scale * torch.rsqrt(mean + EPS)
        return output.wholes(direction.mul_(scale.unsqueeze(2)))


def _scaled_layers(rule: MLPRule) -> list[Tensor]:
    """The layers after the first, the last times the factor of the correction."""
    *layers, last = with_bias(rule.rest)
    return [*layers, last * (rule.config.correction if rule.beta is None else rule.beta)]
