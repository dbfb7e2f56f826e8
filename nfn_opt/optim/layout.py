"""All tensors of a network as one flat vector: elementwise work is then one operation, not one a tensor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nfn_opt.weight_space import TensorSpec, WeightSpace


@dataclasses.dataclass(frozen=True)
class Segment:
    """Where one tensor lies in the flat vector.

    Attributes:
        spec: The tensor.
        shape: The shape that statistics are taken over, see :func:`statistics_shape`.
        factored: The axes averaged away by the row and by the column statistics: the largest and the
            second largest; ``None`` for a tensor with fewer than two axes.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    factored: tuple[int, int] | None

    @staticmethod
    def of(spec: TensorSpec) -> Segment:
        """The segment of a tensor."""
        shape = statistics_shape(spec)
        return Segment(spec, shape, largest_axes(shape))

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.spec.name

    @property
    def kind(self) -> int:
        """0 for a tensor with two or more axes, 1 for a vector or scalar."""
        return 1 if self.factored is None else 0

    def averaged_shape(self, which: int) -> tuple[int, ...]:
        """The shape with the row (``which=0``) or column (``which=1``) statistics' axis set to 1."""
        assert self.factored is not None
        return tuple(1 if i == self.factored[which] else n for i, n in enumerate(self.shape))


class Layout:
    """The order and shapes of some tensors of a weight space in a flat vector of ``N`` entries.

    Example:
        >>> tensors = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}
        >>> layout = Layout.of(WeightSpace.independent(tensors), ("w", "b"))
        >>> layout.flatten(tensors).shape
        torch.Size([8])
        >>> layout.segments[0].averaged_shape(0)
        (2, 1)
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.segments = tuple(Segment.of(spec) for spec in specs)
        self.sizes = [segment.spec.numel for segment in self.segments]

    @staticmethod
    def of(space: WeightSpace, names: Sequence[str]) -> Layout:
        """The layout of the named tensors of a space; kept for the next call."""
        return _layout(space, tuple(names))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate tensors of stored shapes to ``(N,)``.

        Raises:
            ValueError: If a tensor is missing, or has another shape than in the weight space.
        """
        for segment in self.segments:
            got = tensors[segment.name].shape if segment.name in tensors else None
            if got != segment.spec.shape:
                found = "is missing" if got is None else f"has shape {tuple(got)}"
                raise ValueError(
                    f"the tensor {segment.name!r} {found}, expected shape {segment.spec.shape} as in the weight "
                    "space; give the rule the space of this network"
                )
        return torch.cat([tensors[segment.name].reshape(-1) for segment in self.segments])

    def gather(self, states: Mapping[str, Mapping[str, Tensor]], key: str) -> Tensor:
        """Concatenate the entries ``key`` of per-tensor states, ``(K, *shape)`` each, to ``(K, N)``.

        Raises:
            ValueError: If a tensor has no such state.
        """
        for segment in self.segments:
            if key not in states.get(segment.name, {}):
                raise ValueError(
                    f"the state has no {key!r} of the tensor {segment.name!r}; it was made for another network or "
                    "rule: start with rule.init(space, params)"
                )
        return torch.cat([flat(states[segment.name][key]) for segment in self.segments], dim=1)

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Cut ``(..., N)`` into one ``(..., n)`` for each tensor."""
        return torch.split(flat, self.sizes, dim=-1)


@functools.lru_cache(maxsize=256)
def _layout(space: WeightSpace, names: tuple[str, ...]) -> Layout:
    known = set(space.names)
    for name in names:
        if name not in known:
            raise ValueError(
                f"the tensor {name!r} is not in the weight space, which has {', '.join(space.names)}; give the rule "
                "the space of this network"
            )
    return Layout([space[name] for name in names])


def flat(x: Tensor) -> Tensor:
    """``(K, *shape)`` as ``(K, n)``, ``shape`` possibly empty."""
    return x.reshape(x.shape[0], -1)


def statistics_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape whose rows and columns are what a rule takes the statistics of: the stored shape.

    So a rule does the same whether it is given the symmetry of a network or not. A permutation of viewed axes moves
    whole indices of the stored axes that they are part of. Only where a viewed axis runs over several stored ones
    would that break the symmetry, and the statistics are of the shape as viewed.

    Example:
        >>> from nfn_opt.weight_space import Axis
        >>> statistics_shape(TensorSpec("w", (2, 12), (Axis("out", 2), Axis("h", 4), Axis("pixel", 3, False))))
        (2, 12)
        >>> statistics_shape(TensorSpec("w", (2, 6), (Axis("h", 12),)))
        (12,)
    """
    ends, boundaries = 1, {1}
    for axis in spec.axes:
        ends *= axis.size
        boundaries.add(ends)
    ends = 1
    for size in spec.shape:
        ends *= size
        if ends not in boundaries:
            return spec.view_shape
    return spec.shape


def largest_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The largest and second largest axis of a shape, ``None`` where it has fewer than two.

    Of axes of equal size, kernel positions come last, then inputs, then outputs, as in the reference
    implementation, which stores weights as (positions, inputs, outputs).

    Example:
        >>> largest_axes((32, 64)), largest_axes((5, 5)), largest_axes((16, 8, 3, 3)), largest_axes((7,))
        ((1, 0), (0, 1), (0, 1), None)
    """
    if len(shape) < 2:
        return None
    stored_as = (*range(2, len(shape)), 1, 0)
    second, first = sorted(stored_as, key=lambda axis: shape[axis])[-2:]
    return first, second
