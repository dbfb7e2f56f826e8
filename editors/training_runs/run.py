"""A training run of an editor in a folder: logs, pictures, checkpoints and exact resumption."""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
from typing import Any

import torch

from editors.editor import Editor
from editors.pictures import draw_rows
from editors.training import EditorTraining
from editors.training_runs.config import EditorRunConfig
from editors.training_runs.data import Part, Source, load_parts, load_source, prepare
from editors.training_runs.folder import TITLE_WIDTH, EditorLog, EditorRunFolder, draw_training
from editors.training_targets import Examples
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.meta.logs import check_tensorboard
from nfn_opt.meta.processes import Processes, restarted
from nfn_opt.meta.run_folder import environment, write_json
from nfn_opt.meta.stopping import Agenda, Due, StopRequest
from nfn_opt.training import progress_bar

__all__ = ["EditorRunResult", "run_training"]

KIND = "editor_training"
"""The kind of a checkpoint's file."""

SHOWN_EDITS = 6
"""Edits of a family that the picture of samples shows, at most."""


@dataclasses.dataclass(frozen=True)
class EditorRunResult:
    """What a call of :func:`run_training` ended with.

    Attributes:
        editor: The editor, with the weights that were best so far.
        folder: The run's files.
        step: Steps made, those before a resumption included.
        stopped_by: Number of the signal that stopped the run, ``None`` if none did.
        finished: Whether the training is at its end. If not, and no signal stopped it, its time was over.
        scores: For ``validation`` and ``test``, what :func:`editors.editing_scores` gives; empty if not finished. Of
            an editor of several edits also for each of them, as ``test/invert``.
    """

    editor: Editor
    folder: EditorRunFolder
    step: int
    stopped_by: int | None
    finished: bool
    scores: dict[str, dict[str, float]]


def run_training(
    config: EditorRunConfig,
    *,
    resume: bool = False,
    command: str = "",
    processes: Processes | None = None,
) -> EditorRunResult:
    """Fit INRs, train an editor and measure it.

    Writes into ``config.out``: ``config.json``; the INRs; ``train.csv`` with every step and ``validation.csv``;
    ``checkpoint.safetensors`` and ``checkpoint_before.safetensors``; ``editor.safetensors``, the best weights so
    far, ``curves.png`` and ``samples.png`` at every validation; and ``result.json`` at the end.

    An interrupt or a termination signal ends the run after the current step, with a checkpoint, and so does
    ``config.minutes``. A run that was stopped and resumed gives the same numbers as one that was not: bit for bit
    on a CPU, with the same versions and number of threads and processes.

    Args:
        config: What to do.
        resume: Go on with the run in ``config.out``. A process that ``torchrun`` has started again does so anyway.
        command: How the run was started, to be saved with the results.
        processes: Those that share the run and all call this function; this one alone if not given.

    Raises:
        FileExistsError: If ``config.out`` holds files and ``resume`` is false.
        FileNotFoundError: If there is nothing to resume, or a file of images or INRs is missing.
        ValueError: If the run to resume has another configuration, or the images cannot be used.
        FloatingPointError: If the error stays NaN or infinite; the message says where the best weights are.
    """
    processes = processes or Processes()
    if config.tensorboard:
        check_tensorboard()
    folder = EditorRunFolder(config.out)
    sources = _load(config, processes)
    resume = _open(config, folder, resume, command, processes)
    processes.on_main(lambda: prepare(config, sources, folder.path))
    parts = load_parts(sources, folder.path, processes.device(config.device))
    run = _EditorRun(config, folder, command, processes, parts, sources["train"].images.source)
    return run.go(resume)


def _load(config: EditorRunConfig, processes: Processes) -> dict[str, Source]:
    """The images, in the main process first: a set that is not there yet is downloaded once."""
    loaded: list[dict[str, Source]] = []
    processes.on_main(lambda: loaded.append(load_source(config)))
    return loaded[0] if loaded else load_source(config)


def _open(
    config: EditorRunConfig, folder: EditorRunFolder, resume: bool, command: str, processes: Processes
) -> bool:
    """Claim the folder for a new run, or check that it holds this one; whether it does."""
    again, diverged = processes.shared((restarted() and folder.config.exists(), folder.why_diverged()))
    if again and diverged:  # the restart would diverge as well
        raise FloatingPointError(diverged)
    record = config.record()
    processes.on_main(lambda: folder.reopen(record) if resume or again else folder.claim(record, command))
    return resume or again


class _EditorRun:
    """A run whose INRs are there."""

    def __init__(
        self,
        config: EditorRunConfig,
        folder: EditorRunFolder,
        command: str,
        processes: Processes,
        parts: dict[str, Part],
        source: str,
    ) -> None:
        self.config, self.folder, self.command, self.processes = config, folder, command, processes
        self.parts, self.source = parts, source
        train, validation = parts["train"], parts["validation"]
        editor = Editor(
            config.editor(train.inrs.config, train.inrs.image_size),
            generator=torch.Generator().manual_seed(config.seed),
        ).to(processes.device(config.device))
        self.training = EditorTraining(
            editor,
            train.inrs,
            train.targets,
            config=config.training,
            validation=(validation.inrs, validation.targets),
            processes=processes,
        )
        assert self.training.examples is not None
        self.no_edit = self.training.examples.no_edit_error

    def go(self, resume: bool) -> EditorRunResult:
        """Train to the end, or until a stop."""
        training, processes = self.training, self.processes
        resume = resume and processes.shared(self.folder.checkpoint.exists())
        if resume:
            self._restore()
        elif processes.main:
            self._save()
        with StopRequest(patient=processes.size > 1) as stop, self._log(resume) as log:
            try:
                due = self._loop(log, Agenda(self.config, processes, stop))
                training.keep_best()
                if training.finished:
                    training.check_best()
            except FloatingPointError as error:
                raise self._given_up(error) from None
        scores = self._finish() if training.finished else {}
        stopped_by = None if training.finished or due is None else due.signal
        return EditorRunResult(
            training.editor, self.folder, training.step, stopped_by, training.finished, scores
        )

    def _log(self, resume: bool) -> contextlib.AbstractContextManager[EditorLog | None]:
        if not self.processes.main:
            return contextlib.nullcontext()
        after = self.training.step if resume else None
        return EditorLog(self.folder, tensorboard=self.config.tensorboard, after=after)

    def _loop(self, log: EditorLog | None, agenda: Agenda) -> Due | None:
        """Make steps until the training is at its end or a stop is due; what was due last."""
        training, due = self.training, None
        with progress_bar(training, training.title, disable=self.config.quiet or log is None) as bar:
            while not training.finished and not (due and due.stop):
                row = training.advance()
                if log is not None:
                    log.train(row)
                bar.update()
                bar.set_postfix({"error": f"{row['error']:.4f}", **training.postfix}, refresh=False)
                if training.validation_due:
                    self._validate(log)
                due = agenda.after(training.step)
                asked = due.checkpoint and (training.in_a_row == 0 or due.stop)
                if log is not None and (asked or training.finished):
                    self.folder.keep_checkpoint()
                    self._save()
        return due

    def _validate(self, log: EditorLog | None) -> None:
        training = self.training
        record = training.validate()
        if log is None:
            return
        log.validation(record)
        if training.best_step == training.step:
            training.editor.save(self.folder.editor, self._metadata())
        self._draw(f"step {training.step}", record["validation"])

    def _draw(self, when: str, error: float) -> None:
        part, editor = self.parts["validation"], self.training.editor
        edit = editor.config.edit
        some = part.inrs[: self.config.samples]
        targets = part.targets[: self.config.samples]
        rows = {"before": some.render()}
        if editor.family is None:
            rows |= {"exact edit": targets, "learned edit": editor(some).render()}
        else:
            for shown in editor.family.examples[:SHOWN_EDITS]:
                rows |= {f"{shown}": shown(targets), f"{shown}, learned": editor(some, edit=shown).render()}
        what = textwrap.fill(f"Validation INRs, edit {edit!r}, {when}.", TITLE_WIDTH)
        title = (
            f"{what} Mean squared error, values in [-1, 1]:\n"
            f"no edit {self.no_edit:.4f}, learned edit {error:.4f} ({len(part.inrs)} images)"
        )
        draw_rows(self.folder.samples, rows, title)
        draw_training(self.folder, edit=edit, no_edit=self.no_edit)

    def _metadata(self) -> dict[str, Any]:
        """How the editor was trained so far."""
        training = self.training
        return {
            "command": self.command,
            "data": self.source,
            "inrs": len(self.parts["train"].inrs),
            "seed": self.config.seed,
            "training": dataclasses.asdict(self.config.training),
            "step": training.best_step,
            "history": training.history,
            "wall_time_s": round(training.seconds, 1),
            "processes": self.processes.size,
            "environment": environment(),
        }

    def _finish(self) -> dict[str, dict[str, float]]:
        """Measure the best weights; write the editor, the pictures and the result."""
        training = self.training
        scores: dict[str, dict[str, float]] = {}
        if self.processes.main:
            for name in ("validation", "test"):
                part = self.parts[name]
                examples = Examples.of(training.editor.family, part.inrs, part.targets)
                scores[name], by_edit = examples.scores(training.editor)
                scores |= {f"{name}/{edit}": one for edit, one in by_edit.items()}
            metadata = self._metadata()
            training.editor.metadata = {
                **metadata,
                "scores": scores["test"],
                "validation_scores": scores["validation"],
            }
            if training.editor.family:
                training.editor.metadata["scores_by_edit"] = by_edit
            training.editor.save(self.folder.editor)
            self._draw(f"best weights, of step {training.best_step}", training.best)
            result = {
                "command": self.command,
                "config": self.config.record(),
                "environment": metadata["environment"],
                "processes": self.processes.size,
                "steps": training.step,
                "best_step": training.best_step,
                "stopped_early": training.stopped_early,
                "skipped_steps": training.skipped,
                "wall_time_s": metadata["wall_time_s"],
                "metrics": {
                    f"{name}/{key}": value for name, one in scores.items() for key, value in one.items()
                },
            }
            write_json(self.folder.result, result)
        return self.processes.shared(scores)

    def _given_up(self, error: FloatingPointError) -> FloatingPointError:
        """The error with the place of the best weights, which the editor gets."""
        self.training.keep_best()
        kept = self.processes.shared(self.folder.editor.exists())
        located = FloatingPointError(
            f"{error}; the best weights so far are in {self.folder.editor}" if kept else str(error)
        )
        if self.processes.main:
            self.folder.diverged.write_text(f"{located}\n")
        return located

    def _save(self) -> None:
        save_artifact(
            self.folder.checkpoint,
            self.training.tensors(),
            kind=KIND,
            metadata={"progress": self.training.counters()},
        )

    def _restore(self) -> None:
        """Go back to the checkpoint.

        Raises:
            ArtifactError: If it is damaged or of another run; the message names the one before.
        """
        checkpoint, before = self.folder.checkpoint, self.folder.previous
        try:
            tensors, metadata = load_artifact(checkpoint, kind=KIND)
            self.training.restore(tensors, metadata["progress"])
        except (ArtifactError, RuntimeError, KeyError) as error:
            hint = f"copy {before} to {checkpoint} and resume to go on from the one before"
            raise ArtifactError(
                f"the checkpoint cannot be used: {error}{f'; {hint}' if before.exists() else ''}"
            ) from error
        self.processes.on_main(lambda: self.folder.diverged.unlink(missing_ok=True))
