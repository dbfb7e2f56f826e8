"""What may be permuted: weight spaces, tracing a module for one, permuting, weight features."""

from nfn_opt.weight_space.space import Features, Symmetry, WeightSpace
from nfn_opt.weight_space.spec import Axis, Permutation, Role, TensorSpec

__all__ = ["Axis", "Features", "Permutation", "Role", "Symmetry", "TensorSpec", "WeightSpace"]
