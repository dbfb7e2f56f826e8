"""Training runs of editors, each in a folder: fitted INRs, checkpoints, logs, pictures, the editor.

from editors.training_runs import EditorRunConfig, run_training
result = run_training(EditorRunConfig(out=Path("runs/dilate"), edit="dilate"))
"""

from editors.training_runs.config import EditorRunConfig, FittingConfig
from editors.training_runs.data import Part, Source, load_parts, load_source, prepare
from editors.training_runs.folder import EditorLog, EditorRunFolder, draw_training
from editors.training_runs.run import EditorRunResult, run_training

__all__ = [
    # a run
    "EditorRunConfig",
    "EditorRunResult",
    "FittingConfig",
    "run_training",
    # its data
    "Part",
    "Source",
    "load_parts",
    "load_source",
    "prepare",
    # its files
    "EditorLog",
    "EditorRunFolder",
    "draw_training",
]
