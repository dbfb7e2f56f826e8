"""Optimizers that are learned: pure update rules, and a :class:`torch.optim.Optimizer` that applies them."""

from nfn_opt.optim.bundled import available_rules, pretrained, pretrained_metadata
from nfn_opt.optim.classic import AdamConfig, AdamRule, LionConfig, LionRule, SGDConfig, SGDRule
from nfn_opt.optim.classic_adam import AdamWConfig, AdamWRule, NAdamConfig, NAdamRule
from nfn_opt.optim.classic_muon import MuonConfig, MuonRule
from nfn_opt.optim.classic_schedule import Scheduled, ScheduledConfig
from nfn_opt.optim.mlp import MLPConfig, MLPRule
from nfn_opt.optim.nfn import NFNConfig, NFNRule
from nfn_opt.optim.orthogonal import orthogonalise
from nfn_opt.optim.relational import RelationalConfig, RelationalRule
from nfn_opt.optim.rule import State, UpdateRule, make_rule, register_rule
from nfn_opt.optim.shell import LearnedOptimizer
from nfn_opt.optim.shell_groups import parameter_groups, resolve_rule
from nfn_opt.optim.small_fc import SmallFCConfig, SmallFCRule
from nfn_opt.optim.spectral import SpectralConfig, SpectralRule
from nfn_opt.optim.storage import load_rule, rule_metadata, save_rule
from nfn_opt.optim.unf import UNFConfig, UNFRule

__all__ = [
    "AdamConfig",
    "AdamRule",
    "AdamWConfig",
    "AdamWRule",
    "LearnedOptimizer",
    "LionConfig",
    "LionRule",
    "MLPConfig",
    "MLPRule",
    "MuonConfig",
    "MuonRule",
    "NAdamConfig",
    "NAdamRule",
    "NFNConfig",
    "NFNRule",
    "RelationalConfig",
    "RelationalRule",
    "SGDConfig",
    "SGDRule",
    "Scheduled",
    "ScheduledConfig",
    "SmallFCConfig",
    "SmallFCRule",
    "SpectralConfig",
    "SpectralRule",
    "State",
    "UNFConfig",
    "UNFRule",
    "UpdateRule",
    "available_rules",
    "load_rule",
    "make_rule",
    "orthogonalise",
    "parameter_groups",
    "pretrained",
    "pretrained_metadata",
    "register_rule",
    "resolve_rule",
    "rule_metadata",
    "save_rule",
]
