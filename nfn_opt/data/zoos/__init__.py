"""Zoos: thousands of small networks as data, trained at once or read from public collections.

Example:
    >>> import torch
    >>> zoo_cnn = SmallCnn(CnnArchitecture(), "tanh")
    >>> sum(parameter.numel() for parameter in zoo_cnn.parameters())
    4970
"""

from nfn_opt.data.zoos.adders import GruAdder, GruAdderArchitecture
from nfn_opt.data.zoos.architecture import CnnArchitecture, SmallCnn
from nfn_opt.data.zoos.building import build_zoo
from nfn_opt.data.zoos.hyperparameters import ZooOptions
from nfn_opt.data.zoos.park import load_cnn_park
from nfn_opt.data.zoos.picture import draw_zoo
from nfn_opt.data.zoos.public import load_small_cnn_zoo
from nfn_opt.data.zoos.varied import VariedGroup, VariedZoo
from nfn_opt.data.zoos.varied_architecture import VariedArchitecture, VariedCnn
from nfn_opt.data.zoos.varied_options import VariedOptions
from nfn_opt.data.zoos.varied_training import build_varied_zoo
from nfn_opt.data.zoos.zoo import Zoo

__all__ = [
    "CnnArchitecture",
    "GruAdder",
    "GruAdderArchitecture",
    "SmallCnn",
    "VariedArchitecture",
    "VariedCnn",
    "VariedGroup",
    "VariedOptions",
    "VariedZoo",
    "Zoo",
    "ZooOptions",
    "build_varied_zoo",
    "build_zoo",
    "draw_zoo",
    "load_cnn_park",
    "load_small_cnn_zoo",
]
