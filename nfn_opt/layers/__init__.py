"""NF-Layers: maps between weight features that are equivariant to permuting hidden neurons."""

from nfn_opt.layers.linear import NFLinear, PerParameterLinear, RelationLinear, Sharing

__all__ = ["NFLinear", "PerParameterLinear", "RelationLinear", "Sharing"]
