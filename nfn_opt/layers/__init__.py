"""NF-Layers: maps between weight features that are equivariant to permuting hidden neurons."""

from nfn_opt.layers.attention import AttentionSharing, NFAttention
from nfn_opt.layers.chain import Chain, ResidualBlock
from nfn_opt.layers.dropout import ChannelDropout, NeuronDropout
from nfn_opt.layers.encodings import GaussianFourierFeatures, PositionEmbedding, PositionEncoding
from nfn_opt.layers.latents import LatentPool, LatentUnpool
from nfn_opt.layers.linear import NFLinear, PerParameterLinear, RelationLinear, Sharing
from nfn_opt.layers.normalization import ChannelNorm, ParameterNorm
from nfn_opt.layers.pointwise import ChannelLinear, LearnedScale, Pointwise, SharedScale
from nfn_opt.layers.pooling import AttentionPool, InvariantPool, SharedPool
from nfn_opt.layers.statistics import SpectrumFeatures, StatisticsFeatures
from nfn_opt.layers.transformer import NFTransformerBlock

__all__ = [
    # linear
    "NFLinear",
    "PerParameterLinear",
    "RelationLinear",
    "Sharing",
    # attention
    "AttentionSharing",
    "NFAttention",
    "NFTransformerBlock",
    # latents
    "LatentPool",
    "LatentUnpool",
    # entry by entry
    "ChannelLinear",
    "LearnedScale",
    "Pointwise",
    "SharedScale",
    # normalization and dropout
    "ChannelDropout",
    "ChannelNorm",
    "NeuronDropout",
    "ParameterNorm",
    # encodings
    "GaussianFourierFeatures",
    "PositionEmbedding",
    "PositionEncoding",
    # composition
    "Chain",
    "ResidualBlock",
    # invariant
    "AttentionPool",
    "InvariantPool",
    "SharedPool",
    "SpectrumFeatures",
    "StatisticsFeatures",
]
