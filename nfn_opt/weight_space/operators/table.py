"""The table of supported operators, made from the rules themselves."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import torch

from nfn_opt.weight_space.operators.call import RULES, aten

_HEAD = """\
    # Supported operators

    Made by `python -m nfn_opt.weight_space.operators > docs/operators.md`, from the rules themselves.

    `WeightSpace.from_module` runs a model once and watches the ATen operators that PyTorch's dispatcher sees
    below autograd. Composite operators, and whole modules, are taken apart before: `linear` is `t` and `addmm`,
    `einsum` is `permute`, `view` and `bmm`, attention and recurrent layers are products, pieces and operators
    that work entry by entry. So it does not matter how a model is written, and this table is shorter than
    PyTorch's list of functions. An operator that works in place (`relu_`) or into a buffer (`out=`) has the rule
    of its twin that does not.

    An operator that is **not** in the table *fixes* every axis of the tensors that it is given: they count as
    ordered from then on, an `UnknownOperatorWarning` names the operator and the module, and `print(space)` shows
    it beside each axis that it fixed. A symmetry may so be missed, but none is invented, and the axes that it
    does not touch keep theirs. Where a model cannot be traced at all, because its path depends on the values of
    its data or because it computes outside of PyTorch, or where too much is missed, describe it by hand with
    `WeightSpace.from_axes`: the names of the axes of every parameter. `space.verify(model, inputs)` checks either
    kind of space on the model itself.

    Known to be missed: what is packed as the *minor* factor of an axis, as queries, keys and values are by
    `qkv.view(batch, tokens, heads, width, 3)`. They then have the symmetry of their width in common; packed as a
    factor before the width, each may have its own.
"""


def operator_table() -> str:
    """All operators that have a rule and what each rule says, as a Markdown table.

    Example:
        >>> "| Swap the two axes. | `t` |" in operator_table()
        True
    """
    operators: dict[str, list[str]] = {}
    for packet, rule in RULES.items():
        what = (rule.__doc__ or "").strip().splitlines()[0]
        operators.setdefault(what.replace("``", "`").replace("|", r"\|"), []).append(_name(packet))
    rows = [f"| {what} | {_listed(names)} |" for what, names in operators.items()]
    return "\n".join(["| What happens to the axes | Operators |", "|---|---|", *rows])


def operator_page() -> str:
    """The page ``docs/operators.md``."""
    tagged = (
        "Besides, all operators that PyTorch tags as pointwise work entry by entry with broadcasting, so axes that "
        f"meet become one: {_listed(_tagged_pointwise())}."
    )
    return "\n".join([dedent(_HEAD), operator_table(), "", tagged]) + "\n"


def _tagged_pointwise() -> Iterator[str]:
    """The public operators with the tag and without a rule, those that work in place and gradients left out."""
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        base = rest.partition(".")[0]
        if namespace != "aten" or base.startswith("_") or base.endswith(("_", "_backward")):
            continue
        packet = getattr(aten, base)
        overloads = (getattr(packet, overload) for overload in packet.overloads())
        if packet not in RULES and any(_is_pointwise(overload) for overload in overloads):
            yield base


def _is_pointwise(overload: Any) -> bool:
    returns = [str(result.type) for result in overload._schema.returns]
    return torch.Tag.pointwise in overload.tags and "Tensor" in returns


def _name(packet: object) -> str:
    return str(packet).removeprefix("aten.")


def _listed(names: list[str] | Iterator[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(set(names)))
