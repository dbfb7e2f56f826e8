"""Learned optimizers, untuned, beside hand-designed ones that are tuned on the very task, on held-out tasks.

python -m benchmarks.learned_optimizers [--quick] [--rules default ...] [--data mnist=FILE cifar10=FILE] --out FOLDER

All optimizers start from the same initial parameters and see the same minibatches, seed by seed. A learned rule is
told the number of steps and nothing else. SGD with momentum, Adam, AdamW, NAdam, Lion and Muon are each tuned on the
task over seven learning rates (and further ones, while the best is at the edge) times three schedules (constant,
cosine to 0, linear to 0 after 5 % of warm-up), by the final training loss: Adam on all the seeds that are reported,
the others on the first of them. A run fails if a loss is not finite or the last is above the first; a failed run
has an infinite loss and a speed-up of 0. Speed-up is the number of steps in which tuned Adam reaches its own final
loss, over the number in which the optimizer reaches it, both smoothed, seed by seed. A rule that was meta-trained
on the family of a task is refused.

Every training is kept in a file of its own, so that a killed benchmark goes on where it was, and another rule
is measured without training the others again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import learned_optimizers_report as report
from benchmarks.learned_optimizers_runs import (
    BASELINE,
    OPTIMIZERS,
    Options,
    Record,
    Training,
    build,
    carry_out_all,
    fingerprint,
    read_rule,
    refuse_overlap,
)
from benchmarks.learned_optimizers_time import step_milliseconds
from nfn_opt.meta import suite
from nfn_opt.meta.run_folder import environment, write_json

LONG_TASKS = ("cnn-mnist", "transformer-text-small", "siren-digit", "autoencoder-mnist")
"""Tasks that are also trained for longer."""

FACTORS = (2, 5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train everything, then write the tables, the pictures and the numbers."""
    given = _parser().parse_args(arguments)
    rules = _labelled(given.rules)
    tasks = [task.name for task in suite(given.tasks)]
    refuse_overlap(list(rules.values()), suite(given.tasks))
    data = tuple(_pair(text) for text in given.data)
    options = Options(data=data, share=0.3, seeds=2, schedules=("constant", "cosine"), extend=0)
    options = options if given.quick else Options(data=data)
    trainings = plan(tasks, rules, () if given.quick else FACTORS)
    start = time.perf_counter()
    done: dict[int, dict[tuple[str, str], Record]] = {}
    with tqdm(total=len(trainings), unit="training") as bar:
        for training, record in carry_out_all(trainings, options, given.out / "runs", given.workers):
            done.setdefault(training.factor, {})[training.task, training.optimizer] = record
            bar.set_postfix_str(training.file)
            bar.update()
    times = _times(tasks, rules, options, given.out)
    names = [*rules, *OPTIMIZERS]
    text = page(done, tasks, list(rules), times)
    (given.out / "learned_optimizers.md").write_text(text)
    report.draw(given.out / "learned_optimizers.png", done[1], tasks, names)
    report.draw(given.out / "learned_optimizers_time.png", done[1], tasks, names, times)
    write_json(
        given.out / "result.json",
        {
            "config": {
                **dataclasses.asdict(options),
                "tasks": tasks,
                "rules": rules,
                "quick": given.quick,
                "workers": given.workers,
            },
            "environment": {**environment(), "load": os.getloadavg()},
            "seconds": time.perf_counter() - start,
            "training_seconds": sum(r.seconds for records in done.values() for r in records.values()),
            "step_milliseconds": times,
            "metrics": report.metrics(done[1], tasks, names, list(rules)),
        },
    )
    print(text)


def plan(tasks: Sequence[str], rules: Mapping[str, str], factors: Sequence[int]) -> list[Training]:
    """All trainings, task by task; learned rules and Adam also at longer horizons on some tasks."""
    trainings = []
    for task in tasks:
        for factor in (1, *(factors if task in LONG_TASKS else ())):
            kinds = OPTIMIZERS if factor == 1 else (BASELINE,)
            trainings += [Training(task=task, optimizer=kind, factor=factor) for kind in kinds]
            trainings += [
                Training(task=task, optimizer=label, rule=rule, factor=factor)
                for label, rule in rules.items()
            ]
    return trainings


def page(
    done: Mapping[int, Mapping[tuple[str, str], Record]],
    tasks: Sequence[str],
    rules: Sequence[str],
    times: Mapping[str, Mapping[str, float]],
) -> str:
    """The tables, as Markdown."""
    records, names = done[1], [*rules, *OPTIMIZERS]
    seeds = next(iter(records.values())).final.size
    steps = sorted({record.losses.shape[1] for record in records.values()})
    parts = [
        f"{len(tasks)} tasks, {seeds} seeds, {' to '.join(map(str, steps))} steps. Numbers in brackets are 95 % "
        "intervals of a stratified bootstrap over seeds, or over tasks and seeds where it says so. "
        f"Median speed-up in time counts a whole training step of one network, one thread.\n\n"
        "## Compared with tuned Adam\n",
        report.summary_table(records, tasks, names, times),
        "\n## Final training loss, mean and deviation over seeds\n",
        report.loss_table(records, tasks, names),
        "\n## Speed-up in steps to tuned Adam's final loss, and time of a training step\n",
        report.speed_table(records, tasks, names, times),
    ]
    if len(done) > 1:
        parts += [
            "\n## Longer horizons, Adam tuned anew at each\n",
            report.horizon_table(dict(sorted(done.items())), rules),
        ]
    if len(rules) > 1:
        parts += ["\n## Learned rules in pairs\n", report.pair_table(records, tasks, rules)]
    return "\n".join(parts) + "\n"


def _times(
    tasks: Sequence[str], rules: Mapping[str, str], options: Options, out: Path
) -> dict[str, dict[str, float]]:
    """Time of a step of each optimizer on each task; measured after the trainings, in one thread."""
    loaded = {label: read_rule(rule) for label, rule in rules.items()}
    signature = {label: fingerprint(rule) for label, rule in loaded.items()}
    found, before = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for name in tqdm(tasks, desc="time of a step", unit="task"):
        path = out / "runs" / f"{name}.times.json"
        stored = json.loads(path.read_text()) if path.exists() else {}
        if stored.get("rules") != signature:
            _, task = build(name, options.data)
            stored = {"rules": signature, "milliseconds": step_milliseconds(task, loaded)}
            write_json(path, stored)
        found[name] = stored["milliseconds"]
    torch.set_num_threads(before)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter trainings, two seeds, two schedules")
    parser.add_argument(
        "--rules", nargs="+", default=["default"], help="bundled names or files, also as LABEL=FILE"
    )
    parser.add_argument("--tasks", nargs="+", help="tasks of the suite; all of them if left out")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="files of image sets")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; 0 for this process alone"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/learned_optimizers"), help="folder to write to"
    )
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise ValueError(f"--data got {text!r}, expected NAME=FILE, such as mnist=mnist_train.npz")
    return name, value


def _labelled(rules: Sequence[str]) -> dict[str, str]:
    """Rules by their labels: the name, or that of the file."""
    found: dict[str, str] = {}
    for text in rules:
        label, separator, value = text.partition("=")
        name, value = (label, value) if separator else (Path(text).stem, text)
        if name in found or name in OPTIMIZERS:
            raise ValueError(f"the label {name!r} is taken, expected another one; write LABEL={value}")
        found[name] = value
    return found


if __name__ == "__main__":
    main()
