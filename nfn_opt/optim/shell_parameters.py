"""The parameters of an optimizer, one record each, and the copies of a rule that update them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfn_opt.optim.rule import UpdateRule

Where = tuple[torch.device, torch.dtype]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of an optimizer.

    Attributes:
        key: Its name in the weight space.
        label: What messages call it.
        param: The parameter.
        group: Its parameter group.
    """

    key: str
    label: str
    param: Tensor
    group: Mapping[str, Any]

    def apply(self, update: Tensor) -> None:
        """Add the update, times the group's ``lr``, after weight decay."""
        lr, weight_decay = self.group["lr"], self.group["weight_decay"]
        if update.dtype == self.param.dtype and not isinstance(lr, Tensor):
            if weight_decay != 0:
                self.param.mul_(1 - lr * weight_decay)
            self.param.add_(update.to(self.param.device), alpha=lr)
        else:
            kept = self.param.to(update) * (1 - lr * weight_decay)
            self.param.copy_(kept + lr * update)


def entries(groups: Iterable[Mapping[str, Any]], named: bool) -> list[Entry]:
    """One record for each parameter.

    Args:
        groups: Parameter groups of an optimizer.
        named: Whether the keys are the names given with the parameters, or made up from their places.
    """
    found = []
    for i, group in enumerate(groups):
        names = group.get("param_names", [None] * len(group["params"]))
        for j, (name, param) in enumerate(zip(names, group["params"], strict=True)):
            place = f"parameter {j} of group {i} with shape {tuple(param.shape)}"
            key = name if named and name is not None else f"{i}.{j}"
            found.append(Entry(key, repr(name) if name is not None else place, param, group))
    return found


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state and arithmetic for a parameter: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def gradients(found: Sequence[Entry]) -> dict[str, Tensor]:
    """The gradients by key.

    Raises:
        NotImplementedError: If one is sparse.
    """
    grads = {}
    for entry in found:
        grad = entry.param.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise NotImplementedError(
                f"the gradient of {entry.label} is sparse, and learned rules need dense ones; make its "
                "embedding with sparse=False, or give the parameter to another optimizer"
            )
        grads[entry.key] = grad
    return grads


def not_finite(tensors: Mapping[str, Tensor]) -> set[str]:
    """Keys of the tensors that hold NaN or infinite values.

    One fast pass and one synchronisation for each device: a sum is not finite if an entry is not. It may also
    overflow, so the few tensors that it accuses are looked at again.
    """
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        by_device.setdefault(tensor.device, {})[key] = tensor.sum(dtype=compute_dtype(tensor.dtype)).float()
    accused: list[str] = []
    for sums in by_device.values():
        finite = torch.isfinite(torch.stack(list(sums.values()))).tolist()
        accused += [key for key, ok in zip(sums, finite, strict=True) if not ok]
    return {key for key in accused if not torch.isfinite(tensors[key]).all()}


class RuleBank:
    """A frozen copy of a rule, and further copies for the devices and dtypes that parameters have.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = copy.deepcopy(rule).requires_grad_(False)
        self._copies: dict[Where, UpdateRule] = {}

    def rule_for(self, where: Where) -> UpdateRule:
        """The rule on a device, in a dtype."""
        if where not in self._copies:
            self._copies[where] = copy.deepcopy(self.rule).to(*where)
        return self._copies[where]

    def buckets(self, found: Sequence[Entry], grads: Mapping[str, Tensor]) -> dict[Where, list[Entry]]:
        """The parameters that are updated together, by device and dtype.

        A coupled rule needs all parameters at once, those without gradient included, and takes the widest
        dtype and the first device. Any other rule takes those with a gradient, each with its own.
        """
        if self.rule.coupled:
            dtype = torch.float32
            for entry in found:
                dtype = torch.promote_types(dtype, entry.param.dtype)
            return {(found[0].param.device, dtype): list(found)}
        buckets: dict[Where, list[Entry]] = {}
        for entry in found:
            if entry.key in grads:
                where = (entry.param.device, compute_dtype(entry.param.dtype))
                buckets.setdefault(where, []).append(entry)
        return buckets
