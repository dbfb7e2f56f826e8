"""Networks of NF-Layers: equivariant functionals (weights to weights) and invariant ones (weights to a vector)."""

from nfn_opt.functionals.body import BodyConfig
from nfn_opt.functionals.equivariant import EquivariantConfig, EquivariantFunctional
from nfn_opt.functionals.invariant import InvariantConfig, InvariantFunctional, StatNN, StatNNConfig

__all__ = [
    # weights to weights
    "BodyConfig",
    "EquivariantConfig",
    "EquivariantFunctional",
    # weights to a vector
    "InvariantConfig",
    "InvariantFunctional",
    "StatNN",
    "StatNNConfig",
]
