"""The outer loop: training an update rule, with logs, checkpoints and exact resumption."""

from __future__ import annotations

import contextlib
import dataclasses

from tqdm import tqdm

from nfn_opt.artifacts import ArtifactError
from nfn_opt.meta.config import MetaTrainConfig
from nfn_opt.meta.evaluations import Evaluations
from nfn_opt.meta.guards import DivergenceError
from nfn_opt.meta.logs import RunLog, check_tensorboard
from nfn_opt.meta.processes import Processes, restarted
from nfn_opt.meta.run import Run
from nfn_opt.meta.run_folder import RunFolder, environment, write_json
from nfn_opt.meta.stopping import Agenda, Due, StopRequest
from nfn_opt.optim import UpdateRule

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"


@dataclasses.dataclass(frozen=True)
class MetaTrainResult:
    """What a call of :func:`meta_train` ended with.

    Attributes:
        rule: The rule, trained as far as the run went.
        folder: The run's files.
        step: Outer steps made, those before a resumption included.
        stopped_by: Number of the signal that stopped the run early, ``None`` if none did.
        finished: Whether all outer steps are made. If not, and no signal stopped it, its time was over.
        metrics: Scores on held-out tasks, see :func:`meta_train`; empty if the run is not finished.
    """

    rule: UpdateRule
    folder: RunFolder
    step: int
    stopped_by: int | None
    finished: bool
    metrics: dict[str, float | None]


def meta_train(
    config: MetaTrainConfig,
    *,
    resume: bool = False,
    command: str = "",
    processes: Processes | None = None,
) -> MetaTrainResult:
    """Train an update rule.

    Writes into ``config.out``: ``config.json``, ``train.csv``, ``tasks.csv``, ``evaluation.csv``,
    ``checkpoint.safetensors`` and ``checkpoint_before.safetensors``, at every evaluation a file in ``rules/`` and
    now and then ``curves.png``, and at the end ``rule.safetensors`` and ``result.json``. Of each held-out task
    ``T`` the metrics are ``T/final_loss`` and ``T/adam_final_loss``, the loss on all its training data after
    training with the rule and with Adam at its best learning rate, mean over seeds; and their standard deviations.

    An interrupt or a termination signal ends the run after the current outer step, with a checkpoint, and so does
    ``config.minutes``. A run that was stopped and resumed gives the same numbers as one that was not: bit for bit
    on a CPU, with the same versions and number of threads, whatever the number of processes.

    Args:
        config: What to do.
        resume: Go on with the run in ``config.out``. A process that ``torchrun`` has started again does so anyway.
        command: How the run was started, to be saved with the results.
        processes: Those that share the run and all call this function; this one alone if not given.

    Raises:
        FileExistsError: If ``config.out`` holds files and ``resume`` is false.
        FileNotFoundError: If there is nothing to resume.
        ValueError: If the run to resume has another configuration.
        DivergenceError: If no outer gradient is finite for many steps; the message names the last good checkpoint.
    """
    processes = processes or Processes()
    if config.tensorboard:
        check_tensorboard()
    run, folder = Run(config, processes), RunFolder(config.out)
    resume = _open(run, folder, resume, command)
    evaluations = Evaluations(run, folder, command)
    with StopRequest(patient=processes.size > 1) as stop, _logs(run, folder, resume) as log:
        due = _loop(run, folder, log, evaluations, Agenda(config, processes, stop))
    finished = run.step >= config.outer.steps
    metrics = _finish(evaluations) if finished else {}
    stopped_by = None if finished or due is None else due.signal
    return MetaTrainResult(run.outer.trained, folder, run.step, stopped_by, finished, metrics)


def _open(run: Run, folder: RunFolder, resume: bool, command: str) -> bool:
    """Claim the folder for a new run, or go back to the run's checkpoint; whether it did the latter."""
    processes, record = run.processes, run.config.record()
    again, saved, diverged = processes.shared(
        (restarted() and folder.config.exists(), folder.checkpoint.exists(), folder.why_diverged())
    )
    if again and diverged:  # the restart would diverge as well
        raise DivergenceError(diverged)
    processes.on_main(lambda: folder.reopen(record) if resume or again else folder.claim(record, command))
    if resume or (again and saved):
        try:
            run.load(folder.checkpoint)
        except (ArtifactError, FileNotFoundError) as error:
            if not folder.previous.exists():
                raise
            raise ArtifactError(
                f"{error}. The checkpoint before it is kept: copy {folder.previous} to {folder.checkpoint} and resume "
                "to go on from there"
            ) from error
        processes.on_main(lambda: folder.diverged.unlink(missing_ok=True))
        return True
    run.save(folder.checkpoint)
    return False


def _logs(run: Run, folder: RunFolder, resume: bool) -> contextlib.AbstractContextManager[RunLog | None]:
    if not run.processes.main:
        return contextlib.nullcontext()
    board = folder.tensorboard if run.config.tensorboard else None
    after = run.step if resume else None
    return RunLog(folder.train_log, folder.task_log, folder.evaluation_log, board, after)


def _loop(
    run: Run, folder: RunFolder, log: RunLog | None, evaluations: Evaluations, agenda: Agenda
) -> Due | None:
    """Make outer steps until all are made or a stop is due; what was due last."""
    config, steps, due = run.config, run.config.outer.steps, None
    with tqdm(
        total=steps,
        initial=run.step,
        disable=config.quiet or log is None,
        desc="meta-training",
        bar_format=BAR_FORMAT,
    ) as bar:
        while run.step < steps and not (due and due.stop):
            _advance(run, folder, log, bar)
            due = agenda.after(run.step)
            if due.evaluate:
                evaluations.log(log, bar)
            if due.checkpoint and (run.in_a_row == 0 or due.stop or run.step == steps):
                _save(run, folder)
    return due


def _advance(run: Run, folder: RunFolder, log: RunLog | None, bar: tqdm) -> None:
    try:
        row = run.advance()
    except DivergenceError as error:
        raise _located(error, folder, write=log is not None) from None
    if log is None:
        return
    log.train(row)
    if run.step % run.config.log_tasks_every == 0:
        log.tasks(run.step, run.task_losses)
    bar.update()
    bar.set_postfix(meta_loss=f"{row['meta_loss']:.4g}", dropped=row["dropped"])


def _located(error: DivergenceError, folder: RunFolder, *, write: bool) -> DivergenceError:
    """The error with the checkpoint to go on from."""
    good = folder.last_good()
    where = (
        "" if good is None else f"; the last good checkpoint is {good}, go on from it with start_from={good}"
    )
    located = DivergenceError(f"{error}{where}")
    if write:
        folder.diverged.write_text(f"{located}\n")
    return located


def _save(run: Run, folder: RunFolder) -> None:
    if run.processes.main:
        folder.keep_checkpoint()
    run.save(folder.checkpoint)


def _finish(evaluations: Evaluations) -> dict[str, float | None]:
    """Compare with Adam; write the rule, the picture and the result."""
    run, folder = evaluations.run, evaluations.folder
    metrics = evaluations.metrics()
    if not run.processes.main:
        return metrics
    evaluations.draw()
    evaluations.save(folder.rule, metrics)
    result = {
        "command": evaluations.command,
        "config": run.config.record(),
        "environment": environment(),
        "processes": run.processes.size,
        "seeds": list(range(run.config.evaluation_seeds)),
        "wall_time_s": round(run.seconds, 3),
        "metrics": metrics,
    }
    write_json(folder.result, result)
    return metrics
