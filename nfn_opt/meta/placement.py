"""Moving tasks to a device."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor

from nfn_opt.meta.tasks import Task

T = TypeVar("T", bound=Task)


def on_device(task: T, device: torch.device | str) -> T:
    """The same task with its data on another device.

    Tensors and devices among its attributes are replaced, also in containers and in tasks that it wraps. The
    random numbers that it draws do not change, for they come from the generator's device.

    Example:
        >>> from nfn_opt.meta import make_family
        >>> task = make_family("quadratic").sample(torch.Generator().manual_seed(0))
        >>> on_device(task, "meta").minimum.device
        device(type='meta')
    """
    moved = copy.copy(task)
    for name, value in vars(task).items():
        setattr(moved, name, _moved(value, torch.device(device)))
    return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, torch.device):
        return device
    if isinstance(value, Task):
        return on_device(value, device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(item, device) for item in value)
    return value
