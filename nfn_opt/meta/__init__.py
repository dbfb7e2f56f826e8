"""Meta-training: inner problems, unrolling, meta-gradients, the outer loop, comparison with tuned Adam."""

from nfn_opt.meta.carry import Carry
from nfn_opt.meta.classification import ClassificationTask, CNNClassification, MLPClassification
from nfn_opt.meta.config import FamilyConfig, InnerConfig, MetaTrainConfig, OuterConfig, TaskConfig
from nfn_opt.meta.estimators import TruncatedBackprop
from nfn_opt.meta.estimators_es import EvolutionStrategies, PersistentES
from nfn_opt.meta.evaluate import (
    ADAM_LEARNING_RATES,
    Curves,
    Probe,
    Tuned,
    evaluate,
    evaluate_runs,
    tuned_adam,
)
from nfn_opt.meta.families import (
    Augmentation,
    AugmentedFamily,
    CharTask,
    DataSources,
    Initializer,
    InrTask,
    NetworkTask,
    PolicyTask,
    QuadraticTask,
    SuiteTask,
    SupervisedTask,
    TaskFamily,
    check_disjoint,
    family_names,
    family_table,
    make_family,
    suite,
)
from nfn_opt.meta.guards import DivergenceError
from nfn_opt.meta.initialization import default_init
from nfn_opt.meta.mixture import Mixture
from nfn_opt.meta.objective import Objective
from nfn_opt.meta.pieces import MetaGradient
from nfn_opt.meta.processes import Processes, joined_processes
from nfn_opt.meta.recipes import available_recipes, load_recipe
from nfn_opt.meta.reparametrization import MixedReparametrization, Reparametrization
from nfn_opt.meta.run_folder import RunFolder
from nfn_opt.meta.stepper import InnerStep, losses_and_grads
from nfn_opt.meta.tasks import Task, TaskWrapper
from nfn_opt.meta.train import MetaTrainResult, meta_train
from nfn_opt.meta.tuning import LEARNING_RATES, Setting, Tuning, tune
from nfn_opt.meta.unroll import Unrolled, init_state, unroll

__all__ = [
    # Comparison
    "ADAM_LEARNING_RATES",
    "LEARNING_RATES",
    "Probe",
    "Setting",
    "Tuning",
    "evaluate_runs",
    "tune",
    # Inner problems
    "CNNClassification",
    # Unrolling and its gradient
    "Carry",
    "ClassificationTask",
    "Augmentation",
    "AugmentedFamily",
    "CharTask",
    "Curves",
    "EvolutionStrategies",
    "DataSources",
    "Initializer",
    "InrTask",
    "NetworkTask",
    # The outer loop
    "DivergenceError",
    "FamilyConfig",
    "InnerConfig",
    "InnerStep",
    "MLPClassification",
    "MetaGradient",
    "MixedReparametrization",
    "Mixture",
    "MetaTrainConfig",
    "MetaTrainResult",
    "Objective",
    "OuterConfig",
    "PersistentES",
    "PolicyTask",
    "QuadraticTask",
    "Processes",
    "Reparametrization",
    "RunFolder",
    "SuiteTask",
    "SupervisedTask",
    "Task",
    "TaskConfig",
    "TaskFamily",
    "TaskWrapper",
    "TruncatedBackprop",
    "Tuned",
    "Unrolled",
    "check_disjoint",
    "available_recipes",
    "default_init",
    "evaluate",
    "family_names",
    "family_table",
    "init_state",
    "joined_processes",
    "load_recipe",
    "losses_and_grads",
    "make_family",
    "meta_train",
    "suite",
    "tuned_adam",
    "unroll",
]
