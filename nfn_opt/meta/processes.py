"""The processes that share a meta-training run, as ``torchrun`` starts them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Value = TypeVar("Value")

TIMEOUT = datetime.timedelta(hours=2)
"""How long a process waits for the others, which may be compiling or evaluating."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of a run; with one process, every exchange is the identity.

    What is exchanged is small, outer gradients above all. It goes over the CPU (gloo), wherever the inner
    problems are computed.

    Attributes:
        rank: Number of this process, from 0; process 0 writes all files.
        size: Number of processes.

    Example:
        >>> alone = Processes()
        >>> alone.sum(torch.ones(2)), alone.gathered("x")
        (tensor([1., 1.]), ['x'])
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether piece ``index`` of the work is this process's."""
        return index % self.size == self.rank

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the CPU tensors of all processes, which have one shape."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, in their order, in each of them."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def shared(self, value: Value) -> Value:
        """The value of process 0, in all processes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_main(self, action: Callable[[], object]) -> None:
        """Let the main process do something, and wait for it; an error is raised in all."""
        error: Exception | None = None
        if self.main:
            try:
                action()
            except (OSError, ValueError, ModuleNotFoundError) as raised:
                error = raised
        error = self.shared(error)
        if error is not None:
            raise error

    def device(self, name: str) -> str:
        """The device of this process: with several, ``"cuda"`` is another GPU in each on one machine.

        Raises:
            ValueError: If there is no such device, or PyTorch cannot use it.
        """
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"device is {name!r}, which cannot be used here ({reason}); expected 'cpu', or 'cuda' on a machine "
                "with a GPU that this PyTorch supports"
            ) from error
        if name != "cuda" or self.size == 1:
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` has started, for as long as the context lasts.

    A process that was not started so is alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # On one machine the store outlives a restart, and with it the addresses of processes that are gone.
        # (On several, restarts are counted on each machine apart, and cannot tell one attempt from another.)
        store = dist.PrefixStore(f"attempt {_restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield Processes(rank, size)
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether ``torchrun`` has started this process again after a failure."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
