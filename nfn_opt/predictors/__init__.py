"""Predictors: networks that read the weights of other networks, and tell a property of each.

Example:
    >>> import torch
    >>> from nfn_opt.data.zoos import CnnArchitecture
    >>> predictor = Predictor(CnnArchitecture(widths=(4, 4)), PredictorConfig(kind="np", hidden_channels=4))
    >>> shapes = CnnArchitecture(widths=(4, 4)).parameter_shapes
    >>> params = {name: torch.zeros(2, *shape) for name, shape in shapes.items()}
    >>> predictor.predict(params).shape
    torch.Size([2, 1])
"""

from nfn_opt.predictors.augmentation import permute_each
from nfn_opt.predictors.config import KINDS, PredictorConfig
from nfn_opt.predictors.group import NetworkGroup, failed_networks
from nfn_opt.predictors.predictor import Predictor
from nfn_opt.predictors.ranges import TrainingRange
from nfn_opt.predictors.scores import (
    CalibrationBin,
    Interval,
    bootstrap_tau,
    bootstrap_tau_difference,
    calibration,
    kendall_tau,
    r_squared,
)
from nfn_opt.predictors.shipped import list_predictors
from nfn_opt.predictors.tables import PredictorData, zoo_data
from nfn_opt.predictors.training import prediction_score, predictions, train_on_groups, train_predictor

__all__ = [
    # predictors
    "KINDS",
    "Predictor",
    "PredictorConfig",
    "TrainingRange",
    "list_predictors",
    # networks
    "NetworkGroup",
    "PredictorData",
    "failed_networks",
    "permute_each",
    "zoo_data",
    # training
    "prediction_score",
    "predictions",
    "train_on_groups",
    "train_predictor",
    # scores
    "CalibrationBin",
    "Interval",
    "bootstrap_tau",
    "bootstrap_tau_difference",
    "calibration",
    "kendall_tau",
    "r_squared",
]
