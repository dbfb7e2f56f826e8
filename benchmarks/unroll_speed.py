"""Speed of differentiable unrolls beside ``higher`` and ``torchopt``, and of the meta-training loop.

python -m benchmarks.unroll_speed [--quick] [--threads 1 2] --out FOLDER

Unroll: 20 steps of SGD with momentum on an MLP 64-32-10 with minibatches of 64 digits, and the exact (second-order)
gradient of the mean final loss with respect to one learning rate, for 1 and 16 tasks. All run in turn in one process,
repetition by repetition, on the same minibatches, and must agree on the gradient to 1e-5. Processor time is that of all
threads: other work on the machine stretches the elapsed time more than it.

Loop: outer steps of truncated persistent evolution strategies for the Celo2 rule with 2 hidden layers of 8, with and
without its orthogonalisation, with 8 antithetic tasks on the same MLP, pieces of 50 updates: 800 inner steps an outer
step. Everything of an outer step counts but the outer optimizer: minibatches, perturbations, problems drawn anew,
gradient.

Each number of threads has a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.data import load_images
from nfn_opt.meta import (
    InnerStep,
    MLPClassification,
    PersistentES,
    Reparametrization,
    TaskWrapper,
    init_state,
    unroll,
)
from nfn_opt.meta.run_folder import environment
from nfn_opt.meta.tasks import Params
from nfn_opt.optim import MLPConfig, MLPRule, UpdateRule, make_rule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # written for older interpreters
    import higher
    import torchopt

STEPS, LR, MOMENTUM, TASKS = 20, 0.1, 0.9, (1, 16)
TOLERANCE = 1e-5

RULES = {"Celo2": MLPConfig.celo2(), "Celo2-base": MLPConfig.celo2_base()}

ELSEWHERE = {
    "learned_optimization, Celo2 2x8 (public, JAX)": "1,660 to 1,920",
    "lean JAX transcription of the same": "9,890",
}
"""Inner steps per second of other programs, measured before, on another machine of the same kind with 2 threads."""


class Recorded(TaskWrapper):
    """A task whose minibatches were drawn beforehand."""

    def __init__(self, task: MLPClassification, batches: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__(task)
        self.batches = iter(batches)

    def batch(self, generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        """The next minibatch."""
        return next(self.batches)


@dataclass(frozen=True)
class Problem:
    """Inner problems: the first parameters of all, a minibatch of each for every step, and a last one."""

    task: MLPClassification
    params: Params
    batches: list[tuple[Tensor, Tensor]]

    @classmethod
    def draw(cls, n: int) -> Problem:
        """``n`` problems from a fixed seed."""
        task = MLPClassification(load_images("digits"), hidden=(32,), batch_size=64)
        generator = torch.Generator().manual_seed(0)
        params = task.init(generator, n)
        return cls(task, params, [task.batch(generator, n) for _ in range(STEPS + 1)])

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    def network(self, i: int) -> nn.Module:
        """Network ``i`` as a module."""
        network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        network.load_state_dict({name: p[i] for name, p in self.params.items()})
        return network

    def loss(self, network: nn.Module, i: int, t: int) -> Tensor:
        """Its loss on minibatch ``t``."""
        inputs, labels = self.batches[t]
        return F.cross_entropy(network(inputs[i]), labels[i])


def with_higher(problem: Problem) -> float:
    """The gradient with respect to the learning rate, by ``higher``, task by task."""
    lr = torch.tensor(LR, requires_grad=True)
    losses = []
    for i in range(len(problem)):
        network = problem.network(i)
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
        with higher.innerloop_ctx(network, optimizer, override={"lr": [lr]}) as (patched, inner):
            for t in range(STEPS):
                inner.step(problem.loss(patched, i, t))
            losses.append(problem.loss(patched, i, STEPS))
    return torch.autograd.grad(torch.stack(losses).mean(), lr)[0].item()


def with_torchopt(problem: Problem) -> float:
    """The same by ``torchopt``, task by task."""
    lr = torch.tensor(LR, requires_grad=True)
    losses = []
    for i in range(len(problem)):
        network = problem.network(i)
        inner = torchopt.MetaSGD(network, lr=lr, momentum=MOMENTUM)  # type: ignore[arg-type]  # takes tensors, too
        for t in range(STEPS):
            inner.step(problem.loss(network, i, t))
        losses.append(problem.loss(network, i, STEPS))
    return torch.autograd.grad(torch.stack(losses).mean(), lr)[0].item()


def with_unroll(problem: Problem, rule: UpdateRule, inner: InnerStep) -> float:
    """The same by this library, all tasks at once."""
    task = Recorded(problem.task, problem.batches)
    end = unroll(
        rule,
        task,
        problem.params,
        init_state(rule, task, problem.params),
        steps=STEPS,
        start_step=0,
        generator=torch.Generator(),
        differentiable=True,
        second_order=True,
        inner=inner,
    )
    loss = problem.task.losses(end.params, problem.batches[STEPS]).mean()
    by_logarithm = torch.autograd.grad(loss, rule.get_parameter("log_lr"))[0].item()
    return by_logarithm / LR


def measure_unroll(n: int, repeats: int, *, compiled: bool) -> dict[str, Any]:
    """Median times of all in ms, elapsed and of the processor, their gradients, and seconds of the first call."""
    problem, rule = Problem.draw(n), make_rule("sgd", lr=LR, momentum=MOMENTUM)
    calls: dict[str, Callable[[], float]] = {
        "higher": functools.partial(with_higher, problem),
        "torchopt": functools.partial(with_torchopt, problem),
    }
    for label in ("eager", "compiled") if compiled else ("eager",):
        inner = InnerStep(
            rule, problem.task, compiled=label == "compiled", differentiable=True, second_order=True
        )
        calls[f"ours, {label}"] = functools.partial(with_unroll, problem, rule, inner)
    first: dict[str, float] = {}
    gradients: dict[str, float] = {}
    for label, call in calls.items():
        start = time.perf_counter()
        gradients[label] = call()
        first[label] = time.perf_counter() - start
    for label, value in gradients.items():
        if abs(value - gradients["higher"]) > TOLERANCE * max(1.0, abs(gradients["higher"])):
            raise RuntimeError(
                f"the gradient of {label} is {value}, expected {gradients['higher']} of higher"
            )
    elapsed, processor = interleaved_ms(calls, repeats)
    return {
        label: {
            "ms": elapsed[label],
            "processor_ms": processor[label],
            "first_s": first[label],
            "gradient": gradients[label],
        }
        for label in calls
    }


def interleaved_ms(
    calls: Mapping[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median elapsed and processor time of each call in ms, the calls in turn, after two rounds to warm up."""
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in calls}
    for _ in range(repeats + 2):
        for label, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            times[label].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = (
        {label: 1e3 * statistics.median(t[i] for t in v[2:]) for label, v in times.items()} for i in (0, 1)
    )
    elapsed, processor = medians
    return elapsed, processor


def measure_loop(config: MLPConfig, repeats: int, *, compiled: bool) -> dict[str, float]:
    """Median time of an outer step in ms, elapsed and of the processor, and inner steps per second."""
    estimator = PersistentES(
        tasks=8,
        truncation=50,
        horizon=2000,
        shortest_horizon=100,
        reparametrization=Reparametrization(level="global"),
        compiled=compiled,
    )
    task = MLPClassification(load_images("digits"), hidden=(32,), batch_size=64)
    generator = torch.Generator().manual_seed(0)
    rule = MLPRule(config, generator=generator)
    carry = estimator.start(rule, task, generator)
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter(), time.process_time()
        rule.zero_grad()
        _, carry = estimator.step(rule, task, carry, generator)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    seconds = statistics.median(t[0] for t in times[2:])
    return {
        "ms": 1e3 * seconds,
        "processor_ms": 1e3 * statistics.median(t[1] for t in times[2:]),
        "inner_steps_per_s": 2 * estimator.tasks * estimator.truncation / seconds,
        "first_s": times[0][0],
    }


def measure(quick: bool) -> dict[str, Any]:
    """All measurements with this process's number of threads."""
    kinds = ("eager",) if quick else ("eager", "compiled")
    return {
        "unroll": {str(n): measure_unroll(n, 5 if quick else 25, compiled=not quick) for n in TASKS},
        "loop": {
            f"{rule}, {kind}": measure_loop(config, 3 if quick else 30, compiled=kind == "compiled")
            for rule, config in RULES.items()
            for kind in kinds
        },
        "load": os.getloadavg()[0],
    }


def _in_subprocess(threads: int, quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.unroll_speed", "--worker", str(threads)]
    done = subprocess.run(
        command + ["--quick"] * quick,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: Mapping[str, Any]) -> str:
    """The results as two Markdown tables."""
    lines = [
        "| threads | tasks | who | ms | processor ms | higher / it | torchopt / it | first call s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for threads, result in found.items():
        for n, row in result["unroll"].items():
            for who, one in row.items():
                ratios = [f"{row[other]['ms'] / one['ms']:.1f}" for other in ("higher", "torchopt")]
                lines.append(
                    f"| {threads} | {n} | {who} | {one['ms']:.1f} | {one['processor_ms']:.1f} | "
                    f"{' | '.join(ratios)} | {one['first_s']:.1f} |"
                )
    lines += [
        "",
        "| loop | threads | ms per outer step | processor ms | inner steps per second | first step s |",
        "|---|---|---|---|---|---|",
    ]
    for threads, result in found.items():
        for kind, one in result["loop"].items():
            lines.append(
                f"| {kind} | {threads} | {one['ms']:.1f} | {one['processor_ms']:.1f} | "
                f"{one['inner_steps_per_s']:,.0f} | {one['first_s']:.1f} |"
            )
    lines += [f"| {who}, measured elsewhere | 2 | | | {speed} | |" for who, speed in ELSEWHERE.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure with each number of threads and write the tables and the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path("runs/unroll_speed"), help="folder to write to")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure with"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch.set_num_threads(options.worker)
        print(json.dumps(measure(options.quick)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = {str(threads): _in_subprocess(threads, options.quick) for threads in options.threads}
    metrics = {
        f"{threads} threads/{part}/{name}/{key}": value
        for threads, result in found.items()
        for part, key, name, value in _flat(result)
    }
    result = {
        "config": {"quick": options.quick, "seed": 0, "steps": STEPS, "lr": LR, "momentum": MOMENTUM},
        "environment": {**environment(), "load": {k: r["load"] for k, r in found.items()}},
        "seconds": time.perf_counter() - start,
        "metrics": metrics,
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=2))
    (options.out / "unroll_speed.md").write_text(table(found))
    print(table(found))


def _flat(result: Mapping[str, Any]) -> list[tuple[str, str, str, float]]:
    rows = [("loop", key, kind, v) for kind, one in result["loop"].items() for key, v in one.items()]
    for n, row in result["unroll"].items():
        rows += [(f"unroll of {n}", key, who, v) for who, one in row.items() for key, v in one.items()]
    return rows


if __name__ == "__main__":
    main()
