"""How each ATen operator treats the axes of its arguments: the rules of the symmetry tracer.

A rule gets the traced arguments and says which axes the operator combines, which it keeps, and which it fixes.
Each rule is sound on its own: with the axes unified and fixed as it says, permuting the arguments permutes the
result. The operators are those that the dispatcher shows below autograd, where composite ones are already taken
apart (``linear`` is ``t`` and ``addmm``; ``einsum`` is ``permute``, ``reshape`` and ``bmm``).
"""

from __future__ import annotations

from typing import Any

import torch

from nfn_opt.weight_space.operators import axiswise, elementwise, pieces, products, views  # noqa: F401  (register rules)
from nfn_opt.weight_space.operators.axiswise import batch_norm
from nfn_opt.weight_space.operators.call import RULES, TREATMENTS, Call, Results, Rule, aten
from nfn_opt.weight_space.operators.elementwise import constant, identity, pointwise
from nfn_opt.weight_space.operators.table import operator_page, operator_table
from nfn_opt.weight_space.operators.views import reshape
from nfn_opt.weight_space.traced import TracedAxis, fresh

__all__ = [
    "CUTS",
    "KEEP_UNIFORM",
    "RULES",
    "TREATMENTS",
    "Call",
    "Results",
    "Rule",
    "batch_norm",
    "constant",
    "find_rule",
    "operator_page",
    "operator_table",
    "unknown",
]

CUTS = (pieces.piece, pieces.split, pieces.picked, pieces.padding)
"""Rules of operators that may leave parts of an axis out."""
KEEP_UNIFORM = (pointwise, identity, reshape)
"""Rules of operators that give equal entries for equal entries."""


def find_rule(func: Any) -> Rule | None:
    """The rule of an operator; one that works in place has the rule of its twin that does not."""
    packet = getattr(func, "overloadpacket", func)
    if packet in RULES or getattr(func, "namespace", "") != "aten":
        return RULES.get(packet)
    twin = getattr(aten, packet.__name__.removesuffix("_"), packet)
    if twin in RULES:
        return RULES[twin]
    tagged = (func, *(getattr(twin, name) for name in twin.overloads() if twin is not packet))
    return pointwise if any(torch.Tag.pointwise in overload.tags for overload in tagged) else None


def unknown(call: Call) -> list[TracedAxis]:
    """An operator without a rule: everything that it touches keeps its order."""
    why = f"{call.name} is not understood"
    call.fix_everything(why)
    return fresh(call.out.shape, why) if call.results else []
