"""Winning tickets without training: a conditional variational autoencoder from initial weights to masks."""

from nfn_opt.mask_generator.config import MaskGeneratorConfig
from nfn_opt.mask_generator.generator import MaskGenerator
from nfn_opt.mask_generator.training import evidence_bound, train_mask_generator

__all__ = [
    "MaskGenerator",
    "MaskGeneratorConfig",
    "evidence_bound",
    "train_mask_generator",
]
