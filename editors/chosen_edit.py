"""One edit of an editor of several, as an editor of its own."""

from __future__ import annotations

import dataclasses

from editors.editor import Editor
from editors.editor_config import EditorConfig
from editors.edits import get_edit
from editors.inr_set import InrSet

__all__ = ["ChosenEdit"]


@dataclasses.dataclass(frozen=True)
class ChosenEdit:
    """One edit of an editor of several, used as an editor of one is.

    Attributes:
        editor: The editor.
        edit: The edit, as text.

    Raises:
        ValueError: If the editor has not learned the edit.

    Example:
        >>> from editors import fit
        >>> import torch
        >>> inrs = fit(torch.rand(2, 8, 8, 1, generator=torch.Generator().manual_seed(0)), steps=5)
        >>> config = EditorConfig(siren=inrs.config, edit="blur(sigma=0.5..2), invert", image_size=(8, 8))
        >>> soft = ChosenEdit(Editor(config), "blur(sigma=1.50)")
        >>> soft.config.edit, len(soft(inrs, strength=0.5))
        ('blur(sigma=1.5)', 2)
    """

    editor: Editor
    edit: str

    def __post_init__(self) -> None:
        self.editor.condition(self.edit, 1)
        if self.editor.family:
            object.__setattr__(self, "edit", str(get_edit(self.edit)))

    @property
    def config(self) -> EditorConfig:
        """The editor's configuration with this edit alone."""
        return dataclasses.replace(self.editor.config, edit=self.edit)

    def __call__(self, inrs: InrSet, strength: float = 1.0) -> InrSet:
        """Edit INRs; see :meth:`Editor.forward`."""
        return self.editor(inrs, strength, self.edit)
