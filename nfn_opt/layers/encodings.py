"""Encodings: of the weights' values by Fourier features, and of the positions that may be told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from nfn_opt.layers.checks import check_input
from nfn_opt.weight_space import Axis, Features, TensorSpec, WeightSpace


class GaussianFourierFeatures(nn.Module):
    r"""Random Fourier features of the values: :math:`(\sin 2\pi x B, \cos 2\pi x B)`, :math:`B_{ij} \sim N(0, s^2)`.

    Eq. (5) of arXiv:2006.10739, applied to every entry; the frequencies are fixed and saved with the layer.

    Args:
        in_channels: Channels of the features that come in.
        frequencies: Number of random frequencies; the layer gives ``2 * frequencies`` channels.
        scale: Standard deviation :math:`s` of the frequencies, in cycles per unit of the input.
        generator: Source of the frequencies.

    Example:
        >>> layer = GaussianFourierFeatures(1, 8, generator=torch.Generator().manual_seed(0))
        >>> layer({"w": torch.zeros(1, 3, 1)})["w"].shape
        torch.Size([1, 3, 16])
    """

    frequency_matrix: Tensor

    def __init__(
        self,
        in_channels: int,
        frequencies: int = 128,
        scale: float = 3.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_positive(in_channels=in_channels, frequencies=frequencies, scale=scale)
        self.register_buffer(
            "frequency_matrix", scale * torch.randn(in_channels, frequencies, generator=generator)
        )

    @property
    def out_channels(self) -> int:
        """Channels that the layer gives."""
        return 2 * self.frequency_matrix.shape[1]

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, in_channels)}`` to ``{name: (B, *axes, 2 * frequencies)}``."""
        encoded: Features = {}
        for name, tensor in features.items():
            with torch.autocast(tensor.device.type, enabled=False):  # half precision would lose the phase
                phase = (2 * math.pi) * (tensor.to(self.frequency_matrix.dtype) @ self.frequency_matrix)
            encoded[name] = torch.cat([phase.sin(), phase.cos()], dim=-1)
        return encoded

    def extra_repr(self) -> str:
        """Channels."""
        return f"{self.frequency_matrix.shape[0]} -> {self.out_channels}"


def _ordered(space: WeightSpace) -> set[str]:
    """Names of the axes whose entries may be told apart: all but the hidden neurons."""
    io = {axis.name for spec in (*space.inputs, *space.outputs) for axis in spec.leaves() if axis.permutable}
    axes = [axis for spec in space.parameters for axis in spec.leaves()]
    return {axis.name for axis in axes if axis.size > 1 and (axis.name in io or not axis.permutable)}


class PositionEncoding(nn.Module):
    """Append sinusoids of each parameter's place among the parameters and of the position along ordered axes.

    Ordered axes are inputs, outputs and kernel positions. In a space with ``symmetry="all"`` this breaks the
    permutations of inputs and outputs on purpose, and leaves those of hidden neurons (Sec. 3.2 of
    arXiv:2302.14040): an NP layer behind it can tell inputs and outputs apart. The parts of an axis that is made of
    several groups have places of their own. The layer has no weights, and serves every weight space.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        bands: Number of frequencies; ``2 * bands + 1`` channels are appended.
        max_frequency: Highest frequency, in half cycles over the range of positions [-1, 1].

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> layer = PositionEncoding(space, bands=2)
        >>> layer({spec.name: torch.zeros(1, *spec.view_shape, 1) for spec in space.parameters})["0.weight"].shape
        torch.Size([1, 3, 2, 6])
    """

    def __init__(self, space: WeightSpace, bands: int = 6, max_frequency: float = 10.0) -> None:
        super().__init__()
        if bands < 1:
            raise ValueError(f"bands is {bands}, expected at least 1; leave the layer out for no encoding")
        self.space, self.bands, self.max_frequency = space, bands, max_frequency
        self.keys = {name: f"encoding_{i}" for i, name in enumerate(space.cells.space.names)}
        for key, encoding in zip(self.keys.values(), _encodings(space, bands, max_frequency), strict=True):
            self.register_buffer(key, encoding.clone(), persistent=False)

    @property
    def extra_channels(self) -> int:
        """Channels that the layer appends."""
        return 2 * self.bands + 1

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map ``{name: (B, *axes, C)}`` of ``space`` to ``{name: (B, *axes, C + 2 * bands + 1)}``."""
        if space is None or space is self.space:
            space, encodings = self.space, [self.get_buffer(key) for key in self.keys.values()]
        else:
            encodings = list(_encodings(space, self.bands, self.max_frequency))
        check_input(space, features)
        cells = space.cells.split(features)
        encoded: Features = {}
        for name, encoding in zip(space.cells.space.names, encodings, strict=True):
            tensor = cells[name]
            own = encoding.to(tensor.device, tensor.dtype).expand(*tensor.shape[:-1], -1)
            encoded[name] = torch.cat([tensor, own], dim=-1)
        return space.cells.join(encoded)

    def extra_repr(self) -> str:
        """Channels appended."""
        return f"C -> C + {self.extra_channels}"


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached must serve training too
def _encodings(space: WeightSpace, bands: int, max_frequency: float) -> tuple[Tensor, ...]:
    """For every cell of a space, the encoding of its place and positions, ``(*axes or 1, 2 * bands + 1)``."""
    frequencies = torch.linspace(1.0, max_frequency / 2, bands, device="cpu")
    space = space.cells.space
    ordered = _ordered(space)
    places = torch.linspace(-1.0, 1.0, len(space.parameters), device="cpu")
    encodings = []
    for place, spec in zip(places, space.parameters, strict=True):
        encoding = _sinusoids(place, frequencies).expand(*(1 for _ in spec.axes), -1)
        for position, axis in enumerate(spec.axes):
            if axis.name in ordered:
                encoding = encoding + _along(axis, position, spec, frequencies)
        encodings.append(encoding)
    return tuple(encodings)


def _sinusoids(place: Tensor, frequencies: Tensor) -> Tensor:
    """Sines, cosines and the value itself: ``(*place, 2 * bands + 1)``."""
    phase = math.pi * place[..., None] * frequencies
    return torch.cat([phase.sin(), phase.cos(), place[..., None]], dim=-1)


def _along(axis: Axis, position: int, spec: TensorSpec, frequencies: Tensor) -> Tensor:
    """Encoding of the positions along one axis, shaped to broadcast over the others."""
    return _broadcast(
        _sinusoids(torch.linspace(-1.0, 1.0, axis.size, device="cpu"), frequencies), position, spec
    )


def _broadcast(table: Tensor, position: int, spec: TensorSpec) -> Tensor:
    """A table ``(size, C)`` of one axis, shaped to broadcast over the others."""
    return table.reshape(*(len(table) if i == position else 1 for i in range(len(spec.axes))), -1)


class PositionEmbedding(nn.Module):
    """Add a learned vector for each parameter, and one for each position along its ordered axes.

    The learned counterpart of :class:`PositionEncoding` (Sec. 3.3 of arXiv:2305.13546). The parts of an axis that is
    made of several groups have vectors of their own.

    Args:
        space: The weight space.
        channels: Number of channels.
        generator: Source of the initial values (standard normal).
    """

    def __init__(
        self, space: WeightSpace, channels: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        _check_positive(channels=channels)
        self.space = space
        cells = space.cells.space
        ordered = _ordered(cells)
        sizes = {a.name: a.size for spec in cells.parameters for a in spec.axes if a.name in ordered}
        self.parameter_table = nn.Parameter(torch.randn(len(cells.names), channels, generator=generator))
        self.keys = {name: f"axis_{i}" for i, name in enumerate(sizes)}
        tables = {
            self.keys[name]: torch.randn(size, channels, generator=generator) for name, size in sizes.items()
        }
        self.axis_tables = nn.ParameterDict(tables)

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, channels)}`` to the same shapes."""
        check_input(self.space, features, self.parameter_table.shape[1], self.parameter_table)
        cells = self.space.cells.split(features)
        embedded: Features = {}
        for spec, row in zip(self.space.cells.space.parameters, self.parameter_table, strict=True):
            tensor = cells[spec.name] + row
            for position, axis in enumerate(spec.axes):
                if axis.name in self.keys:
                    tensor = tensor + _broadcast(self.axis_tables[self.keys[axis.name]], position, spec)
            embedded[spec.name] = tensor
        return self.space.cells.join(embedded)


def _check_positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, expected a positive number")
