"""A conditional variational autoencoder from initial weights to masks (the last experiment of arXiv:2302.14040)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.data.tickets.architecture import (
    Architecture,
    architecture_from,
    architecture_record,
    prunable,
)
from nfn_opt.data.tickets.masks import Masks, Scope, kept_counts, top_masks
from nfn_opt.functionals import (
    EquivariantConfig,
    EquivariantFunctional,
    InvariantConfig,
    InvariantFunctional,
)
from nfn_opt.mask_generator.config import MaskGeneratorConfig
from nfn_opt.mask_generator.parts import BaseLogits, Neurons, WeightReader, body_options, space_of, unit_scale

__all__ = ["MaskGenerator"]

KIND = "mask_generator"
"""The kind of a `MaskGenerator`'s file."""

HEAD_WIDTH = 32
"""Neurons behind the pooling of an encoder of one latent vector a network."""


class MaskGenerator(nn.Module):
    r"""Draws masks for networks at initialisation, as if they had been trained and pruned.

    A conditional variational autoencoder of masks :math:`m \in \{0, 1\}^P` given initial parameters :math:`w`: a
    latent :math:`z \sim N(0, I)`, a decoder :math:`p(m_i = 1 \mid w, z) = \sigma(b_i + f_i(w, z))` with an
    equivariant functional :math:`f` and a learned logit :math:`b_i` for each input, output and kernel entry, an encoder
    :math:`q(z \mid w, m) = N(\mu, \mathrm{diag}\,\sigma^2)`, a functional that gives a latent vector for each hidden
    neuron (or for each network, or each weight). The loss is minus the evidence lower bound,

    .. math:: -\sum_i \log p(m_i \mid w, z) + \beta\, \mathrm{KL}(q(z \mid w, m) \,\|\, N(0, I)), \quad z \sim q,

    divided by the number of weights. Permuting the hidden neurons of a network permutes the logits.

    Args:
        architecture: What the networks are.
        config: Sizes and options.
        generator: Source of the model's initial weights.

    Example:
        >>> from nfn_opt.data.tickets import MlpArchitecture, initial_parameters
        >>> architecture = MlpArchitecture(side=8, widths=(16,))
        >>> model = MaskGenerator(architecture, generator=torch.Generator().manual_seed(0))
        >>> params = initial_parameters(architecture, range(3), seed=0)
        >>> masks = model.generate(params, 0.95, torch.Generator().manual_seed(1))
        >>> masks["fc.weight"].shape, int(sum(mask[0].sum() for mask in masks.values()))
        (torch.Size([3, 10, 16]), 59)
    """

    def __init__(
        self,
        architecture: Architecture,
        config: MaskGeneratorConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = config or MaskGeneratorConfig()
        self.architecture, self.config = architecture, config
        self.space = space_of(architecture, config)
        self.names = tuple(prunable(architecture))
        self.reader = WeightReader(
            self.space, architecture, 0 if config.body == "hnp" else config.pixel_bands
        )
        self.base = BaseLogits(architecture)
        self.neurons = Neurons(self.base.space) if config.latent == "neuron" else None
        latent = 0 if config.latent == "none" else config.latent_channels
        self.encoder = self._encoder(2 * latent, generator) if latent else None
        read = 2 * latent if self.neurons else latent  # of the neurons at both ends
        shared = dataclasses.asdict(body_options(config, self.reader.channels + read))
        self.decoder = EquivariantFunctional(
            self.space, EquivariantConfig(**shared, out_scale=0.3), generator=generator
        )

    def _encoder(self, outputs: int, generator: torch.Generator | None) -> nn.Module:
        shared = dataclasses.asdict(body_options(self.config, self.reader.channels + 1))
        shared["hidden_layers"] = 1
        if self.config.latent == "network":
            invariant = InvariantConfig(**shared, out_features=outputs, head_width=HEAD_WIDTH, head_layers=1)
            return InvariantFunctional(self.space, invariant, generator=generator)
        return EquivariantFunctional(
            self.space, EquivariantConfig(**shared, out_channels=outputs, out_scale=1.0), generator=generator
        )

    def encode(self, params: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z | w, m).

        Args:
            params: Initial parameters of B networks, tensors of shape (B, *shape).
            masks: Their masks, tensors of shape (B, *shape).

        Returns:
            Both of shape (B, latents); see `latents`.

        Raises:
            ValueError: If the model has no latent vector.
        """
        if self.encoder is None:
            raise ValueError("the model has latent='none', expected another to encode masks")
        full = {
            name: unit_scale(masks[name].to(value.dtype)) if name in masks else torch.zeros_like(value)
            for name, value in params.items()
        }
        kept = self.space.as_features(full)
        features = {name: torch.cat([v, kept[name]], -1) for name, v in self.reader(params).items()}
        found = self.encoder(features)
        if self.neurons is not None:
            mean, log_variance = self.neurons.pool(found).chunk(2, -1)
            return mean.flatten(1), log_variance.flatten(1)
        if isinstance(found, dict):
            means, logs = zip(*(value.chunk(2, -1) for value in found.values()), strict=True)
            return torch.cat([m.flatten(1) for m in means], 1), torch.cat([v.flatten(1) for v in logs], 1)
        mean, log_variance = found.chunk(2, -1)
        return mean, log_variance

    @property
    def latents(self) -> int:
        """Length of the whole latent vector of a network."""
        if self.config.latent == "weight":
            return self.config.latent_channels * self.space.numel
        if self.neurons is not None:
            return self.config.latent_channels * self.neurons.count
        return self.config.latent_channels if self.config.latent == "network" else 0

    def decode(self, params: Mapping[str, Tensor], latent: Tensor | None) -> dict[str, Tensor]:
        """Logits of keeping each weight.

        Args:
            params: Initial parameters of B networks, tensors of shape (B, *shape).
            latent: Shape (B, latents); None if the model has none.

        Returns:
            For each prunable weight a tensor of shape (B, *shape).
        """
        features = self.reader(params)
        if latent is not None:
            places = self._places(latent, features)
            features = {name: torch.cat([value, places[name]], -1) for name, value in features.items()}
        found, base = self.decoder(features), self.base()
        logits = {name: found[name] + base[name][..., None] for name in self.names}
        return {name: self.space[name].unview(value[..., 0], batch_dims=1) for name, value in logits.items()}

    def _places(self, latent: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latent vectors that each weight reads, shape (B, *axes, channels)."""
        channels = self.config.latent_channels
        if self.neurons is not None:
            return self.neurons.spread(latent.unflatten(1, (-1, channels)), features)
        if self.config.latent == "weight":
            parts = latent.split([channels * self.space[name].numel for name in features], 1)
            return {
                name: part.view(*value.shape[:-1], channels)
                for (name, value), part in zip(features.items(), parts, strict=True)
            }
        return {
            name: latent.view(-1, *(1,) * (value.ndim - 2), channels).expand(*value.shape[:-1], -1)
            for name, value in features.items()
        }

    def loss(
        self, params: Mapping[str, Tensor], masks: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """Minus the evidence lower bound, in nats for each weight, mean over networks.

        Args:
            params: Initial parameters of B networks, tensors of shape (B, *shape).
            masks: Their masks, tensors of shape (B, *shape).
            generator: Source of the latent vectors.
        """
        latent, divergence = None, next(iter(params.values())).new_zeros(())
        if self.encoder is not None:
            mean, log_variance = self.encode(params, masks)
            noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
            latent = mean + (log_variance / 2).exp() * noise
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / (2 * len(mean))
        logits = self.decode(params, latent)
        errors = [
            F.binary_cross_entropy_with_logits(
                logits[name], masks[name].to(logits[name].dtype), reduction="sum"
            )
            for name in self.names
        ]
        count = len(next(iter(params.values())))
        weights = sum(logits[name][0].numel() for name in self.names)
        return (torch.stack(errors).sum() / count + self.config.kl_weight * divergence) / weights

    @torch.no_grad()
    def generate(
        self,
        params: Mapping[str, Tensor],
        sparsity: float,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        scope: Scope = "global",
    ) -> Masks:
        """Draw a mask for each network, of exactly the sparsity.

        A Bernoulli variable is 1 where its logit and logistic noise sum to more than 0. Here the largest sums are
        kept, as many as the sparsity asks for, whatever their sign.

        Args:
            params: Initial parameters of B networks, tensors of shape (B, *shape); other tensors are not looked at.
            sparsity: Share of the weights that is pruned, in [0, 1).
            generator: Source of latent vectors and noise.
            temperature: Factor of the noise: 1 draws from the model, 0 keeps the most likely weights.
            scope: "global": the sparsity is that of the whole network; "layer": of each layer.

        Returns:
            For each prunable weight a bool tensor of shape (B, *shape), True where it is kept.

        Raises:
            ValueError: If parameters are missing or of another shape, or an option is out of range.
        """
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}, expected 0 or more")
        kept_counts({}, sparsity, scope)
        params = self._checked(params)
        latent = None
        if self.encoder is not None:
            count, device = len(next(iter(params.values()))), generator.device
            latent = torch.randn(count, self.latents, generator=generator, device=device)
            latent = latent.to(next(iter(params.values())))
        scores = self.decode(params, latent)
        for value in scores.values():
            uniform = torch.rand(value.shape, generator=generator, device=generator.device)
            value += temperature * torch.logit(uniform, eps=1e-7).to(value)
        return top_masks(scores, sparsity, scope=scope)

    def _checked(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shapes = self.architecture.parameter_shapes
        for name, shape in shapes.items():
            if name not in params:
                raise ValueError(
                    f"params has no {name!r}, expected {', '.join(shapes)}; give the parameters of a network of "
                    f"{self.architecture}"
                )
            if params[name].shape[1:] != shape:
                raise ValueError(
                    f"params[{name!r}] has shape {tuple(params[name].shape)}, expected (B, "
                    f"{', '.join(map(str, shape))}); stack networks along a first axis"
                )
        like = next(self.parameters())
        return {name: params[name].detach().to(like) for name in shapes}

    def save(self, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None) -> Path:
        """Write the model to one safetensors file, whole or not at all.

        Args:
            path: File to write.
            meta: Anything that JSON can hold: how it was trained, how good it is.
        """
        metadata = {
            "architecture": architecture_record(self.architecture),
            "config": dataclasses.asdict(self.config),
            "meta": dict(meta or {}),
        }
        return save_artifact(path, self.state_dict(), kind=KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskGenerator:
        """Read a model written by `save`, in evaluation mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is truncated, is not safetensors, or does not hold a valid model.
        """
        tensors, metadata = load_artifact(path, kind=KIND)
        try:
            model = cls(
                architecture_from(metadata["architecture"]), MaskGeneratorConfig(**metadata["config"])
            )
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"{os.fspath(path)} does not hold a valid mask generator: {error!r}; train or copy it again"
            ) from error
        return model.eval()
