"""Fits of implicit neural representations: learned rules, untuned, beside Adam and Muon tuned for every length.

python -m benchmarks.inr_fitting [--quick] [--rules default FILE] [--data mnist=FILE cifar10=FILE] --out FOLDER

SIRENs 2-32-32-1 and 2-32-32-3 (omega 30) are fitted to digits of MNIST and to pictures of CIFAR-10, one to each, all
pixels in every update, from random initial weights that are the same for all. Digits are taken from those that the
bundled rules were not trained on; of the pictures of CIFAR-10, of which all may have been seen, fresh ones are drawn.
PSNR is that of the rendered picture, values in [0, 1] and not clamped, mean over the pictures. Adam and Muon are tuned
over seven learning rates (and further ones, while the best is at the edge) and three schedules, for each length of fit,
by the very number that is told. Learned rules are told the number of updates and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.learned_optimizers_runs import read_rule
from nfn_opt.data import ImageData, load_images
from nfn_opt.meta import InrTask, init_state, unroll
from nfn_opt.meta.families.initializers import Initializer
from nfn_opt.meta.families.networks import siren
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.meta.trees import tree_map
from nfn_opt.meta.tuning import LEARNING_RATES, Setting, beyond, outer_parameters
from nfn_opt.optim import UpdateRule, make_rule
from nfn_opt.optim.classic_schedule import SCHEDULES

OMEGA, WIDTH, LAYERS = 30.0, 32, 2
SETS = {"MNIST": ("mnist", "mnist_784", 28), "CIFAR-10": ("cifar10", "CIFAR_10", 32)}
"""For each set: its name for --data, its name at OpenML, and the side of its pictures."""

SEEN = 20_000
"""Images of a set that the recipes of the bundled rules take; chosen as in `nfn_opt.meta.DataSources`."""

TUNED = ("adam", "muon")
DRAWN = 300
"""The length of fit that is drawn."""

TOGETHER = 3
"""Settings that are tried in one batch."""


@dataclass(frozen=True)
class Fit:
    """PSNR before every update and at the end, mean over pictures, in dB, and how it was tuned."""

    curve: list[float]
    final: float
    worst: float
    setting: str = ""


def pictures(files: Mapping[str, str], name: str, count: int) -> ImageData:
    """Pictures of a set that the bundled rules have not been trained on, or fresh ones if it has no others."""
    key, known, side = SETS[name]
    data = load_images(files.get(key, known)).resize(side)
    seen = min(SEEN, len(data) - count)
    return data.split({"seen": seen, "fresh": count}, seed=0)["fresh"]


def fit_task(data: ImageData) -> InrTask:
    """One SIREN for each picture, all pixels in every update."""
    network = siren(WIDTH, LAYERS, data.images.shape[-1], OMEGA)
    initializer = Initializer(kind="siren", omega=OMEGA)
    return InrTask(network, data, batch_size=None, initializer=initializer)


def fit(rule: UpdateRule, task: InrTask, theta: Mapping[str, Tensor] | None, steps: int) -> list[Fit]:
    """Fit all pictures with each of the outer parameters, or those of the rule."""
    count, copies = len(task.values), 1 if theta is None else len(next(iter(theta.values())))
    start = task.init(torch.Generator().manual_seed(0), count)
    params = {name: p.repeat(copies, *(1,) * (p.dim() - 1)) for name, p in start.items()}
    each = (
        None
        if theta is None
        else tree_map(lambda value: value.float().repeat_interleave(count, 0), dict(theta))
    )
    end = unroll(
        rule,
        task,
        params,
        init_state(rule, task, params),
        steps=steps,
        start_step=0,
        total_steps=steps,
        generator=torch.Generator(),
        theta=each,
    )
    curves = psnr(end.losses).view(steps, copies, count).mean(2).T
    finals = psnr(task.full_losses(end.params)).view(copies, count)
    return [
        Fit(curve.tolist(), final.mean().item(), final.min().item())
        for curve, final in zip(curves, finals, strict=True)
    ]


def psnr(losses: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors of values in [-1, 1]; 0 where they are not finite."""
    decibels = 10 * torch.log10(4 / losses.double())
    return torch.where(torch.isfinite(losses), decibels, 0.0)


def tuned(kind: str, task: InrTask, steps: int, rates: Sequence[float], extend: int) -> Fit:
    """The best fit over learning rates and schedules."""
    rule = make_rule("scheduled", rule=kind, options={"lr": 1.0})
    tried: dict[Setting, Fit] = {}

    def attempt(some: Sequence[float]) -> Setting:
        settings = [Setting(*pair) for pair in itertools.product(some, SCHEDULES)]
        for place in range(0, len(settings), TOGETHER):
            part = settings[place : place + TOGETHER]
            tried.update(zip(part, fit(rule, task, outer_parameters(part), steps), strict=True))
        return max(tried, key=lambda setting: tried[setting].final)

    best = attempt(rates)
    for _ in range(extend):
        further = beyond([setting.lr for setting in tried], best.lr)
        if further is None:
            break
        best = attempt([further])
    found = tried[best]
    return Fit(found.curve, found.final, found.worst, f"{best.lr:.2g} {best.schedule}")


def milliseconds(rules: Mapping[str, UpdateRule], task: InrTask, repeats: int) -> dict[str, float]:
    """Median time of an update of one network, of those of all pictures in one batch; the rules in turn."""
    times: dict[str, list[float]] = {name: [] for name in rules}
    for name, rule in itertools.chain.from_iterable(itertools.repeat(list(rules.items()), repeats + 1)):
        start = time.perf_counter()
        fit(rule, task, None, 10)
        times[name].append((time.perf_counter() - start) / 10 / len(task.values))
    return {name: 1e3 * statistics.median(values[1:]) for name, values in times.items()}


def table(
    found: Mapping[str, Mapping[str, Mapping[int, Fit]]], times: Mapping[str, Mapping[str, float]]
) -> str:
    """The results as a Markdown table: PSNR in dB, mean and worst."""
    lengths = list(next(iter(next(iter(found.values())).values())))
    lines = [
        f"| pictures | optimizer | {' | '.join(f'{n} updates' for n in lengths)} | ms per update |",
        "|---|---|" + "---|" * (len(lengths) + 1),
    ]
    for name, optimizers in found.items():
        best = {n: max(fits[n].final for fits in optimizers.values()) for n in lengths}
        for optimizer, fits in optimizers.items():
            cells = [
                (f"**{one.final:.1f}**" if one.final == best[n] else f"{one.final:.1f}")
                + f" ({one.worst:.1f})"
                + (f", {one.setting}" if one.setting else "")
                for n, one in fits.items()
            ]
            lines.append(f"| {name} | {optimizer} | {' | '.join(cells)} | {times[name][optimizer]:.2f} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, found: Mapping[str, Mapping[str, Mapping[int, Fit]]], length: int) -> None:
    """PSNR during the fits of one length."""
    figure = Figure(figsize=(4.6 * len(found), 3.6), layout="constrained")
    for ax, (name, optimizers) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for optimizer, fits in optimizers.items():
            style = "--" if optimizer in TUNED else "-"
            setting = f", tuned ({fits[length].setting})" if fits[length].setting else ", untuned"
            ax.plot(range(length), fits[length].curve, style, label=optimizer + setting)
        ax.set(
            title=f"{name}, fits of {length} updates", xlabel="update", ylabel="PSNR (dB), mean over pictures"
        )
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit with all optimizers and write the table, the picture and the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two pictures, short fits, three learning rates")
    parser.add_argument("--rules", nargs="+", default=["default"], help="bundled names or files")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="files of image sets")
    parser.add_argument("--pictures", type=int, default=8, help="pictures of each set")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[50, 100, DRAWN, 1000], help="lengths of fits"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/inr_fitting"), help="folder to write to")
    options = parser.parse_args(arguments)
    files = dict(text.split("=", 1) for text in options.data)
    count, lengths = (2, [20, 50]) if options.quick else (options.pictures, options.steps)
    rules = {Path(rule).stem: read_rule(rule) for rule in options.rules}
    hand = {kind: make_rule(kind) for kind in TUNED}
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found: dict[str, dict[str, dict[int, Fit]]] = {}
    times: dict[str, dict[str, float]] = {}
    for name in SETS:
        task = fit_task(pictures(files, name, count))
        found[name] = {
            label: {n: fit(rule, task, None, n)[0] for n in lengths} for label, rule in rules.items()
        }
        for kind in TUNED:
            rates, extend = (LEARNING_RATES[kind][::3], 0) if options.quick else (LEARNING_RATES[kind], 2)
            found[name][kind] = {n: tuned(kind, task, n, rates, extend) for n in lengths}
        times[name] = milliseconds({**rules, **hand}, task, 2 if options.quick else 15)
        print(table({name: found[name]}, times), flush=True)
    (options.out / "inr_fitting.md").write_text(table(found, times))
    draw(options.out / "inr_fitting.png", found, DRAWN if DRAWN in lengths else lengths[-1])
    write_json(
        options.out / "result.json",
        {
            "config": {"pictures": count, "steps": lengths, "rules": options.rules, "quick": options.quick},
            "environment": environment(),
            "seconds": time.perf_counter() - start,
            "metrics": {
                f"{name}/{label}/{n}/psnr": one.final
                for name, optimizers in found.items()
                for label, fits in optimizers.items()
                for n, one in fits.items()
            },
            "ms_per_update": times,
        },
    )


if __name__ == "__main__":
    main()
