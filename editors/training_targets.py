"""What editors are trained towards and measured on: edited images, made beforehand or drawn anew at every step."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from editors.edit_family import EditFamily
from editors.editor import Editor
from editors.errors import as_targets, no_edit_error, scores_of_edited
from editors.inr_set import InrSet
from editors.named_edit import Edit

__all__ = ["DrawnTargets", "Examples", "FixedTargets", "training_targets"]

EDITS_PER_STEP = 8
"""Edits that a step draws, at least, unless there are fewer INRs in a batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class FixedTargets:
    """The edited images of an editor of one edit.

    Attributes:
        values: What the edited INRs should predict, (N, P, C) in [-1, 1].
    """

    values: Tensor

    def batch(self, index: Tensor, share: slice, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """What a share of a batch should predict, and which edit is meant.

        Args:
            index: Numbers of the INRs of the whole batch.
            share: Which of them are wanted.
            generator: Source of the edits, where these are drawn.

        Returns:
            Values (B, P, C), and the condition that the editor is given, if any.
        """
        return self.values[index[share].to(self.values.device)], None


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnTargets:
    """Targets of an editor of several edits: for each INR of a batch an edit is drawn, and its image edited.

    The INRs of a batch take turns in a few edits, so that each edit is called once.

    Attributes:
        family: The edits.
        images: The images before the edit, (N, H, W, C) in [0, 1].
    """

    family: EditFamily
    images: Tensor

    def batch(self, index: Tensor, share: slice, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :meth:`FixedTargets.batch`."""
        members = len(self.family.members)
        turns = members * -(-EDITS_PER_STEP // members)
        edits = self.family.draw(min(turns, len(index)), generator)
        turn = (torch.arange(len(index)) % len(edits))[share]
        images = self.images[index[share].to(self.images.device)]
        edited = torch.empty_like(images)
        for number in turn.unique().tolist():
            mine = (turn == number).to(images.device)
            edited[mine] = edits[number](images[mine])
        told = self.family.conditions([edits[number] for number in turn.tolist()], len(turn))
        return (2 * edited - 1).flatten(1, 2), told.to(images.device)


def training_targets(editor: Editor, inrs: InrSet, targets: Tensor) -> FixedTargets | DrawnTargets:
    """What an editor is trained towards.

    Args:
        editor: The editor.
        inrs: INRs of the images before the edit.
        targets: The edited images; for an editor of several edits, the images before the edit.

    Raises:
        ValueError: If the images are not those of the INRs.
    """
    values = as_targets(inrs, targets)
    return FixedTargets(values) if editor.family is None else DrawnTargets(editor.family, targets)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """INRs and edited images that editors are measured on.

    Attributes:
        inrs: The INRs.
        targets: The edited images, values in [0, 1], shape (B, H, W, C).
        edits: For an editor of several edits, that of each INR.
        groups: For each edit of the family the INRs it is measured on, by its name.
    """

    inrs: InrSet
    targets: Tensor
    edits: tuple[Edit, ...] | None = None
    groups: dict[str, slice] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, family: EditFamily | None, inrs: InrSet, targets: Tensor) -> Examples:
        """Examples of an edit; of a family, each INR with each of its edits, the parameters on a fixed grid.

        Args:
            family: The family; None for an editor of one edit.
            inrs: The INRs.
            targets: The edited images; for a family the images before the edit.

        Raises:
            ValueError: If the images are not those of the INRs.
        """
        as_targets(inrs, targets)
        if family is None:
            return cls(inrs, targets)
        count, edits, edited = len(inrs), [], []
        for grid in family.grid():
            turns = [grid[number % len(grid)] for number in range(count)]
            made = torch.empty_like(targets)
            for number, edit in enumerate(grid[:count]):
                made[number :: len(grid)] = edit(targets[number :: len(grid)])
            edits += turns
            edited.append(made)
        groups = {
            str(member): slice(number * count, (number + 1) * count)
            for number, member in enumerate(family.members)
        }
        every = InrSet.concat([inrs] * len(groups))
        return cls(every, torch.cat(edited), tuple(edits), groups)

    def __len__(self) -> int:
        return len(self.inrs)

    def __getitem__(self, part: slice) -> Examples:
        edits = None if self.edits is None else self.edits[part]
        return Examples(self.inrs[part], self.targets[part], edits)

    @property
    def no_edit_error(self) -> float:
        """Mean error of leaving the INRs as they are."""
        return no_edit_error(self.inrs, self.targets)

    def scores(self, editor: Editor) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """What :func:`editors.editing_scores` gives, and the same for each edit of a family by its name."""
        edited = editor(self.inrs, 1.0, self.edits)
        by_edit = {
            name: scores_of_edited(edited[part], self.inrs[part], self.targets[part])
            for name, part in self.groups.items()
        }
        return scores_of_edited(edited, self.inrs, self.targets), by_edit
