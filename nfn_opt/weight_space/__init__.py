"""What may be permuted: weight spaces, tracing a module for one, permuting, weight features."""

from nfn_opt.weight_space.compare import Comparison
from nfn_opt.weight_space.space import Features, Symmetry, WeightSpace
from nfn_opt.weight_space.spec import Axis, Permutation, Role, TensorSpec

__all__ = ["Axis", "Comparison", "Features", "Permutation", "Role", "Symmetry", "TensorSpec", "WeightSpace"]
