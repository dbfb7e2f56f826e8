"""Families of inner problems: what learned optimizers are meta-trained and measured on."""

from nfn_opt.meta.families.augmentation import (
    Augmentation,
    AugmentedFamily,
    LossScale,
    NoisyGradients,
    WeightDecay,
)
from nfn_opt.meta.families.base import TaskFamily
from nfn_opt.meta.families.control import Environment
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
from nfn_opt.meta.families.policies import PolicyTask
from nfn_opt.meta.families.quadratics import QuadraticTask
from nfn_opt.meta.families.sources import DataSources
from nfn_opt.meta.families.stacked import run_stacked
from nfn_opt.meta.families.suite import SUITE, SuiteTask, suite
from nfn_opt.meta.families.table import (
    FAMILIES,
    FamilyEntry,
    check_disjoint,
    family_names,
    family_table,
    make_family,
)

__all__ = [
    # The table of families
    "FAMILIES",
    "FamilyEntry",
    "TaskFamily",
    "check_disjoint",
    "family_names",
    "family_table",
    "make_family",
    # Augmentation
    "Augmentation",
    "AugmentedFamily",
    "LossScale",
    "NoisyGradients",
    "WeightDecay",
    # Tasks
    "CharTask",
    "InrTask",
    "NetworkTask",
    "PolicyTask",
    "QuadraticTask",
    "SupervisedTask",
    "autoencode",
    "classify",
    # Their parts
    "DataSources",
    "Environment",
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
