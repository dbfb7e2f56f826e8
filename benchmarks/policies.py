"""The return of a policy from its weights alone, and better policies by climbing it, over policies of gymnasium.

python -m benchmarks.policies [--quick] [--environments CartPole-v1 ...] [--zoos FOLDER] --out FOLDER

For each environment a zoo of policies of many independent training runs is built (or read, or resumed), whose returns
are those of gymnasium's own environments. Runs, not policies, are dealt out into training, validation and test. Each
predictor is trained with several seeds, on the same policies, steps and augmentation; one has the layers of the
``nfn`` package in the place of this library's. Then held-out policies of middling return climb the prediction of the
ensemble of all trainings of a kind, and are judged by fresh episodes, beside random steps of the same length.

Writes ``policies.md``, ``policies.png`` and ``result.json``. What was finished is kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.policies_runs import CLIMBED, HEAD, KINDS, SPLIT, Plan, measure, paired_interval, settings
from nfn_opt.artifacts import atomic_write
from nfn_opt.data.policies import ImproveConfig
from nfn_opt.meta.run_folder import environment, write_json

Results = Mapping[str, Mapping[str, Any]]


def tau_table(results: Results) -> str:
    """Rank correlations as Markdown."""
    lines = [f"| Kendall's tau, held-out runs | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    for kind in KINDS:
        cells = [found["tau"][kind] for found in results.values()]
        texts = [f"{each['tau']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for each in cells]
        lines.append(f"| {kind} | {' | '.join(texts)} |")
    return "\n".join(lines)


def gain_rows(gains: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Gains over policies with their intervals: by each kind of predictor, of random steps, optimism."""
    rows = {f"ascent by {kind}": paired_interval(gains[kind]) for kind in CLIMBED}
    best = gains[CLIMBED[-1]]
    rows["random step of the same length"] = paired_interval(gains["random"])
    rows["ascent minus random step"] = paired_interval(best - gains["random"])
    rows["optimism (predicted minus real gain)"] = paired_interval(gains["predicted"] - best)
    return rows


def gain_table(results: Results) -> str:
    """Real gains as Markdown."""
    names = list(gain_rows(next(iter(results.values()))["gains"]))
    lines = [
        f"| gain in real mean return | {' | '.join(results)} |",
        "|---|" + "---|" * len(results),
        "| mean return before | "
        + " | ".join(f"{found['gains']['before'].mean():.1f}" for found in results.values())
        + " |",
    ]
    for name in names:
        cells = [gain_rows(found["gains"])[name] for found in results.values()]
        texts = [f"{each['mean']:+.1f} ({each['low']:+.1f} to {each['high']:+.1f})" for each in cells]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    improved = [f"{(found['gains'][CLIMBED[-1]] > 0).double().mean():.0%}" for found in results.values()]
    lines.append(f"| policies that became better | {' | '.join(improved)} |")
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Predicted over real returns of held-out policies, and real returns before and after."""
    from matplotlib.figure import Figure  # takes a second, so not at import

    figure = Figure(figsize=(3.4 * len(results), 9.2), layout="constrained")
    for column, (name, found) in enumerate(results.items()):
        spread, scatter, gain = (
            figure.add_subplot(3, len(results), row * len(results) + column + 1) for row in range(3)
        )
        spread.hist(torch.as_tensor(found["zoo"].table["mean_return"]).numpy(), bins=30, color="0.5")
        spread.set(title=name, xlabel="real mean return", ylabel="policies of the zoo")
        kind = CLIMBED[-1]
        real = torch.as_tensor(found["parts"]["test"].table["mean_return"])
        scatter.scatter(real, found["predicted"][kind][0], s=8, alpha=0.6, linewidths=0)
        scatter.axline((float(real.mean()), float(real.mean())), slope=1, color="0.6", linewidth=0.8)
        scatter.set(
            xlabel="real mean return",
            ylabel="predicted",
            title=f"{kind}, tau {found['tau'][kind]['tau']:.3f}",
        )
        _draw_gains(gain, found["gains"])
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=90)


def _draw_gains(axes: Any, gains: Mapping[str, Tensor]) -> None:
    before = gains["before"]
    order = before.argsort()
    for name, colour, marker in ((CLIMBED[-1], "tab:blue", "o"), ("random", "tab:orange", "x")):
        after = (before + gains[name])[order]
        label = "after a random step" if name == "random" else "after the ascent"
        axes.plot(after, linestyle="", marker=marker, color=colour, markersize=5, label=label)
    axes.plot(before[order], linestyle="", marker="_", color="black", markersize=9, label="before")
    axes.set(xlabel="policy, by its return before", ylabel="real mean return")
    axes.legend(fontsize=8)


def metrics(results: Results) -> dict[str, float]:
    """All numbers, flat."""
    found: dict[str, float] = {}
    for name, each in results.items():
        for kind, row in each["tau"].items():
            found |= {f"{name}/{kind}/{key}": value for key, value in row.items()}
        for kind, row in gain_rows(each["gains"]).items():
            found |= {f"{name}/{kind}/{key}": value for key, value in row.items()}
        found[f"{name}/return before"] = float(each["gains"]["before"].mean())
        found[f"{name}/distance"] = float(each["gains"]["distance"].mean())
        found |= {f"{name}/processor seconds/{key}": value for key, value in each["seconds"].items()}
        found |= {f"{name}/policies/{part}": float(len(zoo)) for part, zoo in each["parts"].items()}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write table, figure and numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small zoo, few steps")
    parser.add_argument(
        "--environments", nargs="+", help="other than CartPole-v1 and MountainCarContinuous-v0"
    )
    parser.add_argument(
        "--zoos", type=Path, default=Path("runs"), help="folder of zoos that are there already"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each predictor")
    parser.add_argument("--out", type=Path, default=Path("runs/policies"), help="folder to write to")
    given = parser.parse_args(arguments)
    plan = Plan(seeds=given.seeds)
    if given.quick:
        climb = ImproveConfig(steps=5)
        plan = Plan(runs=10, steps=5, seeds=2, policies=4, fresh_episodes=2, resamples=20, climb=climb)
    chosen = settings(given.quick)
    wanted = given.environments or list(chosen)[:2]
    if not set(wanted) <= set(chosen):
        parser.error(f"environments are {', '.join(wanted)}, expected some of {', '.join(chosen)}")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    zoos = given.out if given.quick else given.zoos
    results = {name: measure(chosen[name], plan, zoos, given.out) for name in wanted}
    text = f"{tau_table(results)}\n\n{gain_table(results)}\n"
    print(text)
    with atomic_write(given.out / "policies.md") as temporary:
        temporary.write_text(text)
    draw(results, given.out / "policies.png")
    record = {
        "plan": dataclasses.asdict(plan),
        "split": SPLIT,
        "environments": {name: dataclasses.asdict(chosen[name]) for name in wanted},
        "kinds": {name: {**HEAD, **kind} for name, kind in KINDS.items()},
        "gymnasium_zoos": {name: dict(found["zoo"].meta.get("run", {})) for name, found in results.items()},
    }
    write_json(
        given.out / "result.json",
        {"config": record, "environment": environment(), "metrics": metrics(results)},
    )


if __name__ == "__main__":
    main()
