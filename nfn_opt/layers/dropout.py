"""Dropout of channels and of neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nfn_opt.layers.checks import check_input
from nfn_opt.weight_space import Axis, Features, TensorSpec, WeightSpace


def _check_probability(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(
            f"p is {p}, expected at least 0 and less than 1; it is the probability of being dropped"
        )


def _kept(shape: tuple[int, ...], p: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Ones with probability ``1 - p``, else zeros."""
    device = like.device if generator is None else generator.device
    return (torch.rand(shape, generator=generator, device=device) >= p).to(like.device, like.dtype)


class ChannelDropout(nn.Module):
    """Set whole channels of a parameter to zero, in each network of the batch on its own, and scale up the others.

    Args:
        p: Probability that a channel is dropped.
        generator: Source of the choices; torch's global one if ``None``, as in ``nn.Dropout``.

    Example:
        >>> layer = ChannelDropout(0.5, generator=torch.Generator().manual_seed(0))
        >>> layer({"w": torch.ones(1, 2, 4)})["w"][0].tolist()
        [[0.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    """

    def __init__(self, p: float = 0.1, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        _check_probability(p)
        self.p, self.generator = p, generator

    def forward(self, features: Mapping[str, Tensor]) -> Features:
        """Map ``{name: (B, *axes, C)}`` to the same shapes; the identity in evaluation mode."""
        if not self.training or not self.p:
            return dict(features)
        dropped: Features = {}
        for name, tensor in features.items():
            shape = (tensor.shape[0], *(1 for _ in tensor.shape[1:-1]), tensor.shape[-1])
            dropped[name] = tensor * (_kept(shape, self.p, tensor, self.generator) / (1 - self.p))
        return dropped

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class NeuronDropout(nn.Module):
    """Drop whole neurons: zero everywhere that a parameter has them, in each network of the batch on its own.

    What is kept is scaled up so that every entry keeps its mean: an entry between two neurons is kept with
    probability :math:`(1 - p)^2`. The layer commutes with permuting neurons if its choices are permuted along; its
    distribution is equivariant. It has no weights, and serves every weight space.

    Args:
        space: The weight space that is meant when ``forward`` is not given another.
        p: Probability that a neuron is dropped.
        generator: Source of the choices; torch's global one if ``None``, as in ``nn.Dropout``.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 1))
        >>> layer = NeuronDropout(space, 0.5, generator=torch.Generator().manual_seed(0))
        >>> out = layer({spec.name: torch.ones(1, *spec.view_shape, 1) for spec in space.parameters})
        >>> out["0.bias"].flatten().tolist(), out["2.weight"].flatten().tolist()
        ([0.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0])
    """

    def __init__(
        self, space: WeightSpace, p: float = 0.1, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        _check_probability(p)
        self.space, self.p, self.generator = space, p, generator

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map ``{name: (B, *axes, C)}`` of ``space`` to the same shapes; the identity in evaluation mode."""
        space = space or self.space
        check_input(space, features)
        if not self.training or not self.p:
            return dict(features)
        like = features[space.names[0]]
        groups = {a.name: a.size for spec in space.parameters for a in spec.leaves() if a.permutable}
        kept = {g: _kept((like.shape[0], n), self.p, like, self.generator) for g, n in groups.items()}
        cells = space.cells.split(features)
        return space.cells.join(
            {spec.name: self._drop(spec, cells[spec.name], kept) for spec in space.cells.space.parameters}
        )

    def _drop(self, spec: TensorSpec, tensor: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
        """Multiply by what is kept along every neuron axis, over the probability of keeping it."""
        dims = len(spec.axes)
        positions: dict[str, list[int]] = {}
        for i, axis in enumerate(spec.axes):
            if axis.permutable:
                positions.setdefault(axis.name, []).append(i)
        for name, at in positions.items():
            for i in at:
                mask = kept[name].reshape(-1, *(kept[name].shape[1] if j == i else 1 for j in range(dims)), 1)
                tensor = tensor * (mask / (1 - self.p))
            for same in _repeated(at, spec.axes[at[0]], dims, tensor):
                tensor = torch.where(same, tensor * (1 - self.p), tensor)
        return tensor

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


def _repeated(at: list[int], axis: Axis, dims: int, like: Tensor) -> Iterator[Tensor]:
    """Where an axis of a group has a neuron that an earlier axis of the same group has: kept once, counted twice."""
    numbers = torch.arange(axis.size, device=like.device)
    index = [numbers.reshape(*(axis.size if j == i else 1 for j in range(dims)), 1) for i in at]
    for later in range(1, len(at)):
        matches = [index[earlier] == index[later] for earlier in range(later)]
        seen = matches[0]
        for match in matches[1:]:
            seen = seen | match
        yield seen
