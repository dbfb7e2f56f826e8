"""The step whose time is measured trains the network, with every optimizer."""

from __future__ import annotations

import torch

from benchmarks.learned_optimizers_time import step_milliseconds, training_step
from nfn_opt.meta import ClassificationTask
from nfn_opt.optim import make_rule


def task() -> ClassificationTask:
    inputs = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    return ClassificationTask(network, inputs, torch.arange(8) % 2, batch_size=4)


def test_every_optimizer_is_measured() -> None:
    times = step_milliseconds(task(), {"mine": make_rule("mlp", hidden=(4,))}, repeats=1)
    assert set(times) == {"adam", "sgd", "adamw", "nadam", "lion", "muon", "mine"}
    assert all(value > 0 for value in times.values())


def test_a_step_moves_the_parameters() -> None:
    seen: list[torch.nn.Parameter] = []

    def make(params: list[tuple[str, torch.nn.Parameter]]) -> list[torch.optim.Optimizer]:
        seen.extend(p for _, p in params)
        return [torch.optim.SGD(seen, lr=0.1)]

    step = training_step(task(), make)
    before = [p.detach().clone() for p in seen]
    step()
    assert all(not torch.equal(p, old) for p, old in zip(seen, before, strict=True))
