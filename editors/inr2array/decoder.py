"""Decoders of Inr2Array: from every latent of an array to the pixels of its patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from editors.siren import SirenConfig, coordinates, initial_parameters, siren_apply
from nfn_opt.functionals.body import check_at_least
from nfn_opt.functionals.head import mlp

__all__ = ["DecoderConfig", "PatchDecoder"]

DecoderKind = Literal["mlp", "siren"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """How the pixels of a patch are made from its latent.

    Attributes:
        kind: ``"mlp"``: an MLP gives all pixels of the patch. ``"siren"``: an MLP gives the weights of a small SIREN
            that is rendered on the patch (a hypernetwork, as in arXiv:2305.13546).
        width: Neurons of each hidden layer of the MLP.
        layers: Number of these.
        siren_width: Neurons of the hidden layer of the small SIRENs.
        siren_omega: Factor on the argument of their sines.
    """

    kind: DecoderKind = "mlp"
    width: int = 256
    layers: int = 1
    siren_width: int = 16
    siren_omega: float = 10.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(DecoderKind):
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(get_args(DecoderKind))}")
        check_at_least(self, 1, "width", "layers", "siren_width")
        if not self.siren_omega > 0:
            raise ValueError(f"siren_omega is {self.siren_omega}, expected a positive number")


class PatchDecoder(nn.Module):
    """Pixels of an image from an array of latents, each patch from its own latent by the same network.

    Args:
        config: Options.
        latent_channels: Channels of a latent.
        grid: (rows, columns) of the array.
        image_size: (height, width), multiples of rows and columns.
        channels: Channels of the image.
        generator: Source of the initial weights.

    Shapes:
        in: ``(B, rows * columns, latent_channels)``; out: values about [-1, 1], ``(B, height * width, channels)``.

    Raises:
        ValueError: If the patches are not all of one size.

    Example:
        >>> decoder = PatchDecoder(DecoderConfig(), 8, (2, 2), (6, 4), 3)
        >>> decoder(torch.zeros(5, 4, 8)).shape
        torch.Size([5, 24, 3])
    """

    def __init__(
        self,
        config: DecoderConfig,
        latent_channels: int,
        grid: tuple[int, int],
        image_size: tuple[int, int],
        channels: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_grid(grid, image_size)
        self.config, self.grid, self.image_size, self.channels = config, grid, image_size, channels
        self.patch = (image_size[0] // grid[0], image_size[1] // grid[1])
        hidden = config.layers * [config.width]
        if config.kind == "mlp":
            self.network = mlp(
                [latent_channels, *hidden, self.patch[0] * self.patch[1] * channels], 0.0, generator
            )
            return
        self.siren = SirenConfig(
            hidden_width=config.siren_width,
            hidden_layers=1,
            out_channels=channels,
            omega_0=config.siren_omega,
        )
        drawn = initial_parameters(self.siren, 1, generator or torch.Generator().manual_seed(0))
        self.base = nn.Parameter(torch.cat([drawn[name].flatten() for name in self.siren.parameter_shapes]))
        self.network = mlp([latent_channels, *hidden, len(self.base)], 0.0, generator)

    def forward(self, array: Tensor) -> Tensor:
        """Render the whole image."""
        made = self.network(array)
        pixels = made if self.config.kind == "mlp" else self._render(made)
        (rows, columns), (height, width) = self.grid, self.patch
        patches = pixels.view(len(array), rows, columns, height, width, self.channels)
        return patches.transpose(2, 3).reshape(len(array), -1, self.channels)

    def _render(self, changes: Tensor) -> Tensor:
        """Patches of the small SIRENs whose weights differ from the base by ``changes``, (B, latents, weights)."""
        shapes = self.siren.parameter_shapes
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        parts = (self.base + self.base.std() * changes).flatten(0, 1).split(sizes, -1)
        params = {
            name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        points = coordinates(*self.patch, device=changes.device, dtype=changes.dtype)
        return siren_apply(params, points, self.siren)


def check_grid(grid: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Refuse a grid that does not cut the image into patches of one size.

    Raises:
        ValueError: With both.
    """
    pairs = list(zip(grid, image_size, strict=False))
    if len(grid) != 2 or len(image_size) != 2 or any(n < 1 or side % n for n, side in pairs):
        raise ValueError(
            f"grid is {tuple(grid)} and image_size {tuple(image_size)}, expected (rows, columns) that divide (height, "
            "width); take another grid"
        )
