"""The parameters of an optimizer, one record each, and their gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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


def gradients(found: Sequence[Entry], *, negative: bool = False) -> dict[str, Tensor]:
    """The gradients by key.

    Args:
        found: Parameters that have one.
        negative: Whether to turn their sign, for a loss that is to grow.

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
        grads[entry.key] = -grad if negative else grad
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
