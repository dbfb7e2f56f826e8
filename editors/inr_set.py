"""A set of INRs of one architecture: parameters stacked along a batch axis, with what is known about them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editors.siren import Siren, SirenConfig, check_parameters, coordinates, siren_apply
from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact

__all__ = ["InrSet", "psnr"]

KIND = "inr_set"
"""The kind of an `InrSet`'s file."""

PIXELS_PER_CHUNK = 65_536
"""Pixels rendered at once."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class InrSet:
    """Many INRs of one architecture, usually made by `editors.fit`.

    Attributes:
        params: For each name of ``config.parameter_shapes`` a float tensor of shape (B, *shape).
        config: Architecture.
        psnr: PSNR of each INR against its image in dB, shape (B,); NaN where unknown or not finite.
        image_size: (height, width) of the images that were fitted.
        labels: Class of each image, int64, shape (B,), or None.
        meta: Anything that JSON can hold: how and from what the set was made.

    Raises:
        ValueError: If a shape does not fit the others.

    Example:
        >>> from editors.siren import initial_parameters
        >>> params = initial_parameters(SirenConfig(), 3, torch.Generator().manual_seed(0))
        >>> inrs = InrSet(params, SirenConfig(), torch.full((3,), torch.nan), (8, 8))
        >>> len(inrs), inrs[1:].render().shape
        (3, torch.Size([2, 8, 8, 1]))
    """

    params: Mapping[str, Tensor]
    config: SirenConfig
    psnr: Tensor
    image_size: tuple[int, int]
    labels: Tensor | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_parameters(self.params, self.config)
        for name in ("psnr", "labels"):
            value = getattr(self, name)
            if value is not None and value.shape != (len(self),):
                raise ValueError(
                    f"{name} must have shape ({len(self)},), one a network, got {tuple(value.shape)}"
                )
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size must be (height, width), both at least 1, got {self.image_size}")

    def __len__(self) -> int:
        return len(self.params["layers.0.bias"])

    def __repr__(self) -> str:
        sizes = "-".join(map(str, self.config.layer_sizes))
        known = self.psnr[~self.psnr.isnan()]
        quality = f"{known.min():.1f} to {known.max():.1f} dB" if len(known) else "PSNR unknown"
        if 0 < len(known) < len(self):
            quality += f", {len(self) - len(known)} unknown"
        height, width = self.image_size
        return (
            f"InrSet({len(self)} x Siren({sizes}, omega_0={self.config.omega_0:g}) "
            f"of {height} x {width} images, {quality})"
        )

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> InrSet:
        """Some of the INRs, as a set: by number (a set of one), slice, list of numbers or boolean mask."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"INR {index} of a set of {len(self)}")
            index = [index]
        selected: Any = index if isinstance(index, slice) else torch.as_tensor(index, device=self.psnr.device)
        return dataclasses.replace(
            self,
            params={name: value[selected] for name, value in self.params.items()},
            psnr=self.psnr[selected],
            labels=None if self.labels is None else self.labels[selected],
        )

    @staticmethod
    def concat(sets: Sequence[InrSet]) -> InrSet:
        """Join sets of one architecture and image size.

        Labels are kept if all sets have them; `meta` is that of the first.

        Raises:
            ValueError: If there are none, or they differ in architecture or image size.
        """
        if not sets:
            raise ValueError("concat needs at least one InrSet, got none")
        first, labels = sets[0], [part.labels for part in sets if part.labels is not None]
        for number, part in enumerate(sets):
            if (part.config, part.image_size) != (first.config, first.image_size):
                raise ValueError(f"sets[{number}] is {part!r}, which cannot be joined to {first!r}")
        return dataclasses.replace(
            first,
            params={name: torch.cat([part.params[name] for part in sets]) for name in first.params},
            psnr=torch.cat([part.psnr for part in sets]),
            labels=torch.cat(labels) if len(labels) == len(sets) else None,
        )

    def with_params(self, params: Mapping[str, Tensor]) -> InrSet:
        """The same set with other parameters (edited ones, say), whose PSNR is unknown.

        Raises:
            ValueError: If they do not fit the architecture or the number of INRs.
        """
        return dataclasses.replace(self, params=dict(params), psnr=torch.full_like(self.psnr, torch.nan))

    def to(self, device: torch.device | str) -> InrSet:
        """The same set on another device."""
        return dataclasses.replace(
            self,
            params={name: value.to(device) for name, value in self.params.items()},
            psnr=self.psnr.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )

    @torch.no_grad()
    def render(self, size: tuple[int, int] | None = None, *, clamp: bool = True) -> Tensor:
        """Images of the INRs, without gradient (for gradients see `editors.siren.siren_apply`).

        Args:
            size: (height, width) to render at; None stands for ``image_size``. The centres of the corner
                pixels stay where they are, whatever the size.
            clamp: Limit pixel values to [0, 1].

        Returns:
            Pixel values, float32, shape (B, H, W, C).
        """
        height, width = size or self.image_size
        some = self.params["layers.0.bias"]
        coords = coordinates(height, width, device=some.device, dtype=some.dtype)
        step = max(1, PIXELS_PER_CHUNK // (height * width))
        parts = []
        for start in range(0, max(len(self), 1), step):
            chunk = {name: value[start : start + step] for name, value in self.params.items()}
            parts.append(siren_apply(chunk, coords, self.config))
        images = torch.cat(parts).add_(1).div_(2)
        return (images.clamp_(0, 1) if clamp else images).view(
            len(self), height, width, self.config.out_channels
        )

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """Copy of the parameters of one INR, as ``Siren.load_state_dict`` takes them."""
        return {name: value[index].detach().clone() for name, value in self.params.items()}

    def module(self, index: int) -> Siren:
        """One INR as a module, with a copy of its parameters."""
        siren = Siren(self.config).to(self.psnr.device)
        siren.load_state_dict(self.state_dict(index))
        return siren

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the set to one safetensors file, atomically.

        Raises:
            TypeError: If `meta` is no JSON.
            ArtifactError: If `path` is a folder.
        """
        tensors = {f"params.{name}": value for name, value in self.params.items()} | {"psnr": self.psnr}
        if self.labels is not None:
            tensors["labels"] = self.labels
        metadata = {
            "architecture": dataclasses.asdict(self.config),
            "image_size": list(self.image_size),
            "value_range": [-1, 1],
            "coordinates": "(row, column) in [-1, 1], centres of the outermost pixels at -1 and 1",
            "meta": dict(self.meta),
        }
        return save_artifact(path, tensors, kind=KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InrSet:
        """Read a set written by `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is truncated, is not safetensors, or does not hold a valid set of INRs.
        """
        tensors, metadata = load_artifact(path, kind=KIND)
        try:
            return cls(
                params={
                    name.removeprefix("params."): value
                    for name, value in tensors.items()
                    if name not in ("psnr", "labels")
                },
                config=SirenConfig(**metadata["architecture"]),
                psnr=tensors["psnr"],
                image_size=tuple(metadata["image_size"]),
                labels=tensors.get("labels"),
                meta=metadata["meta"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{os.fspath(path)} does not hold a valid set of INRs: {error}") from error


def psnr(residual: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of INRs, for a peak of 1 in pixel values of [0, 1].

    Args:
        residual: Difference of the INRs' values and the images in their units of [-1, 1], shape (B, ...).

    Returns:
        ``-10 log10(mean((residual / 2)^2))`` in dB, shape (B,).

    Example:
        >>> psnr(torch.full((1, 4, 1), 0.02)).item()
        40.0...
    """
    return -10 * (residual.flatten(1).square().mean(1) / 4).log10()
