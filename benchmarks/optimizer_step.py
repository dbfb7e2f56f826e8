"""Time and memory of one optimizer step with learned rules, beside AdamW and Muon.

python -m benchmarks.optimizer_step [--quick] --out FOLDER

Weights and gradients are random; a step is the optimizer's alone. For each network all optimizers run in turn,
repetition by repetition, so that whatever else the machine does falls on all, and the median is told. Memory is that
of a fresh process for each optimizer: the growth of its peak resident size by two steps, less the state that stays.
The literal transcription is Celo2-base as its formulas read, one tensor and one feature at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.optimizer_step_literal import LiteralCelo2Base
from benchmarks.optimizer_step_networks import NETWORKS, with_gradients
from nfn_opt.meta.run_folder import environment
from nfn_opt.optim import LearnedOptimizer, MLPConfig, MLPRule, SpectralRule, UpdateRule

Step = Callable[[], Any]
Params = Sequence[nn.Parameter]


def muon(params: Params) -> Step:
    """Muon for matrices, fused AdamW for all else."""
    matrices = [p for p in params if p.dim() == 2]
    optimizers = [
        torch.optim.Muon(matrices, lr=1e-6),
        torch.optim.AdamW([p for p in params if p.dim() != 2], lr=1e-6, fused=True),
    ]
    return lambda: [optimizer.step() for optimizer in optimizers]


def learned(params: Params, rule: UpdateRule | str) -> Step:
    """A learned optimizer; its ``lr`` is small, so that weights stay as they are."""
    optimizer = LearnedOptimizer(params, rule, total_steps=1000)
    optimizer.param_groups[0]["lr"] = 1e-3
    return optimizer.step


OPTIMIZERS: dict[str, Callable[[Params], Step]] = {
    "AdamW, foreach": lambda params: torch.optim.AdamW(params, lr=1e-6, foreach=True).step,
    "AdamW, fused": lambda params: torch.optim.AdamW(params, lr=1e-6, fused=True).step,
    "Muon + AdamW": muon,
    "Celo2-base 2x8": lambda params: learned(params, MLPRule(MLPConfig.celo2_base())),
    "Celo2 2x8": lambda params: learned(params, MLPRule(MLPConfig.celo2())),
    "spectral": lambda params: learned(params, SpectralRule()),
    "default": lambda params: learned(params, "default"),
    "literal Celo2-base": lambda params: LiteralCelo2Base(params, MLPRule(MLPConfig.celo2_base())).step,
}

BASELINES = ("AdamW, foreach", "AdamW, fused", "Muon + AdamW", "literal Celo2-base")

LEFT_OUT = {
    ("ResNet-18", "Muon + AdamW"),  # torch's Muon takes no convolutions
    ("GPT-2 small", "literal Celo2-base"),  # its features would take 20 GB
    ("GPT-2 small", "Celo2 2x8"),  # making the embedding orthogonal alone takes minutes
}


def interleaved_ms(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median time of each step in milliseconds, the steps in turn, after two rounds to warm up."""
    times: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(repeats + 2):
        for label, step in steps.items():
            start = time.perf_counter()
            step()
            times[label].append(time.perf_counter() - start)
    return {label: 1e3 * statistics.median(values[2:]) for label, values in times.items()}


def measure(network: str, repeats: int, *, memory: bool) -> list[dict[str, Any]]:
    """One row for each optimizer on a network.

    The optimizers share the parameters of a small network; of a large one only one has its state at a time.
    """
    names = [name for name in OPTIMIZERS if (network, name) not in LEFT_OUT]
    params = with_gradients(network)
    count = sum(p.numel() for p in params)
    if count < 2e7:
        times = interleaved_ms({name: OPTIMIZERS[name](params) for name in names}, repeats)
    else:
        times = {name: interleaved_ms({name: OPTIMIZERS[name](params)}, repeats)[name] for name in names}
    del params
    rows = []
    for name in names:
        row = {"network": network, "parameters": count, "optimizer": name, "ms": times[name]}
        row["ns_per_parameter"] = 1e6 * times[name] / count
        if memory:
            row["extra_mb"], row["state_mb"] = _memory_in_subprocess(network, name)
        rows.append(row)
    return rows


def _memory_in_subprocess(network: str, optimizer: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.optimizer_step", "--memory", network, optimizer]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(shown[-2]), float(shown[-1])


def peak_growth(network: str, optimizer: str) -> tuple[float, float]:
    """Growth of this process's peak resident size by two steps, less the state, and the state, in MB."""
    small = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))]
    for p in small:
        p.grad = torch.ones_like(p)
    OPTIMIZERS[optimizer](small)()  # what is loaded and started at the first step of any size
    params = with_gradients(network)
    step = OPTIMIZERS[optimizer](params)
    before, storages = _resident("VmRSS"), {p.untyped_storage().data_ptr() for p in params}
    step()
    step()
    peak = _resident("VmHWM")
    state = 1e-6 * _held(step, storages)
    return peak - before - state, state


def _held(step: Step, known: set[int]) -> int:
    """Bytes of the tensors in the states of an optimizer's step."""
    owners = getattr(step, "__self__", None)
    closed = step.__closure__ if hasattr(step, "__closure__") else None
    optimizers = [owners] if owners is not None else [o for c in closed or () for o in c.cell_contents]
    leaves = torch.utils._pytree.tree_leaves([dict(o.state) for o in optimizers if o is not None])
    found = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in leaves if torch.is_tensor(t)
    }
    return sum(size for place, size in found.items() if place not in known)


def _resident(field: str) -> float:
    """A line of this process's status in MB: ``VmRSS`` resident now, ``VmHWM`` its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1.024e-3


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| network (parameters) | optimizer | step ms | ns per parameter | extra peak memory MB | state MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["optimizer"] if row["optimizer"] in BASELINES else f"**{row['optimizer']}**"
        memory = f"{row['extra_mb']:.0f} | {row['state_mb']:.0f}" if "extra_mb" in row else " | "
        lines.append(
            f"| {row['network']} ({row['parameters']:,}) | {name} | {row['ms']:.3g} | "
            f"{row['ns_per_parameter']:.3g} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time for each parameter against the size of the network, one line for each optimizer."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for name in OPTIMIZERS:
        own = [row for row in rows if row["optimizer"] == name]
        style = "--" if name in BASELINES else "-"
        ax.plot(
            [row["parameters"] for row in own],
            [row["ns_per_parameter"] for row in own],
            style,
            marker="o",
            markersize=4,
            label=name,
        )
    ax.set(xscale="log", yscale="log", xlabel="parameters of the network")
    ax.set_ylabel("optimizer step, ns per parameter (median)")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all networks and write the table, the picture and the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, the MLPs only")
    parser.add_argument("--out", type=Path, default=Path("runs/optimizer_step"), help="folder to write to")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="only these")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        print(*peak_growth(*options.memory))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    start, rows = time.perf_counter(), []
    names = options.networks or (list(NETWORKS)[:3] if options.quick else list(NETWORKS))
    for name in names:
        repeats = 5 if options.quick or name == "GPT-2 small" else 25
        rows += measure(name, repeats, memory=not options.no_memory)
        print(table([row for row in rows if row["network"] == name]), flush=True)
    (options.out / "optimizer_step.md").write_text(table(rows))
    draw(rows, options.out / "optimizer_step.png")
    measures = ("ms", "ns_per_parameter", "extra_mb", "state_mb")
    metrics = {f"{r['network']}/{r['optimizer']}/{key}": r[key] for r in rows for key in measures if key in r}
    result = {
        "config": {"quick": options.quick, "networks": names, "seed": 0},
        "environment": {**environment(), "load": os.getloadavg()},
        "seconds": time.perf_counter() - start,
        "metrics": metrics,
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
