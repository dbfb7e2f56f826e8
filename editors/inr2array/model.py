"""Inr2Array: an autoencoder whose encoder reads the weights of an INR and whose decoder shows its image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editors.inr2array.configs import encoder_from, encoder_record
from editors.inr2array.decoder import DecoderConfig, PatchDecoder, check_grid
from editors.inr2array.reading import InrReader
from editors.inr_set import InrSet
from editors.siren import SirenConfig
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.functionals import LatentEncoder, LatentEncoderConfig
from nfn_opt.weight_space import Symmetry

__all__ = ["Inr2Array", "Inr2ArrayConfig"]

KIND = "inr2array"
"""The kind of its file."""

NETWORKS_PER_CHUNK = 256
"""INRs read at once outside training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inr2ArrayConfig:
    """What an :class:`Inr2Array` is made of.

    Attributes:
        siren: Architecture of the INRs.
        image_size: (height, width) of the images that the INRs were fitted to.
        grid: (rows, columns) of the array; each latent shows one patch.
        encoder: The encoder; the number of its latents follows from the grid.
        decoder: The decoder.
        symmetry: Of the encoder: ``"hidden"`` (HNP), or ``"all"`` (NP) with a body of NF-Layers.
        canonical: Whether signs and phases of the INRs are brought to their representative first.

    Raises:
        ValueError: If the grid does not divide the image.
    """

    siren: SirenConfig
    image_size: tuple[int, int]
    grid: tuple[int, int] = (4, 4)
    encoder: LatentEncoderConfig = dataclasses.field(default_factory=LatentEncoderConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    symmetry: Symmetry = "hidden"
    canonical: bool = True

    def __post_init__(self) -> None:
        check_grid(self.grid, self.image_size)
        encoder = dataclasses.replace(self.encoder, latents=self.grid[0] * self.grid[1])
        object.__setattr__(self, "encoder", encoder)

    def record(self) -> dict[str, Any]:
        """All options as nested dicts of JSON values."""
        return {**dataclasses.asdict(self), "encoder": encoder_record(self.encoder)}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Inr2ArrayConfig:
        """Rebuild a configuration from :meth:`record`."""
        fields = dict(values)
        fields["siren"] = SirenConfig(**fields["siren"])
        fields["encoder"] = encoder_from(fields["encoder"])
        fields["decoder"] = DecoderConfig(**fields["decoder"])
        for name in ("image_size", "grid"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


class Inr2Array(nn.Module):
    """Encode the weights of an INR as a grid of latents from which its image can be shown, patch by patch.

    The autoencoder of arXiv:2305.13546 (Sec. 3.5, 4.1). Trained to show what the INR shows, of which no labels are
    needed, it makes of networks that no one can compare weight by weight arrays that any network for images can
    read. Permuting the hidden neurons of an INR does not change its array; nor, unless the configuration says
    otherwise, do the signs and phases of its sines. The encoder reads weights only; rendering gives the target of
    the training.

    Args:
        config: What it is made of.
        generator: Source of the initial weights; None stands for a new generator of seed 0.

    Attributes:
        metadata: How it was trained, kept in its file.

    Example:
        >>> from editors import fit
        >>> inrs = fit(torch.rand(2, 8, 8, 1, generator=torch.Generator().manual_seed(0)), steps=5)
        >>> model = Inr2Array(Inr2ArrayConfig(siren=inrs.config, image_size=(8, 8)))
        >>> model.embed(inrs).shape, model.reconstruct(inrs).shape
        (torch.Size([2, 16, 64]), torch.Size([2, 8, 8, 1]))
    """

    def __init__(self, config: Inr2ArrayConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.metadata = config, dict[str, Any]()
        generator = generator or torch.Generator().manual_seed(0)
        self.reader = InrReader(config.siren, config.symmetry, canonical=config.canonical)
        self.encoder = LatentEncoder(self.reader.space, config.encoder, generator=generator)
        self.decoder = PatchDecoder(
            config.decoder,
            config.encoder.latent_channels,
            config.grid,
            config.image_size,
            config.siren.out_channels,
            generator=generator,
        )

    def encode(self, params: Mapping[str, Tensor]) -> Tensor:
        """Arrays ``(B, latents, latent_channels)`` of weights ``{name: (B, *shape)}``, differentiable."""
        return self.encoder(self.reader(params))

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """What the arrays of weights show: values about [-1, 1], ``(B, height * width, channels)``."""
        return self.decoder(self.encode(params))

    @torch.no_grad()
    def embed(self, inrs: InrSet) -> Tensor:
        """Arrays of INRs, without gradient.

        Args:
            inrs: INRs of the architecture that the model was made for.

        Returns:
            Shape ``(N, latents, latent_channels)``.

        Raises:
            ValueError: If the INRs are of another architecture.
        """
        self.reader.check(inrs)
        count = self.config.encoder.latents
        empty = self.reader.scale.new_zeros(0, count, self.config.encoder.latent_channels)
        return torch.cat([empty, *(self.encode(chunk) for chunk in chunks(inrs))])

    @torch.no_grad()
    def reconstruct(self, inrs: InrSet) -> Tensor:
        """Images that the arrays of INRs show, values in [0, 1], ``(N, height, width, channels)``.

        Raises:
            ValueError: If the INRs are of another architecture.
        """
        self.reader.check(inrs)
        values = self.reader.scale.new_zeros(0, *self.config.image_size, self.config.siren.out_channels)
        shown = (self(chunk).unflatten(1, self.config.image_size) for chunk in chunks(inrs))
        return torch.cat([values, *((one + 1) / 2 for one in shown)]).clamp(0, 1)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> Path:
        """Write the model to one safetensors file, atomically.

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
    def load(cls, path: str | os.PathLike[str]) -> Inr2Array:
        """Read a model written by :meth:`save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is truncated, is not safetensors, or does not hold a valid model.
        """
        tensors, metadata = load_artifact(path, kind=KIND)
        try:
            model = cls(Inr2ArrayConfig.from_record(metadata["config"]))
            if model.reader.space.fingerprint != metadata["space"]:
                raise ValueError("its weight space is not the one that this version finds for its INRs")
            model.to(tensors["reader.scale"].dtype).load_state_dict(tensors)
            model.metadata = dict(metadata["training"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{os.fspath(path)} does not hold a valid Inr2Array: {error}") from error
        return model.eval()


def chunks(inrs: InrSet) -> list[dict[str, Tensor]]:
    """Weights of INRs in parts that are read at once."""
    return [
        {name: value[start : start + NETWORKS_PER_CHUNK] for name, value in inrs.params.items()}
        for start in range(0, len(inrs), NETWORKS_PER_CHUNK)
    ]
