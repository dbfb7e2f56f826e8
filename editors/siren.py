"""SIREN: a small network with sine activations that maps the coordinate of a pixel to its value.

It is the network of arXiv:2006.09661.

Conventions, the same everywhere in this package:

* a coordinate is (row, column), each from -1 (top, left) to 1 (bottom, right), at the *centres* of the
  outermost pixels;
* the network predicts values in [-1, 1]; an image ``x`` with pixel values in [0, 1] is fitted as ``2 x - 1``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["Siren", "SirenConfig", "coordinates", "initial_parameters", "siren_apply"]

COORDINATES = 2
"""Number of inputs of a SIREN: row and column."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SirenConfig:
    """Architecture of a SIREN; the default is the 2-32-32-1 network of arXiv:2302.14040 for MNIST.

    ``omega_0`` sets the finest detail that the network starts with. 30 suits images of 28 x 28 and more; on
    smaller images it fits every pixel but leaves noise between them (see `for_images`).

    Attributes:
        hidden_width: Neurons of each hidden layer.
        hidden_layers: Number of hidden (sine) layers; a linear layer follows.
        out_channels: Channels of the image, 1 for gray and 3 for colour.
        omega_0: Factor on the argument of every sine.

    Raises:
        ValueError: If a number is not positive, or `omega_0` not finite.

    Example:
        >>> SirenConfig().layer_sizes
        (2, 32, 32, 1)
    """

    hidden_width: int = 32
    hidden_layers: int = 2
    out_channels: int = 1
    omega_0: float = 30.0

    def __post_init__(self) -> None:
        for name in ("hidden_width", "hidden_layers", "out_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not 0 < self.omega_0 < math.inf:
            raise ValueError(f"omega_0 must be a positive finite number, got {self.omega_0!r}")

    @classmethod
    def for_images(cls, height: int, width: int, channels: int) -> SirenConfig:
        """The default architecture with the `out_channels` and `omega_0` that suit images of one size.

        ``omega_0 = min(30, 1.25 * longer side)``, measured on 8 x 8 digits and on MNIST: the largest detail
        that the pixels can still pin down, so that the image is smooth between them as well.

        Example:
            >>> SirenConfig.for_images(8, 8, 1).omega_0, SirenConfig.for_images(28, 28, 1).omega_0
            (10.0, 30.0)
        """
        return cls(out_channels=channels, omega_0=min(30.0, 1.25 * max(height, width)))

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Width of every layer, from the coordinates to the channels."""
        return (COORDINATES, *[self.hidden_width] * self.hidden_layers, self.out_channels)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of ``Siren.state_dict()``."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(self.layer_sizes)):
            shapes[f"layers.{layer}.weight"] = (fan_out, fan_in)
            shapes[f"layers.{layer}.bias"] = (fan_out,)
        return shapes


def config_differences(given: SirenConfig, own: SirenConfig) -> list[str]:
    """What differs between an architecture and the one that is expected, for an error.

    Example:
        >>> config_differences(SirenConfig(out_channels=3), SirenConfig())
        ['out_channels=3, expected out_channels=1']
    """
    found, expected = dataclasses.asdict(given), dataclasses.asdict(own)
    return [
        f"{name}={found[name]!r}, expected {name}={expected[name]!r}"
        for name in expected
        if found[name] != expected[name]
    ]


def initial_parameters(config: SirenConfig, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw the initial parameters of many SIRENs.

    With fan-in ``n``: first weight U(-1/n, 1/n), later weights U(-sqrt(6/n)/omega_0, sqrt(6/n)/omega_0)
    (Section 3.2 and supplement 1.5 of arXiv:2006.09661), biases U(-1/sqrt(n), 1/sqrt(n)), as its authors do.

    Args:
        config: Architecture.
        count: Number of networks, B.
        generator: Source of randomness; decides the device.

    Returns:
        For each name of ``config.parameter_shapes`` a float32 tensor of shape (B, *shape).
    """
    parameters = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(config.layer_sizes)):
        bound = 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / config.omega_0
        for name, shape, limit in (
            (f"layers.{layer}.weight", (fan_out, fan_in), bound),
            (f"layers.{layer}.bias", (fan_out,), 1 / math.sqrt(fan_in)),
        ):
            draw = torch.rand(count, *shape, generator=generator, device=generator.device)
            parameters[name] = draw.mul_(2 * limit).sub_(limit)
    return parameters


class Siren(nn.Module):
    """One SIREN: ``h <- sin(omega_0 (W h + b))`` for every hidden layer, then a linear layer.

    Args:
        config: Architecture.
        generator: Source of the initial parameters; None stands for a new generator of seed 0.

    Example:
        >>> siren = Siren(SirenConfig(out_channels=3))
        >>> list(siren.state_dict())[:3]
        ['layers.0.weight', 'layers.0.bias', 'layers.1.weight']
        >>> siren(coordinates(4, 5)).shape
        torch.Size([20, 3])
    """

    def __init__(
        self, config: SirenConfig | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config or SirenConfig()
        sizes = self.config.layer_sizes
        # nn.Linear would draw its initial values from the global random state.
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)
        )
        initial = initial_parameters(self.config, 1, generator or torch.Generator().manual_seed(0))
        self.load_state_dict({name: value[0] for name, value in initial.items()})

    def forward(self, coords: Tensor) -> Tensor:
        """Values in [-1, 1] (not clamped) at coordinates.

        Args:
            coords: Coordinates (row, column) in [-1, 1], shape (..., 2).

        Returns:
            Values, shape (..., C).
        """
        hidden = coords
        for layer in self.layers[:-1]:
            hidden = torch.sin(self.config.omega_0 * layer(hidden))
        return self.layers[-1](hidden)

    def extra_repr(self) -> str:
        """Architecture, for ``print``."""
        return f"{'-'.join(map(str, self.config.layer_sizes))}, omega_0={self.config.omega_0:g}"


def coordinates(
    height: int, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Centres of the pixels of an image, row by row.

    Args:
        height: Rows, H.
        width: Columns, W.
        device: Where to make them.
        dtype: Floating-point type; torch's default if None.

    Returns:
        (row, column) of each pixel in [-1, 1], shape (H * W, 2). A side of a single pixel lies at 0.

    Raises:
        ValueError: If a side is below 1.

    Example:
        >>> coordinates(2, 3).tolist()
        [[-1.0, -1.0], [-1.0, 0.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} x {width}")
    axes = [
        torch.linspace(-1.0, 1.0, side, device=device, dtype=dtype)
        if side > 1
        else torch.zeros(1, device=device, dtype=dtype)
        for side in (height, width)
    ]
    return torch.cartesian_prod(*axes)


def siren_apply(params: Mapping[str, Tensor], coords: Tensor, config: SirenConfig) -> Tensor:
    """Evaluate a batch of SIRENs at the same coordinates; pure and differentiable.

    Args:
        params: For each name of ``config.parameter_shapes`` a tensor of shape (B, *shape).
        coords: Coordinates (row, column) in [-1, 1], shape (P, 2).
        config: Architecture.

    Returns:
        Values in [-1, 1] (not clamped), shape (B, P, C).

    Raises:
        ValueError: If `params` lacks a name or has a shape that `config` does not.

    Example:
        >>> params = initial_parameters(SirenConfig(), 3, torch.Generator().manual_seed(0))
        >>> siren_apply(params, coordinates(4, 4), SirenConfig()).shape
        torch.Size([3, 16, 1])
    """
    check_parameters(params, config)
    reuse = not (torch.is_grad_enabled() and any(p.requires_grad for p in (*params.values(), coords)))
    hidden = coords.t().expand(len(params["layers.0.bias"]), -1, -1)
    for layer in range(config.hidden_layers):
        # omega_0 multiplies the small weight, not the large activation: (B, n_out, P), pixels last.
        weight = params[f"layers.{layer}.weight"] * config.omega_0
        bias = params[f"layers.{layer}.bias"] * config.omega_0
        hidden = torch.baddbmm(bias.unsqueeze(-1), weight, hidden)
        hidden = hidden.sin_() if reuse else hidden.sin()
    weight, bias = (params[f"layers.{config.hidden_layers}.{part}"] for part in ("weight", "bias"))
    return torch.baddbmm(bias.unsqueeze(-1), weight, hidden).mT


def check_parameters(params: Mapping[str, Tensor], config: SirenConfig) -> None:
    """Refuse parameters that are not those of a batch of SIRENs of `config`.

    Raises:
        ValueError: Naming the first parameter that is missing, extra, or of another shape.
    """
    shapes = config.parameter_shapes
    for name in [*shapes, *params]:
        if name not in params or name not in shapes:
            fact = "missing" if name in shapes else "unexpected"
            raise ValueError(f"{fact} parameter {name!r}: a {config} has {', '.join(shapes)}")
    batch = params["layers.0.bias"].shape[:1]
    for name, shape in shapes.items():
        expected = (*batch, *shape)
        if params[name].shape != expected:
            raise ValueError(f"params[{name!r}] must have shape {expected}, got {tuple(params[name].shape)}")
