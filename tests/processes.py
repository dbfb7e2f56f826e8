"""Several processes of one group, for tests.

They are forked from a server that has imported PyTorch and this library, so they start in a fraction of a second, where
``torchrun`` imports both once for every process. What ``torchrun`` does besides is tested with ``torchrun`` itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

PRELOADED = ["torch._dynamo", "torch.distributed", "editors", "nfn_opt.meta", "nfn_opt.optim"]
"""What the server imports."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a process did.

    Attributes:
        value: What the function returned; None if it raised.
        output: What it printed.
        errors: What it wrote to standard error, and the traceback if it raised.
        raised: Whether it raised.
    """

    value: Any
    output: str
    errors: str
    raised: bool


def run_processes(function: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Outcome]:
    """Call a function in each process of a group, with the environment that ``torchrun`` gives to them.

    Args:
        function: Of a module that can be imported; called with the arguments.
        arguments: What can be pickled.
        size: Number of processes.

    Returns:
        The outcomes, in the order of the ranks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    pipes, workers = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        worker = context.Process(target=_call, args=(sender, variables, function, arguments), daemon=True)
        worker.start()
        sender.close()
        pipes.append(receiver)
        workers.append(worker)
    outcomes = []
    for pipe, worker in zip(pipes, workers, strict=True):
        assert pipe.poll(300), "a process has not ended within 5 minutes"
        outcomes.append(pipe.recv())
        worker.join()
    return outcomes


def results(outcomes: list[Outcome]) -> list[Any]:
    """What the processes returned; none may have raised."""
    for outcome in outcomes:
        assert not outcome.raised, outcome.errors
    return [outcome.value for outcome in outcomes]


def _call(
    sender: Any, variables: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    output, errors = io.StringIO(), io.StringIO()
    value, raised = None, False
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            value = function(*arguments)
        except BaseException:
            raised = True
            traceback.print_exc()
    sender.send(Outcome(value, output.getvalue(), errors.getvalue(), raised))
    sender.close()
