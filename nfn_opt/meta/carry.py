"""What meta-training remembers of the inner problems from one outer step to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nfn_opt.meta.tasks import Params
from nfn_opt.meta.trees import Tree, flatten_tree, tree_map, unflatten_tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carry:
    """``n`` inner problems in the middle of their training; tensors only, none with a graph.

    Attributes:
        params: Their parameters, ``{name: (n, *shape)}``.
        state: State of the rule, leaves with a leading axis ``n``.
        step: Number of updates made by each, int64, shape (n,).
        horizon: Number of updates at which each ends, int64, shape (n,).
        scale: Reparametrisation of each, see :class:`Reparametrization`; empty if there is none.
        shift: What is added to the scaled parameters of each, ``{name: (n, *shape)}``; empty if nothing is.
        finished: How many inner problems have reached their horizon so far, 0-d int64.
        dropped: How many were given up because they were not finite, 0-d int64.
        extra: What an estimator remembers beyond that.
    """

    params: Params
    state: Tree
    step: Tensor
    horizon: Tensor
    scale: Params = dataclasses.field(default_factory=dict)
    shift: Params = dataclasses.field(default_factory=dict)
    finished: Tensor = dataclasses.field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    dropped: Tensor = dataclasses.field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    extra: Tree = dataclasses.field(default_factory=dict)

    def tree(self) -> Tree:
        """All fields as one tree, from which ``Carry(**tree)`` makes a carry again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors in one flat dict, to be stored.

        Example:
            >>> zero = torch.zeros(1, dtype=torch.int64)
            >>> carry = Carry(params={"w": zero}, state={"m": {"w": zero}}, step=zero, horizon=zero)
            >>> sorted(carry.tensors())
            ['dropped', 'finished', 'horizon', 'params/w', 'state/m/w', 'step']
        """
        return flatten_tree(self.tree())

    def restored(self, tensors: Mapping[str, Tensor]) -> Carry:
        """A carry of the structure of this one with the values of stored tensors.

        Raises:
            ValueError: If a tensor is missing, unknown, or of another shape or type.
        """
        own = self.tensors()
        problems = [f"{name} is missing" for name in own.keys() - tensors.keys()]
        problems += [f"{name} is unknown" for name in tensors.keys() - own.keys()]
        for name in own.keys() & tensors.keys():
            mine, stored = own[name], tensors[name]
            if (mine.shape, mine.dtype) != (stored.shape, stored.dtype):
                problems.append(
                    f"{name} is {stored.dtype} {tuple(stored.shape)}, "
                    f"expected {mine.dtype} {tuple(mine.shape)}"
                )
        if problems:
            raise ValueError(
                f"the stored inner problems do not fit: {'; '.join(sorted(problems))}; "
                "they are of another task or rule"
            )
        tree = unflatten_tree({name: tensors[name].to(tensor.device) for name, tensor in own.items()})
        return dataclasses.replace(
            self, **{key: _merged(getattr(self, key), value) for key, value in tree.items()}
        )

    def keep(self, chosen: Tensor) -> Carry:
        """The inner problems where ``chosen``, bool (n,), is true; counters stay."""
        return dataclasses.replace(self, **tree_map(lambda tensor: tensor[chosen], self._problems()))

    def repeated(self, times: int) -> Carry:
        """All inner problems ``times`` times over; counters stay."""
        return dataclasses.replace(self, **tree_map(lambda one: torch.cat([one] * times), self._problems()))

    def replaced(self, where: Tensor, other: Carry) -> Carry:
        """The inner problems of ``other`` where ``where``, bool (n,), is true; counters stay."""

        def select(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(where.reshape(-1, *(1,) * (mine.dim() - 1)), theirs, mine)

        return dataclasses.replace(self, **tree_map(select, self._problems(), other._problems()))

    def _problems(self) -> Tree:
        """What belongs to each inner problem: leaves with a leading axis."""
        parts = ("params", "state", "step", "horizon", "scale", "shift", "extra")
        return {key: getattr(self, key) for key in parts}


def _merged(structure: Any, values: Any) -> Any:
    """``values`` with the empty dicts of ``structure``, which a flat dict cannot hold."""
    if not isinstance(structure, Mapping):
        return values
    return {key: _merged(part, values.get(key, {})) for key, part in structure.items()}
