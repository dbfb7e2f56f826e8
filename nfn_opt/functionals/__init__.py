"""Networks of NF-Layers: equivariant functionals (weights to weights) and invariant ones (weights to a vector)."""

from nfn_opt.functionals.equivariant import EquivariantConfig, EquivariantFunctional

__all__ = ["EquivariantConfig", "EquivariantFunctional"]
