"""Time of one training step of one network with an ordinary optimizer, as a user's script would take it."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn

from nfn_opt.meta import Task
from nfn_opt.meta.trees import map_data
from nfn_opt.optim import LearnedOptimizer, UpdateRule

Named = list[tuple[str, nn.Parameter]]
Step = Callable[[], Any]


def step_milliseconds(task: Task, rules: Mapping[str, UpdateRule], repeats: int = 30) -> dict[str, float]:
    """Time of a whole training step (loss, gradient, update) with each optimizer, the optimizers in turn.

    It is the shortest of all, which whatever else the machine does disturbs least.

    Args:
        task: The inner problem.
        rules: Learned rules by their labels; the hand-designed optimizers are always measured.
        repeats: Steps that are measured, after five that are not.

    Returns:
        In ms, by name.
    """
    makers: dict[str, Callable[[Named], Iterable[torch.optim.Optimizer]]] = {
        "adam": lambda p: [torch.optim.Adam(p, lr=1e-6)],
        "sgd": lambda p: [torch.optim.SGD(p, lr=1e-6, momentum=0.9)],
        "adamw": lambda p: [torch.optim.AdamW(p, lr=1e-6)],
        "nadam": lambda p: [torch.optim.NAdam(p, lr=1e-6)],
        "lion": lambda p: [pytorch_optimizer.Lion([tensor for _, tensor in p], lr=1e-6)],
        "muon": _muon,
    }
    for label, rule in rules.items():
        makers[label] = functools.partial(_learned, rule=rule)
    steps = {name: training_step(task, make) for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 5):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * min(values[5:]) for name, values in times.items()}


def training_step(task: Task, make: Callable[[Named], Iterable[torch.optim.Optimizer]]) -> Step:
    """One step of training a network of a task, to be called again and again."""
    generator = torch.Generator().manual_seed(0)
    params = {name: nn.Parameter(p[0]) for name, p in task.init(generator, 1).items()}
    optimizers = list(make(list(params.items())))

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = _backward(task, params, task.batch(generator, 1))
        for optimizer in optimizers:
            optimizer.step(lambda: loss)

    return step


def _backward(task: Task, params: Mapping[str, nn.Parameter], batch: Any) -> Any:
    if task.traceable:
        loss = task.loss(params, map_data(lambda tensor: tensor[0], batch))
        loss.backward()
        return loss.detach()
    found = task.losses_and_grads({name: p.detach()[None] for name, p in params.items()}, batch)
    assert found is not None
    losses, grads = found
    for name, p in params.items():
        p.grad = grads[name][0]
    return losses[0]


def _muon(params: Named) -> list[torch.optim.Optimizer]:
    """Torch's own for matrices, kernels of convolutions as matrices too; AdamW for the rest."""
    matrices = [p for _, p in params if p.dim() == 2]
    others: list[Tensor] = [p for _, p in params if p.dim() < 2]
    kernels = [p for _, p in params if p.dim() > 2]
    made: list[torch.optim.Optimizer] = []
    if matrices or kernels:
        made.append(_FlatMuon(matrices, kernels))
    if others:
        made.append(torch.optim.AdamW(others, lr=1e-6))
    return made


class _FlatMuon(torch.optim.Muon):
    """Muon that sees tensors of more than two axes as matrices that share their memory."""

    def __init__(self, matrices: list[Any], kernels: list[Any]) -> None:
        self._kernels = [(kernel, nn.Parameter(kernel.detach().flatten(1))) for kernel in kernels]
        super().__init__([*matrices, *(flat for _, flat in self._kernels)], lr=1e-6, weight_decay=0.0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for kernel, _ in self._kernels:
            kernel.grad = None

    def step(self, closure: Any = None) -> Any:
        for kernel, flat in self._kernels:
            flat.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        return super().step(closure)


def _learned(params: Named, rule: UpdateRule) -> list[torch.optim.Optimizer]:
    options: dict[str, Any] = {}
    if "total_steps" in inspect.signature(LearnedOptimizer).parameters:
        options["total_steps"] = 1000
    return [LearnedOptimizer(params, rule=rule, **options)]
