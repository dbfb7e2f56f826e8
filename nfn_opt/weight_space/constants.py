"""What is known of tensors that depend neither on the model's inputs nor on its parameters.

A forward pass makes such constants: zeros that a recurrent layer starts from, masks, positions. All entries of a
*uniform* one are equal, so each operator that reads it may match it with other axes. And a branch on the value of a
constant can be followed, because the value is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from nfn_opt.weight_space.traced import TracedTensor, fresh

MOST_ENTRIES = 1 << 22
"""Constants with more entries are not computed."""


class Constants:
    """The constants of one forward pass."""

    def __init__(self) -> None:
        self._uniform: dict[int, Tensor] = {}
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        self._overwritten: set[int] = set()
        self._lent: dict[int, Tensor] = {}

    # Uniform tensors

    def is_uniform(self, tensor: Tensor) -> bool:
        """Whether all entries are equal."""
        return _memory(tensor) in self._uniform

    def add_uniform(self, tensors: Iterable[Tensor]) -> None:
        """Enter tensors whose entries are equal."""
        self._uniform.update((_memory(tensor), tensor) for tensor in tensors)

    def note_writing(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget what is known of the tensors that an operator writes into, and of their views."""
        for tensor in _written(func, args, kwargs):
            self._uniform.pop(_memory(tensor), None)

    def reader(
        self, lookup: Callable[[Tensor], TracedTensor], results: Iterable[Tensor]
    ) -> Callable[[Tensor], TracedTensor]:
        """How one operator looks up the axes of its arguments: a uniform one has new axes whenever it is read.

        A view of one keeps its axes, because it may be written into later.
        """
        seen: dict[int, TracedTensor] = {}
        views = {_memory(result) for result in results}

        def read(tensor: Tensor) -> TracedTensor:
            if not self.is_uniform(tensor) or _memory(tensor) in views:
                return lookup(tensor)
            if id(tensor) not in seen:
                seen[id(tensor)] = TracedTensor(fresh(tensor.shape))
            return seen[id(tensor)]

        return read

    # Values

    def lend(self, fake: Tensor, real: Tensor) -> None:
        """Enter the value of a tensor that is somebody else's, and may be read but not written into."""
        if real.numel() <= MOST_ENTRIES:
            self._lent[_memory(real)] = real
            self._values[id(fake)] = fake, real

    def value(self, tensor: Tensor) -> Tensor | None:
        """The constant itself, if it is known; of tensors made elsewhere, only numbers and masks are looked at."""
        plain = not isinstance(tensor, FakeTensor | torch.nn.Parameter) and not tensor.requires_grad
        if plain and tensor.dtype is torch.bool and tensor.dim():
            self.lend(tensor, tensor)
        if id(tensor) in self._values:
            real = self._values[id(tensor)][1]
            return None if _memory(real) in self._overwritten else real
        return tensor if plain and tensor.dim() == 0 else None

    def numbers(self, mask: Tensor) -> tuple[Tensor, ...] | None:
        """Where the entries of a mask are true, along each of its axes, if its value is known."""
        value = self.value(mask)
        if value is None:
            return None
        with _disable_current_modes():
            return value.nonzero(as_tuple=True)

    def evaluate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator gives for the values of its arguments, ``None`` if they are not known."""
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        values = {id(x): self.value(x) for x in given}
        written = [value for x in _written(func, args, kwargs) if (value := self.value(x)) is not None]
        unknown = any(value is None for value in values.values())
        lent = any(_memory(value) in self._lent for value in written)
        if unknown or lent or torch.Tag.nondeterministic_seeded in func.tags:
            self._overwritten.update(map(_memory, written))
            return None
        args, kwargs = tree_map_only(Tensor, lambda x: values[id(x)], (args, kwargs))
        with _disable_current_modes():
            return func(*args, **kwargs)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: list[Tensor]) -> None:
        """Do for the values of constants what an operator did for the fake tensors that stand for them."""
        if sum(result.numel() for result in results) > MOST_ENTRIES:
            return
        real = [x for x in tree_leaves(self.evaluate(func, args, kwargs)) if isinstance(x, Tensor)]
        for fake, value in zip(results, real, strict=False):
            self._values[id(fake)] = (fake, value)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments that an operator writes into."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (x for x in tree_leaves(given) if isinstance(x, Tensor))
