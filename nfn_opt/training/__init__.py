"""One loop for supervised trainings: of predictors, editors, autoencoders, generators of masks."""

from nfn_opt.training.config import TrainingConfig
from nfn_opt.training.loop import BatchLoss, Training, progress_bar
from nfn_opt.training.simple import TrainingResult, train

__all__ = [
    "BatchLoss",
    "Training",
    "TrainingConfig",
    "TrainingResult",
    "progress_bar",
    "train",
]
