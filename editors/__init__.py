"""Implicit neural representations of images, and learned edits of their weights.

from editors import Editor, fit
inrs = fit(images, seed=0)
edited = Editor.pretrained("dilate")(inrs, strength=1.0)
pictures = edited.render()
"""

from editors.canonical import Signs, canonicalize
from editors.editor import Editor, EditorConfig, pretrained_editors
from editors.edits import EDITS, Edit, get_edit
from editors.errors import editing_error, editing_errors, editing_scores, no_edit_error, score_table
from editors.fitting import fit
from editors.inr_set import InrSet
from editors.pictures import draw_rows
from editors.siren import Siren, SirenConfig, coordinates, siren_apply
from editors.tiling import PictureEdit, edit_picture
from editors.training import train_editor
from editors.training_config import TrainEditorConfig

__all__ = [
    # INRs
    "InrSet",
    "Signs",
    "Siren",
    "SirenConfig",
    "canonicalize",
    "coordinates",
    "fit",
    "siren_apply",
    # edits of images
    "EDITS",
    "Edit",
    "get_edit",
    # edits of weights
    "Editor",
    "EditorConfig",
    "PictureEdit",
    "TrainEditorConfig",
    "draw_rows",
    "edit_picture",
    "editing_error",
    "editing_errors",
    "editing_scores",
    "no_edit_error",
    "pretrained_editors",
    "score_table",
    "train_editor",
]
