"""Classifiers of INRs by their weights: directly, or through the arrays of an Inr2Array."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editors.inr2array.configs import body_from, body_record
from editors.inr2array.model import Inr2Array, chunks
from editors.inr2array.reading import InrReader
from editors.inr_set import InrSet
from editors.siren import SirenConfig
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.functionals import (
    ArrayClassifier,
    ArrayClassifierConfig,
    InvariantConfig,
    InvariantFunctional,
    LatentEncoder,
    LatentEncoderConfig,
)
from nfn_opt.weight_space import Symmetry

__all__ = ["InrClassifier", "InrClassifierConfig"]

KIND = "inr_classifier"
"""The kind of its file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InrClassifierConfig:
    """What an :class:`InrClassifier` is made of.

    Attributes:
        siren: Architecture of the INRs.
        classes: Number of classes.
        body: What reads the weights: an invariant functional (the NFN classifiers of arXiv:2302.14040), or an encoder
            to an array of latents, on which a Transformer is put.
        head: The Transformer behind an encoder; its sizes in and out follow from `body` and `classes`.
        symmetry: ``"all"`` (NP) or ``"hidden"`` (HNP).
        canonical: Whether signs and phases of the INRs are brought to their representative first.
    """

    siren: SirenConfig
    classes: int = 10
    body: InvariantConfig | LatentEncoderConfig = dataclasses.field(default_factory=InvariantConfig)
    head: ArrayClassifierConfig = dataclasses.field(default_factory=ArrayClassifierConfig)
    symmetry: Symmetry = "all"
    canonical: bool = True

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}, expected 2 or more")
        if isinstance(self.body, LatentEncoderConfig):
            head = dataclasses.replace(
                self.head,
                places=self.body.latents,
                latent_channels=self.body.latent_channels,
                classes=self.classes,
            )
            object.__setattr__(self, "head", head)
        else:
            object.__setattr__(self, "body", dataclasses.replace(self.body, out_features=self.classes))

    def record(self) -> dict[str, Any]:
        """All options as nested dicts of JSON values."""
        return {**dataclasses.asdict(self), "body": body_record(self.body)}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> InrClassifierConfig:
        """Rebuild a configuration from :meth:`record`."""
        fields = dict(values)
        fields["siren"] = SirenConfig(**fields["siren"])
        fields["body"] = body_from(fields["body"])
        fields["head"] = ArrayClassifierConfig(**fields["head"])
        return cls(**fields)


class InrClassifier(nn.Module):
    """Classify INRs by their weights; permuting hidden neurons changes nothing.

    Args:
        config: What it is made of.
        generator: Source of the initial weights; None stands for a new generator of seed 0.

    Attributes:
        metadata: How it was trained, kept in its file.

    Example:
        >>> from editors import fit
        >>> inrs = fit(torch.rand(3, 8, 8, 1, generator=torch.Generator().manual_seed(0)), steps=5)
        >>> classifier = InrClassifier(InrClassifierConfig(siren=inrs.config, classes=4))
        >>> classifier.predict(inrs).shape
        torch.Size([3])
    """

    def __init__(self, config: InrClassifierConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.metadata = config, dict[str, Any]()
        generator = generator or torch.Generator().manual_seed(0)
        self.reader = InrReader(config.siren, config.symmetry, canonical=config.canonical)
        space, body = self.reader.space, config.body
        if isinstance(body, LatentEncoderConfig):
            self.body: nn.Module = LatentEncoder(space, body, generator=generator)
            self.head: nn.Module = ArrayClassifier(config.head, generator=generator)
        else:
            self.body, self.head = InvariantFunctional(space, body, generator=generator), nn.Identity()

    @classmethod
    def on_array(cls, model: Inr2Array, head: ArrayClassifier) -> InrClassifier:
        """The classifier that reads INRs by the encoder of an Inr2Array, and its arrays by a head trained on them.

        Args:
            model: The Inr2Array; its weights are copied.
            head: What classifies its arrays; copied likewise.

        Raises:
            ValueError: If the head takes other arrays.
        """
        config, encoder = model.config, model.config.encoder
        if (head.config.places, head.config.latent_channels) != (encoder.latents, encoder.latent_channels):
            raise ValueError(
                f"the head takes arrays of {head.config.places} x {head.config.latent_channels}, expected "
                f"{encoder.latents} x {encoder.latent_channels} as the Inr2Array makes them"
            )
        classifier = cls(
            InrClassifierConfig(
                siren=config.siren,
                classes=head.config.classes,
                body=encoder,
                head=head.config,
                symmetry=config.symmetry,
                canonical=config.canonical,
            )
        )
        classifier.reader.load_state_dict(model.reader.state_dict())
        classifier.body.load_state_dict(model.encoder.state_dict())
        classifier.head.load_state_dict(head.state_dict())
        return classifier.eval()

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """Logits ``(B, classes)`` of weights ``{name: (B, *shape)}``, differentiable."""
        return self.head(self.body(self.reader(params)))

    @torch.no_grad()
    def logits(self, inrs: InrSet) -> Tensor:
        """Logits of INRs ``(N, classes)``, without gradient.

        Raises:
            ValueError: If the INRs are of another architecture.
        """
        self.reader.check(inrs)
        empty = self.reader.scale.new_zeros(0, self.config.classes)
        return torch.cat([empty, *(self(chunk) for chunk in chunks(inrs))])

    def predict(self, inrs: InrSet) -> Tensor:
        """The likeliest class of each INR, int64, shape (N,)."""
        return self.logits(inrs).argmax(1)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the classifier to one safetensors file, atomically.

        Args:
            path: File to write.
            metadata: How it was trained and its scores; kept as ``metadata`` when loaded.
        """
        stored = {
            "config": self.config.record(),
            "space": self.reader.space.fingerprint,
            "training": dict(metadata if metadata is not None else self.metadata),
        }
        return save_artifact(path, dict(self.state_dict()), kind=KIND, metadata=stored)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InrClassifier:
        """Read a classifier written by :meth:`save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is truncated, is not safetensors, or does not hold a valid classifier.
        """
        tensors, metadata = load_artifact(path, kind=KIND)
        try:
            classifier = cls(InrClassifierConfig.from_record(metadata["config"]))
            if classifier.reader.space.fingerprint != metadata["space"]:
                raise ValueError("its weight space is not the one that this version finds for its INRs")
            classifier.to(tensors["reader.scale"].dtype).load_state_dict(tensors)
            classifier.metadata = dict(metadata["training"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{os.fspath(path)} does not hold a valid classifier: {error}") from error
        return classifier.eval()
