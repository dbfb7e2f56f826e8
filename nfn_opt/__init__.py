"""Neural functionals for PyTorch: networks that read, edit and optimize the weights of other networks."""

from __future__ import annotations

__version__ = "0.1.0"

from nfn_opt.functionals import EquivariantConfig, EquivariantFunctional
from nfn_opt.layers import InvariantPool, NFLinear, Pointwise
from nfn_opt.optim import LearnedOptimizer, UpdateRule, load_rule, make_rule, save_rule
from nfn_opt.weight_space import Permutation, WeightSpace

__all__ = [
    # weight spaces
    "Permutation",
    "WeightSpace",
    # layers and functionals
    "EquivariantConfig",
    "EquivariantFunctional",
    "InvariantPool",
    "NFLinear",
    "Pointwise",
    # optimizers
    "LearnedOptimizer",
    "UpdateRule",
    "load_rule",
    "make_rule",
    "save_rule",
]
