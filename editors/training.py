"""Training editors: the rendered edited INR has to match the edited image."""

from __future__ import annotations

import torch
from torch import Tensor

from editors.editor import Editor
from editors.errors import editing_error, no_edit_error, squared_errors
from editors.inr_set import InrSet
from editors.training_config import TrainEditorConfig
from editors.training_targets import Examples, training_targets
from nfn_opt.meta.processes import Processes
from nfn_opt.training import Training, progress_bar

__all__ = [
    "EditorTraining",
    "TrainEditorConfig",
    "editing_error",
    "no_edit_error",
    "train_editor",
]


def train_editor(
    editor: Editor,
    inrs: InrSet,
    targets: Tensor,
    *,
    config: TrainEditorConfig | None = None,
    validation: tuple[InrSet, Tensor] | None = None,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Train an editor, in place, and leave it with the weights that were best on the validation INRs.

    For a run with checkpoints in a folder see :func:`editors.training_runs.run_training`.

    Args:
        editor: The editor; its statistics are taken from `inrs`.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C). For an editor of several edits the images
            before the edit: every step draws edits and makes its targets from these.
        config: How to train.
        validation: Further INRs and their images, likewise, for choosing the weights that are kept.
        progress: Show a progress bar.

    Returns:
        One record for each validation: ``step``, ``seconds``, ``train`` (mean error since the record before) and
        ``validation``, errors with image values in [-1, 1].

    Raises:
        ValueError: If the images do not fit the INRs, or the INRs do not fit the editor.
        FloatingPointError: If the error is NaN or infinite in ``config.give_up_after`` steps in a row; the editor
            keeps the best weights so far.
    """
    training = EditorTraining(editor, inrs, targets, config=config, validation=validation)
    try:
        with progress_bar(training, training.title, disable=not progress) as bar:
            while not training.finished:
                training.advance()
                bar.update()
                if training.validation_due:
                    training.validate()
                    bar.set_postfix(training.postfix)
    except FloatingPointError:
        training.keep_best()
        raise
    training.keep_best()
    training.check_best()
    return training.history


class EditorTraining(Training):
    """The training of an editor: see :class:`nfn_opt.training.Training` for its course and its attributes.

    With several processes, each computes the error of its share of every batch and of the validation INRs, and the
    shares are added: the gradient is that of the whole batch in one process, but for rounding.

    Args:
        editor: The editor, which is changed in place; its statistics are taken from `inrs`.
        inrs: INRs of the images before the edit.
        targets: The edited images, values in [0, 1], shape (B, H, W, C). For an editor of several edits the images
            before the edit: every step draws edits and makes its targets from these.
        config: How to train.
        validation: Further INRs and their images, likewise, for choosing the weights that are kept.
        processes: Those that share the training and all hold the same INRs; this one alone if not given.

    Attributes:
        editor: The editor.
        examples: The validation INRs with their edited images, for a family with each of its edits.

    Raises:
        ValueError: If the images do not fit the INRs, the INRs do not fit the editor, or there are more processes
            than INRs in a batch.

    Example:
        >>> from editors import EditorConfig, fit
        >>> images = torch.rand(4, 6, 6, 1, generator=torch.Generator().manual_seed(0))
        >>> inrs = fit(images, steps=5)
        >>> editor = Editor(EditorConfig(siren=inrs.config, edit="invert", image_size=(6, 6)))
        >>> training = EditorTraining(editor, inrs, 1 - images, config=TrainEditorConfig(batch_size=2))
        >>> training.advance()["step"], training.finished
        (1, False)
    """

    def __init__(
        self,
        editor: Editor,
        inrs: InrSet,
        targets: Tensor,
        *,
        config: TrainEditorConfig | None = None,
        validation: tuple[InrSet, Tensor] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.editor, self._inrs, self._targets = editor, inrs, training_targets(editor, inrs, targets)
        self.examples: Examples | None = None
        if validation:
            editor.check(validation[0])
            self.examples = Examples.of(editor.family, *validation)
        editor.standardize(inrs)
        super().__init__(
            editor,
            len(inrs),
            self._batch_error,
            config=config or TrainEditorConfig(),
            measure=self._validation_error if validation else None,
            processes=processes,
        )

    @property
    def title(self) -> str:
        """What a progress bar says."""
        return f"training {self.editor.config.edit}"

    def _batch_error(self, index: Tensor, share: slice, generator: torch.Generator) -> Tensor:
        targets, condition = self._targets.batch(index, share, generator)
        mine = index[share].to(targets.device)
        params = {name: value[mine] for name, value in self._inrs.params.items()}
        edited = self.editor.edit_params(params, condition=condition)
        return squared_errors(self._inrs, edited, targets).mean()

    def _validation_error(self) -> float:
        assert self.examples is not None
        mine = self.examples[self.processes.rank :: self.processes.size]
        part = (mine.inrs, mine.targets, 1.0, mine.edits)
        if self.processes.size == 1:
            return editing_error(self.editor, *part)
        error = len(mine) / len(self.examples) * editing_error(self.editor, *part) if len(mine) else 0.0
        return self.processes.sum(torch.tensor(error, dtype=torch.float64)).item()
