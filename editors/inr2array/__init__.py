"""INRs as arrays of latents, and classes of INRs, by their weights."""

from editors.inr2array.classifier import InrClassifier, InrClassifierConfig
from editors.inr2array.decoder import DecoderConfig, PatchDecoder
from editors.inr2array.model import Inr2Array, Inr2ArrayConfig
from editors.inr2array.reading import InrReader
from editors.inr2array.training import (
    accuracy,
    train_array_classifier,
    train_inr2array,
    train_inr_classifier,
)

__all__ = [
    # INRs to arrays
    "DecoderConfig",
    "Inr2Array",
    "Inr2ArrayConfig",
    "InrReader",
    "PatchDecoder",
    "train_inr2array",
    # INRs and arrays to classes
    "InrClassifier",
    "InrClassifierConfig",
    "accuracy",
    "train_array_classifier",
    "train_inr_classifier",
]
