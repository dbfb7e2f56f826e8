"""Time and memory of the NF-Layers beside those of the ``nfn`` package, in one process on the same features.

python -m benchmarks.layer_speed [--quick] --out FOLDER

Both packages run in turn, repetition by repetition, so that whatever else the machine does falls on both. Forward is
without gradients; forward and backward gives gradients of weights and of inputs, as in the middle of a network, from
given gradients of the outputs. Memory is the growth of the peak resident size of a fresh process for each layer, by
its first forward and backward pass. Compiled is our layer alone, beside nfn's as it is.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from nfn_opt.layers import NFAttention, NFLinear
from nfn_opt.meta.run_folder import environment
from nfn_opt.weight_space import Features, Symmetry, WeightSpace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package uses names that newer libraries have deprecated
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import HNPLinear, NPAttention, NPLinear

LAYERS = ("NP", "HNP", "NP attention")
PACKAGES = ("nfn", "ours")
MEASURES = ("forward", "forward_backward", "bf16_forward", "compiled_forward", "peak")
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")


def mlp(*widths: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A fully connected network and the shape of its inputs."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1]), (1, widths[0])


def cnn() -> tuple[nn.Module, tuple[int, ...]]:
    """The network of the Small CNN Zoo: three convolutions of 16 channels, global average, 10 classes."""
    convolutions: list[nn.Module] = []
    for channels in (1, 16, 16):
        convolutions += [nn.Conv2d(channels, 16, 3), nn.ReLU()]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return network, (1, 1, 12, 12)


CASES: dict[str, tuple[tuple[nn.Module, tuple[int, ...]], int, int, tuple[str, ...]]] = {
    "SIREN 2-32-32-1": (mlp(2, 32, 32, 1), 64, 64, LAYERS),
    "SIREN 2-32-32-3": (mlp(2, 32, 32, 3), 32, 256, LAYERS),
    "CNN 1-16-16-16-10": (cnn(), 8, 64, LAYERS),
    "MLP 784-128-128-10": (mlp(784, 128, 128, 10), 1, 32, ("NP", "NP attention")),
    "MLP 64-32-10": (mlp(64, 32, 10), 8, 32, LAYERS),
}
"""Network and input shape, batch, channels, layers that both packages can make of it."""


@dataclass(frozen=True)
class Contender:
    """One package's layer, with its inputs in its own form.

    Attributes:
        layer: The layer.
        inputs: What it reads.
        forward: Calls it, for the list of its outputs.
    """

    layer: nn.Module
    inputs: list[Tensor]
    forward: Callable[[], list[Tensor]]

    def backward(self, gradients: list[Tensor]) -> None:
        """Forward and backward, with gradients of weights and inputs."""
        for tensor in (*self.inputs, *self.layer.parameters()):
            tensor.requires_grad_().grad = None
        torch.autograd.backward(self.forward(), gradients)
        for tensor in self.inputs:
            tensor.requires_grad_(False).grad = None


def contender(name: str, kind: str, package: str, *, compile: bool = False) -> Contender:  # noqa: A002
    """The layer of a package for a case."""
    (model, shape), batch, channels, _ = CASES[name]
    symmetry: Symmetry = "hidden" if kind == "HNP" else "all"
    space = WeightSpace.from_module(model, torch.zeros(shape), symmetry=symmetry)
    generator = torch.Generator().manual_seed(0)
    features: Features = {
        s.name: torch.randn(batch, *s.view_shape, channels, generator=generator) for s in space.parameters
    }
    shared = not name.startswith("CNN")  # the package has no shared projections for convolutions
    if package == "ours":
        layer: nn.Module
        if kind == "NP attention":
            sharing: Literal["shared", "per_parameter"] = "shared" if shared else "per_parameter"
            layer = NFAttention(
                space, channels, heads=8, sharing=sharing, generator=generator, compile=compile
            )
        else:
            layer = NFLinear(space, channels, channels, generator=generator, compile=compile)
        return Contender(layer, list(features.values()), lambda: list(layer(features).values()))
    channels_second = [tensor.movedim(-1, 1).contiguous() for tensor in features.values()]
    theirs = WeightSpaceFeatures(channels_second[0::2], channels_second[1::2])
    network = network_spec_from_wsfeat(theirs)
    if kind == "NP attention":
        layer = NPAttention(network, channels, num_heads=8, share_projections=shared)
    else:
        layer = (HNPLinear if kind == "HNP" else NPLinear)(network, channels, channels)
    return Contender(layer, channels_second, lambda: [tensor for pair in layer(theirs) for tensor in pair])


def interleaved_ms(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median time of each call in milliseconds, the calls in turn, after two rounds to warm up."""
    times: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(repeats + 2):
        for label, call in calls.items():
            start = time.perf_counter()
            call()
            times[label].append(time.perf_counter() - start)
    return {label: 1e3 * statistics.median(values[2:]) for label, values in times.items()}


def measure(name: str, kind: str, repeats: int, *, compiled: bool) -> dict[str, Any]:
    """All times of both layers of one case, in ms, and their peak memory in MB."""
    both = {package: contender(name, kind, package) for package in PACKAGES}
    row: dict[str, Any] = {"case": name, "layer": kind, "batch": CASES[name][1], "channels": CASES[name][2]}
    with torch.no_grad():
        gradients = {who: [torch.randn_like(t) for t in one.forward()] for who, one in both.items()}
        forward = {who: one.forward for who, one in both.items()}
        if compiled:
            forward["compiled"] = contender(name, kind, "ours", compile=True).forward
            forward["compiled"]()
        for who, ms in interleaved_ms(forward, repeats).items():
            key = "ours/compiled_forward" if who == "compiled" else f"{who}/forward"
            row[key] = ms
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for who, ms in interleaved_ms({who: one.forward for who, one in both.items()}, repeats).items():
                row[f"{who}/bf16_forward"] = ms
    calls = {who: functools.partial(one.backward, gradients[who]) for who, one in both.items()}
    for who, ms in interleaved_ms(calls, repeats).items():
        row[f"{who}/forward_backward"] = ms
    with torch.no_grad():
        row["ours/forward_products"] = products_ms(both["ours"].forward)
    row["ours/forward_backward_products"] = products_ms(calls["ours"])
    for who in PACKAGES:
        row[f"{who}/parameters"] = sum(p.numel() for p in both[who].layer.parameters())
        row[f"{who}/peak"] = _peak_in_subprocess(name, kind, who)
    return row


def products_ms(call: Callable[[], Any]) -> float:
    """Time in matrix products alone, in ms: what would be left if all else were free."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    names = {f"aten::{name}" for name in PRODUCTS}
    return sum(e.self_cpu_time_total for e in profile.key_averages() if e.key in names) * 1e-3


def _peak_in_subprocess(name: str, kind: str, package: str) -> float:
    command = [sys.executable, "-m", "benchmarks.layer_speed", "--memory", name, kind, package]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak_growth(name: str, kind: str, package: str) -> float:
    """Growth of this process's peak resident size by one forward and backward pass, in MB."""
    one = contender(name, kind, package)
    with torch.no_grad():
        gradients = [torch.ones_like(t) for t in one.forward()]
    before = _memory("VmRSS")
    one.backward(gradients)
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """A line of this process's status in MB: ``VmRSS`` resident now, ``VmHWM`` its peak.

    The peak that ``getrusage`` tells starts from that of the parent process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1.024e-3


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric means of nfn's value over ours, over the linear layers and over attention."""
    found = {}
    for group, kinds in (("linear", LAYERS[:2]), ("attention", LAYERS[2:]), ("all", LAYERS)):
        for what in (*MEASURES, "forward_products", "forward_backward_products"):
            theirs = "forward" if what == "compiled_forward" else what.removesuffix("_products")
            logs = [
                math.log(row[f"nfn/{theirs}"] / row[f"ours/{what}"])
                for row in rows
                if row["layer"] in kinds and row.get(f"ours/{what}")
            ]
            if logs:
                found[f"{group}/{what}"] = math.exp(sum(logs) / len(logs))
    return found


def table(rows: list[dict[str, Any]], means: dict[str, float]) -> str:
    """The results as a Markdown table, nfn's value and ours in each cell."""
    lines = [
        "| network (batch, channels) | layer | forward ms | forward + backward ms | bf16 forward ms "
        "| compiled forward ms | peak memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for what in MEASURES:
            theirs = row["nfn/forward" if what == "compiled_forward" else f"nfn/{what}"]
            mine = row.get(f"ours/{what}")
            cells.append("" if mine is None else f"{theirs:.1f} / **{mine:.1f}**")
        label = f"{row['case']} ({row['batch']}, {row['channels']})"
        lines.append(f"| {label} | {row['layer']} | {' | '.join(cells)} |")
    for group in ("linear", "attention", "all"):
        cells = [f"{means[key]:.2f}x" if (key := f"{group}/{what}") in means else "" for what in MEASURES]
        lines.append(f"| geometric mean of nfn / ours | {group} | {' | '.join(cells)} |")
    floors = [f"{means[f'all/{what}_products']:.2f}x {what.replace('_', ' + ')}" for what in MEASURES[:2]]
    return "\n".join(lines) + (
        "\n\nEach cell: nfn / **ours**; compiled is ours alone. If all but the matrix products of our layers were "
        f"free, the geometric means over all cases would be {floors[0]} and {floors[1]}.\n"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of forward and of forward and backward time, ours beside nfn's."""
    figure = Figure(figsize=(10, 0.42 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = [f"{row['case']}, {row['layer']}" for row in rows]
    for ax, what in zip(axes, ("forward", "forward_backward"), strict=True):
        for offset, who, color in ((-0.2, "nfn", "tab:gray"), (0.2, "ours", "tab:blue")):
            bars = ax.barh(
                [i + offset for i in range(len(rows))],
                [row[f"{who}/{what}"] for row in rows],
                height=0.38,
                color=color,
                label="nfn 0.1.2" if who == "nfn" else "this library",
            )
            ax.bar_label(
                bars, fmt=lambda ms: f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}", padding=2, fontsize=7
            )
        ax.set(yticks=range(len(rows)), yticklabels=labels, xscale="log")
        ax.set_xlabel(f"{what.replace('_', ' + ')}, ms (median)")
        ax.margins(x=0.15, y=0.02)
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)
    axes[0].invert_yaxis()
    axes[1].legend(loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure all cases and write the table, the picture and the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path("runs/layer_speed"), help="folder to write to")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_growth(*options.memory))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    repeats, start = (5 if options.quick else 15), time.perf_counter()
    rows = []
    for name, (_, _, _, kinds) in CASES.items():
        for kind in kinds:
            rows.append(measure(name, kind, repeats, compiled=not options.quick))
            print(json.dumps(rows[-1]), flush=True)
    means = ratios(rows)
    (options.out / "layer_speed.md").write_text(table(rows, means))
    draw(rows, options.out / "layer_speed.png")
    metrics = {f"{r['case']}/{r['layer']}/{k}": v for r in rows for k, v in r.items() if "/" in k}
    result = {
        "config": {"repeats": repeats, "quick": options.quick, "seed": 0},
        "environment": {**environment(), "threads": torch.get_num_threads(), "load": os.getloadavg()},
        "seconds": time.perf_counter() - start,
        "metrics": {**metrics, **{f"nfn over ours/{key}": value for key, value in means.items()}},
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=2))
    print(table(rows, means))


if __name__ == "__main__":
    main()
