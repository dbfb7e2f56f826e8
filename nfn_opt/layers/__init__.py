"""NF-Layers: maps between weight features that are equivariant to permuting hidden neurons."""

from nfn_opt.layers.encodings import GaussianFourierFeatures, PositionEmbedding, PositionEncoding
from nfn_opt.layers.linear import NFLinear, PerParameterLinear, RelationLinear, Sharing
from nfn_opt.layers.pointwise import ChannelNorm, LearnedScale, Pointwise
from nfn_opt.layers.pooling import InvariantPool

__all__ = [
    # linear
    "NFLinear",
    "PerParameterLinear",
    "RelationLinear",
    "Sharing",
    # entry by entry
    "ChannelNorm",
    "LearnedScale",
    "Pointwise",
    # encodings
    "GaussianFourierFeatures",
    "PositionEmbedding",
    "PositionEncoding",
    # invariant
    "InvariantPool",
]
