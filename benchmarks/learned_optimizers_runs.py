"""Trainings of the learned-optimizer benchmark: one optimizer on one task at one horizon, kept in a file each."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nfn_opt.meta import Curves, DataSources, SuiteTask, Task, evaluate, suite, tune
from nfn_opt.meta.families.table import FAMILIES, check_disjoint
from nfn_opt.meta.run_folder import write_json
from nfn_opt.optim import (
    UpdateRule,
    available_rules,
    load_rule,
    pretrained,
    pretrained_metadata,
    rule_metadata,
)
from nfn_opt.optim.classic_schedule import Schedule

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"momentum": 0.9},
    "adamw": {},
    "nadam": {},
    "lion": {},
    "muon": {},
}
"""Hand-designed optimizers, the baseline first, with the options that are not tuned."""

BASELINE = "adam"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What all trainings of the benchmark share.

    Attributes:
        data: Image sets and the files that they are read from.
        share: Share of each task's own horizon that it is trained for.
        seeds: Number of seeds that are reported.
        schedules: Schedules that hand-designed optimizers are tuned over.
        extend: How often the learning rates are extended while the best is at the edge.
    """

    data: tuple[tuple[str, str], ...] = ()
    share: float = 1.0
    seeds: int = 3
    schedules: tuple[Schedule, ...] = ("constant", "cosine", "linear")
    extend: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One optimizer on one task.

    Attributes:
        task: Name of the task.
        optimizer: Kind of a hand-designed optimizer, or the label of a learned rule.
        rule: File or bundled name of a learned rule, ``None`` for a hand-designed one.
        factor: Horizon over that of the task.
    """

    task: str
    optimizer: str
    rule: str | None = None
    factor: int = 1

    @property
    def file(self) -> str:
        """Name of the file that keeps the result."""
        return f"{self.task}.{self.optimizer}.{self.factor}x.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a training gave.

    Attributes:
        losses: Minibatch loss before each update, shape (seeds, steps).
        initial: Loss on all training data at the start, shape (seeds,).
        final: The same at the end; infinite where the run failed.
        setting: Tuned learning rate and schedule, for the tables; empty for a learned rule.
        at_edge: Whether the tuned learning rate is the smallest or largest of those tried.
        tried: Number of settings tried.
        seconds: Time that all trainings took together.
    """

    losses: NDArray[np.float64]
    initial: NDArray[np.float64]
    final: NDArray[np.float64]
    setting: str
    at_edge: bool
    tried: int
    seconds: float

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which runs failed, shape (seeds,)."""
        return ~np.isfinite(self.final)


def read_rule(name: str) -> UpdateRule:
    """A bundled rule by its name, or one from a file."""
    return pretrained(name) if name in available_rules() else load_rule(name)


def trained_on(name: str) -> tuple[str, ...]:
    """Families that a rule was meta-trained on, as its file says; none if it says nothing.

    Args:
        name: File or bundled name.
    """
    return _families(pretrained_metadata(name) if name in available_rules() else rule_metadata(name))


def _families(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Families in the metadata of a rule, and of the one that its training started from."""
    training = record.get("meta_training", {})
    before = _families(record["started_from"]) if "started_from" in record else ()
    if "families" not in training:
        return (training["task"]["network"],) if "task" in training else ()
    names = [family["name"] if isinstance(family, dict) else family for family in training["families"]]
    network = training.get("task", {}).get("network", "mlp")
    return tuple(dict.fromkeys([*before, *(network if name == "images" else name for name in names)]))


def refuse_overlap(rules: Sequence[str], tasks: Sequence[SuiteTask]) -> None:
    """Refuse rules that were meta-trained on the family of a task.

    Raises:
        ValueError: If there is one; the message names it.
    """
    evaluated = {task.family for task in tasks} & set(FAMILIES)
    for rule in rules:
        try:
            check_disjoint([name for name in trained_on(rule) if name in FAMILIES], evaluated)
        except ValueError as error:
            raise ValueError(f"{rule}: {error}; choose the tasks with --tasks") from error


def fingerprint(rule: UpdateRule) -> str:
    """A digest of a rule's configuration and outer parameters."""
    digest = hashlib.sha256(json.dumps([rule.kind, dataclasses.asdict(rule.config)], sort_keys=True).encode())
    for name, tensor in rule.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def carry_out(training: Training, options: Options, folder: Path) -> Record:
    """The result of a training, from its file if it is there and was made with the same options.

    Args:
        training: What to train.
        options: How.
        folder: Where the files are kept.
    """
    path, signature = folder / training.file, _signature(training, options)
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["signature"] == signature:
            return _from_json(stored)
    start = time.perf_counter()
    found = _train(training, options)
    torch._dynamo.reset()  # compiled steps would stay in memory
    record = dataclasses.replace(found, seconds=time.perf_counter() - start)
    write_json(path, {"signature": signature, **_to_json(record)})
    return record


def carry_out_all(
    trainings: Sequence[Training], options: Options, folder: Path, workers: int
) -> Iterator[tuple[Training, Record]]:
    """Every training with its result, in the order in which they are done.

    Args:
        trainings: What to train.
        options: How.
        folder: Where the files are kept; a killed benchmark goes on from there.
        workers: Processes, each of one thread; 0 for this process.
    """
    if workers == 0:
        for training in trainings:
            yield training, carry_out(training, options, folder)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        jobs = {pool.submit(carry_out, training, options, folder): training for training in trainings}
        try:
            for job in concurrent.futures.as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


@functools.lru_cache(maxsize=2)
def build(name: str, data: tuple[tuple[str, str], ...]) -> tuple[SuiteTask, Task]:
    """A task of the suite by its name, with its data."""
    found = suite([name])[0]
    return found, found.build(DataSources(dict(data)))


def steps_of(training: Training, options: Options) -> int:
    """Number of updates of a training."""
    return max(1, round(suite([training.task])[0].horizon * options.share)) * training.factor


@functools.lru_cache(maxsize=64)
def task_digest(name: str, data: tuple[tuple[str, str], ...]) -> str:
    """A digest of what a task draws, so that results of another version of it are not taken for its own."""
    task, generator = build(name, data)[1], torch.Generator().manual_seed(0)
    drawn = tree_leaves([task.init(generator, 1), task.batch(generator, 1)])
    digest = hashlib.sha256()
    for tensor in drawn:
        digest.update(str(tensor.shape).encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _signature(training: Training, options: Options) -> dict[str, Any]:
    signature = {
        "task": task_digest(training.task, options.data),
        "steps": steps_of(training, options),
        "seeds": options.seeds,
        "data": [list(pair) for pair in options.data],
    }
    if training.rule is not None:
        return {**signature, "rule": fingerprint(read_rule(training.rule))}
    return {**signature, "schedules": list(options.schedules), "extend": options.extend}


def _train(training: Training, options: Options) -> Record:
    _, task = build(training.task, options.data)
    steps, seeds = steps_of(training, options), range(options.seeds)
    if training.rule is not None:
        rule = read_rule(training.rule)
        example = next(iter(task.init(torch.Generator(), 1).values()))
        return _record(evaluate(rule.to(example), task, seeds=seeds, steps=steps))
    tuned = tune(
        training.optimizer,
        task,
        schedules=options.schedules,
        seeds=seeds,
        tuning_seeds=seeds if training.optimizer == BASELINE else seeds[:1],
        steps=steps,
        extend=options.extend,
        options=OPTIMIZERS[training.optimizer],
    )
    record = _record(tuned.best_curves)
    setting = f"{tuned.best.lr:g} {tuned.best.schedule}"
    return dataclasses.replace(record, setting=setting, at_edge=tuned.at_edge, tried=len(tuned.curves))


def _record(curves: Curves) -> Record:
    def array(tensor: Tensor) -> NDArray[np.float64]:
        return tensor.detach().cpu().double().numpy()

    assert curves.initial is not None
    return Record(array(curves.losses), array(curves.initial), array(curves.outcome), "", False, 1, 0.0)


def _to_json(record: Record) -> dict[str, Any]:
    plain = dataclasses.asdict(record)
    return {name: _plain(v) if isinstance(v, np.ndarray) else v for name, v in plain.items()}


def _plain(values: Any) -> Any:
    """Nested lists of six digits, with ``None`` for what is not finite, which JSON has not."""
    if isinstance(values, np.ndarray) and values.ndim > 0:
        return [_plain(row) for row in values]
    return float(f"{values:.6g}") if math.isfinite(values) else None


def _from_json(stored: dict[str, Any]) -> Record:
    def array(name: str, missing: float) -> NDArray[np.float64]:
        values = np.array(stored[name], dtype=np.float64)
        return np.where(np.isnan(values), missing, values)

    return Record(
        array("losses", np.nan),
        array("initial", np.nan),
        array("final", np.inf),
        *(stored[name] for name in ("setting", "at_edge", "tried", "seconds")),
    )
