"""Layer norms: over the channels of an entry, and over the channels and fixed axes of a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.layers.checks import check_channels, check_input
from nfn_opt.layers.pointwise import Pointwise
from nfn_opt.weight_space import Features, TensorSpec, WeightSpace

Over = Literal["fixed", "space"]


class ChannelNorm(Pointwise):
    """Layer norm over the channels of every entry, with a learned scale and shift for each channel.

    It has the same weights for every weight space.

    Args:
        channels: Number of channels.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        check_channels(channels=channels)
        super().__init__(nn.LayerNorm(channels, eps=eps))


class ParameterNorm(nn.Module):
    """Layer norm with weights of its own for every parameter, over the channels and the axes that are fixed.

    Every neuron, or pair of neurons, is normalised on its own, over the channels of all kernel positions, and where
    the symmetry is that of hidden neurons, of all inputs or outputs: the norm of the NFN papers' code for HNP layers.
    With ``over="space"`` inputs and outputs are kept apart, as in its norm for NP layers.

    Args:
        space: The weight space.
        channels: Number of channels.
        over: ``"fixed"``: all axes that no group acts on. ``"space"``: kernel positions and the like alone.
        eps: Added to the variance.

    Shapes:
        in and out: ``{name: (B, *axes, channels)}``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> out = ParameterNorm(space, 3)({s.name: torch.randn(1, *s.view_shape, 3) for s in space.parameters})
        >>> bool(out["0.weight"].mean((2, 3)).abs().max() < 1e-5)
        True
    """

    def __init__(self, space: WeightSpace, channels: int, *, over: Over = "fixed", eps: float = 1e-5) -> None:
        super().__init__()
        if over not in ("fixed", "space"):
            raise ValueError(f"over is {over!r}, expected 'fixed' or 'space'; see ParameterNorm")
        check_channels(channels=channels)
        self.space, self.channels, self.over, self.eps = space, channels, over, eps
        cells = space.cells.space.parameters
        self._positions = [self._normalized(spec) for spec in cells]
        shapes = [
            (*(spec.axes[i].size for i in positions), channels)
            for spec, positions in zip(cells, self._positions, strict=True)
        ]
        self.gains = nn.ParameterList([torch.ones(shape) for shape in shapes])
        self.shifts = nn.ParameterList([torch.zeros(shape) for shape in shapes])

    def _normalized(self, spec: TensorSpec) -> tuple[int, ...]:
        """Positions of the axes that are normalised over."""
        axes = enumerate(spec.axes)
        return tuple(i for i, a in axes if not a.permutable and (self.over == "fixed" or a.role == "space"))

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, channels)}`` to the same shapes."""
        check_input(self.space, features, self.channels, self.gains[0])
        cells = self.space.cells.split(features)
        entries = zip(cells.items(), self._positions, self.gains, self.shifts, strict=True)
        return self.space.cells.join(
            {name: self._norm(tensor, at, gain, shift) for (name, tensor), at, gain, shift in entries}
        )

    def _norm(self, tensor: Tensor, positions: tuple[int, ...], gain: Tensor, shift: Tensor) -> Tensor:
        here = [1 + i for i in positions]
        last = [i - len(here) - 1 for i in range(len(here))]
        moved = tensor.movedim(here, last)
        return F.layer_norm(moved, gain.shape, gain, shift, self.eps).movedim(last, here)

    def extra_repr(self) -> str:
        """Channels and axes."""
        return f"{self.channels}, over={self.over!r}"
