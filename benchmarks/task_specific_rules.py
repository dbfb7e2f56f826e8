"""Rules that were meta-trained for one task, on that task: how many times fewer steps than tuned Adam they need.

python -m benchmarks.task_specific_rules --rules LABEL=FILE ... [--images FILE] [--quick] --out FOLDER

The protocol of arXiv:2402.05232 and arXiv:2507.01649: images of 8 x 8, an MLP with one hidden layer of 32, batches of
128, 2,000 steps, five runs. Adam is tuned over 20 learning rates from 0.0005 to 0.01, by the lowest validation loss
of its mean curve. The factor of a rule is the number of steps at which Adam has its lowest test loss, over the number
in which the rule reaches that loss, 0 if it never does; by mean curves, and run by run, where each run of a rule is
compared with Adam's from the same initial parameters and minibatches. Networks train on 80 % of the images, the part
that `scripts/meta_train.py` takes its inner problems from; validation and test have 10 % each and are used for nothing
else. SGD with momentum and Muon, each tuned over seven learning rates in the same way, stand beside the rules: how
hard Adam is to beat depends on the task. Published factors come from the papers' own data, splits and meta-training
budget.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.learned_optimizers_report import NAMES
from nfn_opt.artifacts import atomic_write
from nfn_opt.data import ImageData, load_images
from nfn_opt.meta import Curves, MLPClassification, Probe, evaluate, tune
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.meta.scores import Interval, bootstrap
from nfn_opt.meta.tuning import LEARNING_RATES as TUNED_RATES
from nfn_opt.optim import load_rule, rule_metadata

LEARNING_RATES = tuple(round(5e-4 * k, 6) for k in range(1, 21))

PUBLISHED = {
    "SGD momentum, meta-tuned": 1.41,
    "Deep Sets": 2.32,
    "UNF": 2.64,
    "UNF + GradMetaNet": 4.26,
    "Deep Sets + GradMetaNet": 4.63,
}
"""Factors on CIFAR-10 of arXiv:2507.01649."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """The task and how it is measured.

    Attributes:
        images: What :func:`nfn_opt.data.load_images` reads.
        size: Height and width, in pixels.
        gray: Whether images have one channel.
        hidden: Width of the hidden layer.
        batch_size: Size of a minibatch.
        steps: Horizon.
        runs: Number of seeds.
        every: Steps between measurements of validation and test loss.
        learning_rates: What Adam is tuned over.
    """

    images: str = "CIFAR_10"
    size: int = 8
    gray: bool = False
    hidden: int = 32
    batch_size: int = 128
    steps: int = 2000
    runs: int = 5
    every: int = 10
    learning_rates: tuple[float, ...] = LEARNING_RATES


class Bench:
    """The task with its three parts of the images.

    Args:
        protocol: What to make.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        parts = load_images(protocol.images, size=protocol.size, gray=protocol.gray).split()
        self.task = self._classification(parts["train"])
        self._unseen = [self._classification(parts[name]) for name in ("val", "test")]

    def _classification(self, data: ImageData) -> MLPClassification:
        protocol = self.protocol
        return MLPClassification(data, hidden=(protocol.hidden,), batch_size=protocol.batch_size)

    @property
    def _options(self) -> dict[str, Any]:
        def measure(params: dict[str, Tensor]) -> Tensor:
            return torch.stack([part.full_losses(params) for part in self._unseen], 1)

        probe = Probe(measure, every=self.protocol.every)
        return {"seeds": range(self.protocol.runs), "steps": self.protocol.steps, "probe": probe}

    def adam(self) -> tuple[float, Curves]:
        """Adam, tuned over the learning rates of the protocol."""
        return self.tuned("adam", self.protocol.learning_rates)

    def tuned(self, kind: str, rates: Sequence[float]) -> tuple[float, Curves]:
        """The learning rate with the lowest validation loss of the mean curve, and its curves."""
        options = {"momentum": 0.9} if kind == "sgd" else {}
        tuned = tune(
            kind, self.task, learning_rates=rates, schedules=("constant",), options=options, **self._options
        )
        lowest = {setting: unseen(curves)[..., 0].mean(0).min() for setting, curves in tuned.curves.items()}
        best = min(lowest, key=lambda setting: float(np.nan_to_num(lowest[setting], nan=np.inf)))
        return best.lr, tuned.curves[best]

    def rule(self, path: str) -> Curves:
        """Training with a rule from a file."""
        rule = load_rule(path, space=self.task.space)
        return evaluate(rule.to(self.task.inputs.dtype), self.task, **self._options)


def unseen(curves: Curves) -> NDArray[np.float64]:
    """Validation and test loss on the way, shape (runs, measurements, 2); not finite from a failure on."""
    assert curves.probes is not None
    return curves.probes.double().cpu().numpy()


def steps_to_lowest(test: NDArray[np.float64], every: int) -> tuple[float, float]:
    """The lowest loss of a curve (measurements,), and after how many steps it comes."""
    index = int(np.nanargmin(test))
    return float(test[index]), (index + 1) * every


def factor(test: NDArray[np.float64], adam: NDArray[np.float64], every: int) -> float:
    """Adam's steps to its lowest loss over the steps in which a curve gets there; 0 if it never does.

    Args:
        test: Test losses of a rule, shape (measurements,).
        adam: Those of Adam.
        every: Steps between measurements.

    Example:
        >>> factor(np.array([3.0, 1.0, 1.0]), np.array([3.0, 2.0, 1.0, 2.0]), every=10)
        1.5
        >>> factor(np.array([3.0, 3.0]), np.array([3.0, 2.0]), every=10)
        0.0
    """
    target, steps = steps_to_lowest(adam, every)
    reached = test <= target
    return steps / ((int(np.argmax(reached)) + 1) * every) if reached.any() else 0.0


def factors(
    test: NDArray[np.float64], adam: NDArray[np.float64], every: int
) -> tuple[float, NDArray[np.float64]]:
    """The factor by mean curves, and those run by run.

    Args:
        test: Test losses of a rule, shape (runs, measurements).
        adam: Those of Adam.
        every: Steps between measurements.
    """
    each = [factor(one, other, every) for one, other in zip(test, adam, strict=True)]
    return factor(test.mean(0), adam.mean(0), every), np.array(each)


def row(label: str, curves: Curves, adam: Curves, origin: str, every: int) -> dict[str, Any]:
    """What is told about one rule; its origin is the command that meta-trained it."""
    test = unseen(curves)[..., 1]
    mean, each = factors(test, unseen(adam)[..., 1], every)
    interval = bootstrap(_mean, each[None], np.random.default_rng(0))
    return {
        "label": label,
        "factor": mean,
        "factor_runs": each.tolist(),
        "factor_interval": list(interval),
        "best_test_loss": float(np.nanmin(test, axis=1).mean()) if np.isfinite(test).any() else None,
        "final_training_loss": curves.score if np.isfinite(curves.score) else None,
        "failed": int(curves.failed.sum()),
        "command": origin,
    }


def _mean(values: NDArray[np.float64]) -> Any:
    return values.mean((-2, -1))


def table(rows: Sequence[Mapping[str, Any]], lr: float, adam: Curves, protocol: Protocol) -> str:
    """The rows as Markdown, with the published factors below."""
    test = unseen(adam)[..., 1].mean(0)
    lowest, steps = steps_to_lowest(test, protocol.every)
    lines = [
        f"Adam (learning rate {lr:g}, best of {len(protocol.learning_rates)} by validation loss) has its lowest test "
        f"loss, {lowest:.4f}, after {steps:g} of {protocol.steps} steps; final training loss {adam.score:.4f}. "
        f"{protocol.runs} runs; brackets are 95 % intervals of the mean over runs.",
        "",
        "| rule | factor, mean curves | factor, run by run | best test loss | final training loss | failed "
        "| meta-trained by |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        lines.append(
            f"| {one['label']} | {one['factor']:.2f} | {Interval(*one['factor_interval'])} "
            f"| {_number(one['best_test_loss'])} | {_number(one['final_training_loss'])} "
            f"| {one['failed']} of {protocol.runs} | `{one['command']}` |"
        )
    for name, value in PUBLISHED.items():
        lines.append(f"| {name} (published, arXiv:2507.01649) | {value:.2f} | | | | | |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4f}"


def draw(path: Path, found: Mapping[str, Curves], protocol: Protocol) -> None:
    """Mean and range over runs of test loss and of training loss, against steps."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curves in found.items():
        style = {"color": "black", "zorder": 3} if name.startswith("Adam") else {}
        test = unseen(curves)[..., 1]
        x = protocol.every * np.arange(1, test.shape[1] + 1)
        (line,) = left.plot(x, test.mean(0), label=name, **style)
        left.fill_between(x, test.min(0), test.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        losses = curves.losses.double().cpu().numpy()
        whole = losses[:, : len(x) * protocol.every].reshape(len(losses), len(x), protocol.every).mean((0, 2))
        right.plot(x, whole, color=line.get_color())
    adam = next(unseen(curves)[..., 1].mean(0) for name, curves in found.items() if name.startswith("Adam"))
    left.axhline(np.nanmin(adam), color="black", linewidth=0.7, linestyle=":")
    left.set(xlabel="step", ylabel="test loss (nats)", title="Test, dotted: Adam's lowest")
    right.set(
        xlabel="step", ylabel="minibatch loss (nats)", title=f"Training, mean of {protocol.every} steps"
    )
    for ax in (left, right):
        ax.set_ylim(top=np.log(10) + 0.05)
        ax.grid(alpha=0.3)
    left.legend(fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with Adam and with every rule, and write the table, the picture and the numbers."""
    given = _parser().parse_args(arguments)
    protocol = Protocol(images=given.images, gray=given.gray, hidden=given.hidden, steps=given.steps)
    if given.quick:
        protocol = dataclasses.replace(
            protocol, learning_rates=LEARNING_RATES[::4], runs=2, steps=max(10, given.steps // 10)
        )
    start, bench = time.perf_counter(), Bench(protocol)
    lr, adam = bench.adam()
    found, rows = {f"Adam, {lr:g}": adam}, []
    for label, path in _labelled(given.rules).items():
        found[label] = bench.rule(path)
        command = str(rule_metadata(path).get("command", ""))
        rows.append(row(label, found[label], adam, command, protocol.every))
        print(json.dumps(rows[-1]), flush=True)
    for kind in given.beside:
        rate, curves = bench.tuned(kind, TUNED_RATES[kind])
        label = f"{NAMES[kind]}, {rate:g}"
        found[label] = curves
        rows.append(row(label, curves, adam, "not meta-trained, tuned", protocol.every))
        print(json.dumps(rows[-1]), flush=True)
    text = table(rows, lr, adam, protocol)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "task_specific_rules.md").write_text(text)
    draw(given.out / "task_specific_rules.png", found, protocol)
    lowest, steps = steps_to_lowest(unseen(adam)[..., 1].mean(0), protocol.every)
    numbers = ("factor", "factor_interval", "best_test_loss", "final_training_loss", "failed")
    write_json(
        given.out / "result.json",
        {
            "config": {
                **dataclasses.asdict(protocol),
                "rules": given.rules,
                "beside": given.beside,
                "quick": given.quick,
            },
            "environment": {**environment(), "load": os.getloadavg()},
            "seconds": time.perf_counter() - start,
            "rows": rows,
            "metrics": {
                "adam/lr": lr,
                "adam/best_test_loss": lowest,
                "adam/steps_to_best": steps,
                **{f"{one['label']}/{name}": one[name] for one in rows for name in numbers},
            },
        },
    )
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rules", nargs="+", default=[], metavar="LABEL=FILE", help="files of rules")
    parser.add_argument("--images", default="CIFAR_10", help="a file, a folder or a name known to OpenML")
    parser.add_argument("--gray", action="store_true", help="gray images")
    parser.add_argument("--hidden", type=int, default=32, help="width of the hidden layer")
    parser.add_argument("--steps", type=int, default=2000, help="horizon")
    parser.add_argument(
        "--beside", nargs="*", choices=list(NAMES), default=["sgd", "muon"], help="tuned optimizers beside"
    )
    parser.add_argument("--quick", action="store_true", help="5 learning rates, 2 runs, a tenth of the steps")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/task_specific_rules"), help="folder to write to"
    )
    return parser


def _labelled(rules: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in rules:
        label, separator, path = text.partition("=")
        if not separator or not label or not path or label in found:
            raise ValueError(
                f"--rules got {text!r}, expected LABEL=FILE with a label of its own, such as "
                "deep-sets=runs/deep_sets/rule.safetensors"
            )
        found[label] = path
    return found


if __name__ == "__main__":
    main()
