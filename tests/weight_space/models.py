"""Small models and shorthands for the tests of weight spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry, WeightSpace

Module = TypeVar("Module", bound=nn.Module)


class Program(nn.Module):
    """A model whose forward pass is a function of its sub-modules, parameters and buffers, and of the inputs."""

    def __init__(self, function: Callable[..., Any], **members: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, nn.Module | nn.Parameter):
                setattr(self, name, member)
            else:
                self.register_buffer(name, member)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def two_layers(function: Callable[..., Any], **members: nn.Module | Tensor) -> Program:
    """A program with a layer ``a`` from 3 to 6 and a layer ``b`` from 6 to 2; the hidden group, if found, is 6."""
    return randomised(Program(function, a=nn.Linear(3, 6), b=nn.Linear(6, 2), **members))


def between(*modules: nn.Module) -> nn.Sequential:
    """Modules between a linear layer from 3 to 6 and one from 6 to 2."""
    return randomised(nn.Sequential(nn.Linear(3, 6), *modules, nn.Linear(6, 2)))


def randomised(model: Module, seed: int = 0) -> Module:
    """The model with random parameters and buffers, so that no two neurons are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal entries of a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def views(space: WeightSpace) -> list[str]:
    """Each parameter as ``name (axis, axis)``."""
    return [str(spec) for spec in space.parameters]


def check(model: nn.Module, inputs: Any, symmetry: Symmetry = "hidden") -> WeightSpace:
    """The weight space of a randomised model, verified on it."""
    model = randomised(model)
    space = WeightSpace.from_module(model, inputs, symmetry=symmetry)
    assert space.verify(model, inputs) < 1e-10
    return space
