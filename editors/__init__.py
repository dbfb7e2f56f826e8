"""Implicit neural representations of images, and learned edits of their weights.

from editors import Editor, fit
inrs = fit(images, seed=0)
edited = Editor.pretrained("dilate")(inrs, strength=1.0)
pictures = edited.render()
"""

from editors.canonical import Signs, canonicalize
from editors.chosen_edit import ChosenEdit
from editors.edit_family import EditFamily
from editors.editor import Editor
from editors.editor_config import WEIGHTS_ONLY, EditorConfig
from editors.edits import EDITS, Edit, find_edit, get_edit
from editors.errors import editing_error, editing_errors, editing_scores, no_edit_error, score_table
from editors.fit_files import fit_to_file
from editors.fit_options import FitOptions
from editors.fitting import fit
from editors.guide import Guide, GuideConfig
from editors.inr_set import InrSet
from editors.picture_edit import PictureEdit, edit_picture, edit_tiles, parameter_sweep, strength_sweep
from editors.pictures import draw_rows
from editors.public_sets import PublicInr, list_public_inrs, load_public_inrs
from editors.report import write_report
from editors.shipped import pretrained_editors
from editors.siren import Siren, SirenConfig, coordinates, siren_apply
from editors.tiling import TiledPicture, fit_picture
from editors.training import train_editor
from editors.training_config import TrainEditorConfig

list = pretrained_editors  # noqa: A001  read as `editors.list()`; not for `import *`

__all__ = [
    # INRs
    "FitOptions",
    "InrSet",
    "PublicInr",
    "Signs",
    "Siren",
    "SirenConfig",
    "canonicalize",
    "coordinates",
    "fit",
    "fit_to_file",
    "list_public_inrs",
    "load_public_inrs",
    "siren_apply",
    # edits of images
    "EDITS",
    "Edit",
    "EditFamily",
    "find_edit",
    "get_edit",
    # edits of weights
    "ChosenEdit",
    "Editor",
    "EditorConfig",
    "WEIGHTS_ONLY",
    "Guide",
    "GuideConfig",
    "PictureEdit",
    "TiledPicture",
    "TrainEditorConfig",
    "draw_rows",
    "edit_picture",
    "edit_tiles",
    "editing_error",
    "editing_errors",
    "editing_scores",
    "fit_picture",
    "no_edit_error",
    "parameter_sweep",
    "pretrained_editors",
    "score_table",
    "strength_sweep",
    "train_editor",
    "write_report",
]
