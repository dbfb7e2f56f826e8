"""Families of inner problems: what learned optimizers are meta-trained and measured on."""

from nfn_opt.meta.families.image_tasks import autoencode, classify
from nfn_opt.meta.families.initializers import Initializer, InitKind
from nfn_opt.meta.families.network_tasks import (
    CharTask,
    InrTask,
    NetworkTask,
    SupervisedTask,
    cross_entropy,
    mean_squared_error,
)
from nfn_opt.meta.families.sources import DataSources
from nfn_opt.meta.families.stacked import run_stacked
from nfn_opt.meta.families.suite import SUITE, SuiteTask, suite

__all__ = [
    # Tasks
    "CharTask",
    "InrTask",
    "NetworkTask",
    "SupervisedTask",
    "autoencode",
    "classify",
    # Their parts
    "DataSources",
    "InitKind",
    "Initializer",
    "cross_entropy",
    "mean_squared_error",
    "run_stacked",
    # Evaluation
    "SUITE",
    "SuiteTask",
    "suite",
]
