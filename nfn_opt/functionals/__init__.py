"""Networks of NF-Layers: equivariant ones (weights to weights), invariant ones (to a vector or array)."""

from nfn_opt.functionals.array_transformer import ArrayBlock, ArrayClassifier, ArrayClassifierConfig
from nfn_opt.functionals.body import BodyConfig
from nfn_opt.functionals.equivariant import EquivariantConfig, EquivariantFunctional
from nfn_opt.functionals.invariant import InvariantConfig, InvariantFunctional, StatNN, StatNNConfig
from nfn_opt.functionals.latent_encoder import LatentEncoder, LatentEncoderConfig
from nfn_opt.functionals.neuron_messages import NeuronMessages, NeuronMessagesConfig

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
    # weights to an array, and arrays to classes
    "ArrayBlock",
    "ArrayClassifier",
    "ArrayClassifierConfig",
    "LatentEncoder",
    "LatentEncoderConfig",
    "NeuronMessages",
    "NeuronMessagesConfig",
]
