"""The outer loop: training an update rule, with logs, checkpoints and exact resumption."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from nfn_opt.meta.config import MetaTrainConfig
from nfn_opt.meta.curves import draw_curves
from nfn_opt.meta.evaluate import Curves, Tuned
from nfn_opt.meta.logs import RunLog, check_tensorboard, read_csv
from nfn_opt.meta.run import Run
from nfn_opt.meta.run_folder import RunFolder, environment, write_json
from nfn_opt.meta.stopping import StopRequest
from nfn_opt.optim import UpdateRule, save_rule


@dataclasses.dataclass(frozen=True)
class MetaTrainResult:
    """What a call of :func:`meta_train` ended with.

    Attributes:
        rule: The rule, trained as far as the run went.
        folder: The run's files.
        step: Outer steps made, those before a resumption included.
        stopped_by: Number of the signal that stopped the run early, ``None`` if it was finished.
        metrics: Scores on held-out images, see :func:`meta_train`; empty if it was stopped.
    """

    rule: UpdateRule
    folder: RunFolder
    step: int
    stopped_by: int | None
    metrics: dict[str, float | None]


def meta_train(config: MetaTrainConfig, *, resume: bool = False, command: str = "") -> MetaTrainResult:
    """Train an update rule.

    Writes into ``config.out``: ``config.json``, ``train.csv``, ``evaluation.csv``, ``checkpoint.safetensors``,
    and at the end ``rule.safetensors``, ``curves.png`` and ``result.json``. Of each image set ``S`` the metrics
    are ``S/final_loss`` and ``S/adam_final_loss``, the loss on all held-out images (nats) after training on
    them with the rule and with Adam at its best learning rate, mean over seeds; and their standard deviations.

    An interrupt or a termination signal ends the run after the current outer step, with a checkpoint. A run
    that was interrupted and resumed gives the same numbers as one that was not: bit for bit on a CPU, with the
    same versions and number of threads.

    Args:
        config: What to do.
        resume: Go on with the run in ``config.out``.
        command: How the run was started, to be saved with the results.

    Raises:
        FileExistsError: If ``config.out`` holds files and ``resume`` is false.
        FileNotFoundError: If there is nothing to resume.
        ValueError: If the run to resume has another configuration.
        RuntimeError: If no outer gradient is finite for many steps.
    """
    if config.tensorboard:
        check_tensorboard()
    run, folder = Run(config), RunFolder(config.out)
    if resume:
        folder.reopen(config.record())
        run.load(folder.checkpoint)
    else:
        folder.claim(config.record(), command)
        run.save(folder.checkpoint)
    board = folder.tensorboard if config.tensorboard else None
    after = run.step if resume else None
    with StopRequest() as stop, RunLog(folder.train_log, folder.evaluation_log, board, after) as log:
        _loop(run, folder, log, stop)
    stopped_by = stop.signal if run.step < config.outer.steps else None
    metrics = {} if stopped_by else _finish(run, folder, command)
    return MetaTrainResult(run.rule, folder, run.step, stopped_by, metrics)


def _loop(run: Run, folder: RunFolder, log: RunLog, stop: StopRequest) -> None:
    config, steps = run.config, run.config.outer.steps
    with tqdm(total=steps, initial=run.step, disable=config.quiet, unit="step", desc="meta-training") as bar:
        while run.step < steps and stop.signal is None:
            row = run.advance()
            log.train(row)
            bar.update()
            bar.set_postfix(meta_loss=f"{row['meta_loss']:.4g}", dropped=row["dropped"])
            last = run.step == steps
            if last or run.step % config.evaluate_every == 0:
                _log_evaluation(run, log, bar)
            if last or stop.signal is not None or run.step % config.checkpoint_every == 0:
                run.save(folder.checkpoint)


def _log_evaluation(run: Run, log: RunLog, bar: tqdm) -> None:
    for images, curves in run.evaluate().items():
        row = {
            "step": run.step,
            "images": images,
            "final_loss": curves.score,
            "final_loss_std": curves.spread,
        }
        log.evaluation(row)
        if not run.config.quiet:
            bar.write(
                f"outer step {run.step}: training on held-out {images} ends at loss {curves.score:.4g} "
                f"+- {curves.spread:.2g} ({len(curves.final)} seeds)"
            )


def _finish(run: Run, folder: RunFolder, command: str) -> dict[str, float | None]:
    """Compare with Adam; write the rule, the picture and the result."""
    curves, adam = run.evaluate(), run.adam()
    metrics = _metrics(run, curves, adam)
    rows = read_csv(folder.train_log)
    meta_losses = [(int(row["step"]), float(row["meta_loss"])) for row in rows]
    evaluations: dict[str, list[tuple[int, float]]] = {}
    for row in read_csv(folder.evaluation_log):
        evaluations.setdefault(row["images"], []).append((int(row["step"]), float(row["final_loss"])))
    draw_curves(folder.curves, meta_losses, evaluations, curves, adam)
    record = run.config.record()
    save_rule(run.rule, folder.rule, {"command": command, "scores": metrics, "meta_training": record})
    result = {
        "command": command,
        "config": record,
        "environment": environment(),
        "seeds": list(range(run.config.evaluation_seeds)),
        "wall_time_s": round(run.seconds, 3),
        "metrics": metrics,
    }
    write_json(folder.result, result)
    return metrics


def _metrics(run: Run, curves: Mapping[str, Curves], adam: Mapping[str, Tuned]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for images in curves:
        tuned = adam[images]
        metrics |= {
            f"{images}/final_loss": curves[images].score,
            f"{images}/final_loss_std": curves[images].spread,
            f"{images}/adam_final_loss": tuned.best_curves.score,
            f"{images}/adam_final_loss_std": tuned.best_curves.spread,
            f"{images}/adam_lr": tuned.best,
        }
    inner = run.config.inner
    updates = run.step * inner.tasks * inner.truncation * len(curves)
    metrics |= {
        "outer_steps": run.step,
        "inner_steps_per_s": round(updates / run.seconds, 1),
        "dropped": sum(int(carry.dropped) for carry in run.carries),
        "skipped": run.skipped,
    }
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
