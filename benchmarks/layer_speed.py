"""Time of the equivariant linear layer beside that of the ``nfn`` package, in one process on the same features.

python -m benchmarks.layer_speed [--quick] --out FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from nfn_opt.layers import NFLinear
from nfn_opt.meta.run_folder import environment
from nfn_opt.weight_space import Features, Symmetry, WeightSpace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package uses names that newer libraries have deprecated
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import HNPLinear, NPLinear


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
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)), (
        1,
        1,
        12,
        12,
    )


CASES: dict[str, tuple[tuple[nn.Module, tuple[int, ...]], int, int, tuple[Symmetry, ...]]] = {
    "SIREN 2-32-32-1": (mlp(2, 32, 32, 1), 64, 64, ("all", "hidden")),
    "SIREN 2-32-32-3": (mlp(2, 32, 32, 3), 32, 256, ("all", "hidden")),
    "CNN 1-16-16-16-10": (cnn(), 8, 64, ("all", "hidden")),
    "MLP 784-128-128-10": (mlp(784, 128, 128, 10), 1, 32, ("all",)),
    "MLP 64-32-10": (mlp(64, 32, 10), 8, 32, ("all", "hidden")),
}
"""Network and input shape, batch, channels, symmetries that both can do."""


def to_nfn(features: Features) -> Any:
    """The same features in the form of the nfn package, channels second."""
    first = [tensor.movedim(-1, 1).contiguous() for tensor in features.values()]
    return WeightSpaceFeatures(first[0::2], first[1::2])


def median_ms(function: Callable[[], Any], repeats: int) -> float:
    """Median time of a call in milliseconds, after two calls to warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def measure(name: str, symmetry: Symmetry, repeats: int) -> dict[str, Any]:
    """Forward, and forward and backward, of both layers, in turn."""
    (model, shape), batch, channels, _ = CASES[name]
    space = WeightSpace.from_module(model, torch.zeros(shape), symmetry=symmetry)
    generator = torch.Generator().manual_seed(0)
    features = {
        s.name: torch.randn(batch, *s.view_shape, channels, generator=generator) for s in space.parameters
    }
    theirs_in = to_nfn(features)
    kind = NPLinear if symmetry == "all" else HNPLinear
    theirs = kind(network_spec_from_wsfeat(theirs_in), channels, channels)
    ours = NFLinear(space, channels, channels, generator=generator)
    runs: dict[str, tuple[nn.Module, Callable[[], list[Tensor]]]] = {
        "nfn": (theirs, lambda: [t for pair in theirs(theirs_in) for t in pair]),
        "ours": (ours, lambda: list(ours(features).values())),
    }
    row: dict[str, Any] = {"case": name, "symmetry": symmetry, "batch": batch, "channels": channels}
    for label, (layer, forward) in runs.items():
        row[f"{label}/parameters"] = sum(p.numel() for p in layer.parameters())
        with torch.no_grad():
            row[f"{label}/forward_ms"] = median_ms(forward, repeats)

        def backward(layer: nn.Module = layer, forward: Callable[[], list[Tensor]] = forward) -> None:
            layer.zero_grad()
            torch.stack([tensor.square().mean() for tensor in forward()]).sum().backward()

        row[f"{label}/forward_backward_ms"] = median_ms(backward, repeats)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| network (batch, channels) | symmetry | forward ms: nfn | ours | forward + backward ms: nfn | ours |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        times = [
            f"{r[f'{who}/{what}']:.1f}"
            for what in ("forward_ms", "forward_backward_ms")
            for who in ("nfn", "ours")
        ]
        symmetry = "NP" if r["symmetry"] == "all" else "HNP"
        lines.append(f"| {r['case']} ({r['batch']}, {r['channels']}) | {symmetry} | {' | '.join(times)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of forward and backward time, ours beside nfn's."""
    figure = Figure(figsize=(7.5, 0.45 * len(rows) + 1.4), layout="constrained")
    ax = figure.subplots()
    labels = [f"{r['case']} {'NP' if r['symmetry'] == 'all' else 'HNP'}" for r in rows]
    for offset, who, color in ((-0.2, "nfn", "tab:gray"), (0.2, "ours", "tab:blue")):
        values = [r[f"{who}/forward_backward_ms"] for r in rows]
        ax.barh([i + offset for i in range(len(rows))], values, height=0.38, color=color, label=who)
    ax.set(
        yticks=range(len(rows)), yticklabels=labels, xlabel="forward + backward, ms (median)", xscale="log"
    )
    ax.invert_yaxis()
    ax.legend()
    ax.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure all cases and write the table, the picture and the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    repeats = 5 if options.quick else 21
    rows = [measure(name, symmetry, repeats) for name, case in CASES.items() for symmetry in case[3]]
    (options.out / "layer_speed.md").write_text(table(rows))
    draw(rows, options.out / "layer_speed.png")
    metrics = {f"{r['case']}/{r['symmetry']}/{k}": v for r in rows for k, v in r.items() if "/" in k}
    result = {"repeats": repeats, "environment": environment(), "metrics": metrics}
    (options.out / "result.json").write_text(json.dumps(result, indent=2))
    print(table(rows))


if __name__ == "__main__":
    main()
