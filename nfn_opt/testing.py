"""Checks that a map on weight features respects the symmetry of its weight space: numbers, and assertions on top.

Two questions are asked of a layer or network. *Is it equivariant?* Permuting neurons and then applying it must give
what applying it and then permuting gives (:func:`equivariance_error` near zero). *Is it sensitive?* A map that treats
every tensor on its own passes the first question, but cannot see that the rows of one weight belong to the columns of
the next. Permuting one axis of one tensor without its partners must make a difference (:func:`sensitivity` far from
zero).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nfn_opt._random_networks import NetworkKind, random_network, random_space
from nfn_opt.weight_space import Features, Permutation, WeightSpace

__all__ = [
    "FeatureMap",
    "NetworkKind",
    "assert_equivariant",
    "assert_invariant",
    "assert_sensitive",
    "equivariance_error",
    "hidden_groups",
    "random_features",
    "random_network",
    "random_space",
    "sensitivities",
    "sensitivity",
]

FeatureMap = Callable[[Features], Any]
"""A layer, network or function: weight features to weight features (equivariant) or to a tensor (invariant)."""


def random_features(
    space: WeightSpace,
    channels: int = 1,
    batch: int = 2,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Features:
    """Standard normal weight features ``{name: (batch, *axes, channels)}`` of a space.

    The numbers are drawn on the generator's device in float64, so that they agree up to rounding for every dtype.

    Example:
        >>> space = WeightSpace.independent({"w": torch.zeros(2, 3)})
        >>> random_features(space, 4, batch=5, generator=torch.Generator())["w"].shape
        torch.Size([5, 2, 3, 4])
    """
    return {
        spec.name: torch.randn(
            (batch, *spec.view_shape, channels),
            generator=generator,
            dtype=torch.float64,
            device=generator.device,
        ).to(device, dtype)
        for spec in space.parameters
    }


def hidden_groups(space: WeightSpace) -> set[str]:
    """Names of the groups that permute hidden neurons, not inputs or outputs of the network.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2), symmetry="all")
        >>> sorted(space.groups), sorted(hidden_groups(space))
        (['h1', 'in1', 'out1'], ['h1'])
    """
    ends = {axis.name for spec in (*space.inputs, *space.outputs) for axis in spec.leaves()}
    return set(space.groups) - ends


def equivariance_error(
    function: FeatureMap,
    space: WeightSpace,
    in_channels: int,
    generator: torch.Generator,
    *,
    batch: int = 2,
    trials: int = 3,
    groups: Collection[str] | None = None,
    dtype: torch.dtype | None = None,
) -> float:
    """How far a map is from respecting the permutations of a space: largest difference over largest output.

    Features that come out are compared with the permuted ones, a tensor that comes out with itself (invariance).
    Put modules with dropout or running statistics into evaluation mode first.

    Args:
        function: Layer, network or plain function on the features of ``space``.
        space: The weight space.
        in_channels: Channels of the features that ``function`` takes.
        generator: Source of the features and permutations.
        batch: Networks in the batch.
        trials: How many pairs of features and permutations are tried; the worst counts.
        groups: Names of the groups to permute, all of them by default; see :func:`hidden_groups`.
        dtype: Type of the features; by default that of the module's parameters, float64 where there are none.

    Returns:
        The error, about 1e-15 in float64 for a map that is equivariant, about 1 for one that is not.

    Raises:
        ValueError: If an output is not finite or a group is unknown.
        TypeError: If the outputs are neither features nor a tensor.

    Example:
        >>> space = random_space(torch.Generator().manual_seed(0), "mlp")
        >>> double = lambda features: {name: 2 * tensor for name, tensor in features.items()}
        >>> equivariance_error(double, space, 1, torch.Generator().manual_seed(0))
        0.0
    """
    unknown = sorted(set(groups or ()) - set(space.groups))
    if unknown:
        raise ValueError(f"groups are {unknown}, expected some of {sorted(space.groups)}; see space.groups")
    worst = 0.0
    for _ in range(trials):
        features = _draw(function, space, in_channels, batch, generator, dtype)
        drawn = space.random_permutation(generator).indices
        chosen = Permutation({n: i for n, i in drawn.items() if groups is None or n in groups})
        worst = max(worst, _change(function, features, partial(space.permute_features, permutation=chosen)))
    return worst


def sensitivities(
    function: FeatureMap,
    space: WeightSpace,
    in_channels: int,
    generator: torch.Generator,
    *,
    batch: int = 2,
    groups: Collection[str] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """What :func:`equivariance_error` becomes when one axis of one tensor is permuted without its partners.

    Args:
        function: Layer, network or plain function on the features of ``space``.
        space: The weight space.
        in_channels: Channels of the features that ``function`` takes.
        generator: Source of the features and permutations.
        batch: Networks in the batch.
        groups: Names of the groups to permute, all of them by default.
        dtype: Type of the features; by default that of the module's parameters.

    Returns:
        ``{"name[position]": error}`` for every axis that shares its group with another axis of the space; of a
        tensor with a concatenated axis each of its :attr:`WeightSpace.cells` is permuted on its own.

    Raises:
        ValueError: If no two axes of the space share a group, so that there is nothing to be sensitive to.
    """
    features = _draw(function, space, in_channels, batch, generator, dtype)
    coupled = _coupled_axes(space, groups)
    if not coupled:
        raise ValueError(
            "no two axes of the weight space share a group, so no map can be sensitive to their coupling; "
            "take a network with a hidden layer of at least two neurons"
        )
    changes = {}
    for name, position, size in coupled:
        shift = int(torch.randint(1, size, (), generator=generator))

        def act(x: Features, name: str = name, dim: int = 1 + position, shift: int = shift) -> Features:
            cells = space.cells.split(x)
            return space.cells.join({**cells, name: cells[name].roll(shift, dim)})

        changes[f"{name}[{position}]"] = _change(function, features, act)
    return changes


def sensitivity(
    function: FeatureMap, space: WeightSpace, in_channels: int, generator: torch.Generator, **options: Any
) -> float:
    """The smallest of :func:`sensitivities` (same arguments): zero for a map that ignores one of the couplings.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> means = lambda x: {name: t + t.mean(1, keepdim=True) for name, t in x.items()}  # each tensor on its own
        >>> sensitivity(means, space, 1, torch.Generator().manual_seed(0)) < 1e-10
        True
    """
    return min(sensitivities(function, space, in_channels, generator, **options).values())


def assert_equivariant(
    function: FeatureMap,
    space: WeightSpace,
    in_channels: int,
    generator: torch.Generator,
    *,
    tolerance: float | None = None,
    **options: Any,
) -> None:
    """Assert that a map from features to features is equivariant.

    Args:
        function: Layer, network or plain function on the features of ``space``.
        space: The weight space.
        in_channels: Channels of the features that ``function`` takes.
        generator: Source of the features and permutations.
        tolerance: Largest accepted error; by default 1e-10 in float64 and 1e-4 otherwise.
        **options: As for :func:`equivariance_error`.

    Raises:
        AssertionError: If the error is larger.

    Example:
        >>> space = random_space(torch.Generator().manual_seed(1), "conv2d")
        >>> assert_equivariant(lambda x: x, space, 1, torch.Generator().manual_seed(0))
    """
    _assert_respects(function, space, in_channels, generator, tolerance, options, Mapping)


def assert_invariant(
    function: FeatureMap,
    space: WeightSpace,
    in_channels: int,
    generator: torch.Generator,
    *,
    tolerance: float | None = None,
    **options: Any,
) -> None:
    """Assert that a map from features to a tensor is invariant; arguments as for :func:`assert_equivariant`.

    Example:
        >>> space = random_space(torch.Generator().manual_seed(1), "conv2d")
        >>> total = lambda x: torch.stack([t.flatten(1).sum(1) for t in x.values()])
        >>> assert_invariant(total, space, 1, torch.Generator().manual_seed(0))
    """
    _assert_respects(function, space, in_channels, generator, tolerance, options, Tensor)


def assert_sensitive(
    function: FeatureMap,
    space: WeightSpace,
    in_channels: int,
    generator: torch.Generator,
    *,
    minimum: float = 1e-3,
    **options: Any,
) -> None:
    """Assert that a map notices every axis that is permuted without its partners.

    Args:
        function: Layer, network or plain function on the features of ``space``.
        space: The weight space.
        in_channels: Channels of the features that ``function`` takes.
        generator: Source of the features and permutations.
        minimum: Smallest accepted relative change.
        **options: As for :func:`sensitivities`.

    Raises:
        AssertionError: If a change is smaller; the message names the axis.
        ValueError: If the space couples no axes.
    """
    changes = sensitivities(function, space, in_channels, generator, **options)
    weak = {axis: change for axis, change in changes.items() if not change >= minimum}
    if weak:
        listed = ", ".join(f"{axis} ({change:.2g})" for axis, change in weak.items())
        raise AssertionError(
            f"{_name(function)} does not notice when an axis is permuted without its partners: relative change of "
            f"{listed}, expected at least {minimum:.2g}; let it combine the tensors that share the axis's group"
        )


def _draw(
    function: FeatureMap,
    space: WeightSpace,
    channels: int,
    batch: int,
    generator: torch.Generator,
    dtype: torch.dtype | None,
) -> Features:
    """Random features of the dtype and on the device of a module's parameters."""
    like = _floating_tensor(function)
    return random_features(
        space, channels, batch, generator=generator, dtype=dtype or like.dtype, device=like.device
    )


def _floating_tensor(function: FeatureMap) -> Tensor:
    tensors = [*function.parameters(), *function.buffers()] if isinstance(function, nn.Module) else []
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0, dtype=torch.float64))


def _coupled_axes(space: WeightSpace, groups: Collection[str] | None) -> list[tuple[str, int, int]]:
    """Cell, position and size of every axis that shares its group with another axis."""
    places: dict[str, list[tuple[str, int, int]]] = {}
    for spec in space.cells.space.parameters:
        for position, axis in enumerate(spec.axes):
            if axis.permutable and axis.size > 1 and (groups is None or axis.name in groups):
                places.setdefault(axis.name, []).append((spec.name, position, axis.size))
    return [place for found in places.values() if len(found) > 1 for place in found]


def _change(function: FeatureMap, features: Features, act: Callable[[Features], Features]) -> float:
    """Difference between acting before and acting after, over the largest output."""
    with torch.no_grad():
        before, plain = function(act(features)), function(features)
    if isinstance(plain, Tensor):
        got, after, plain = {"output": before}, {"output": plain}, {"output": plain}
    elif isinstance(plain, Mapping):
        got, after = before, act(dict(plain))
    else:
        raise TypeError(
            f"{_name(function)} returned a {type(plain).__name__}, expected weight features (a dict of tensors) or a "
            "tensor; wrap it in a function that returns one of them"
        )
    largest = max(float(tensor.abs().max()) for tensor in plain.values())
    difference = max(float((got[name] - after[name]).abs().max()) for name in plain)
    if not (largest < float("inf") and difference < float("inf")):
        raise ValueError(f"{_name(function)} gave outputs that are not finite, expected finite ones")
    return difference / largest if largest else difference


def _assert_respects(
    function: FeatureMap,
    space: WeightSpace,
    in_channels: int,
    generator: torch.Generator,
    tolerance: float | None,
    options: Mapping[str, Any],
    kind: type,
) -> None:
    """The body of :func:`assert_equivariant` and :func:`assert_invariant`."""
    features = _draw(function, space, in_channels, 1, generator, options.get("dtype"))
    with torch.no_grad():
        out = function(features)
    what, other = ("equivariant", "invariant") if kind is Mapping else ("invariant", "equivariant")
    if not isinstance(out, kind):
        raise AssertionError(
            f"{_name(function)} returned a {type(out).__name__}, expected a {kind.__name__}; use assert_{other}"
        )
    error = equivariance_error(function, space, in_channels, generator, **options)
    double = features[space.names[0]].dtype == torch.float64
    limit = tolerance if tolerance is not None else 1e-10 if double else 1e-4
    if not error <= limit:
        raise AssertionError(
            f"{_name(function)} is not {what}: permuting neurons changes it by {error:.3g} of the largest output, "
            f"expected at most {limit:.3g}; look for what depends on the order of the neurons"
        )


def _name(function: FeatureMap) -> str:
    return getattr(function, "__name__", type(function).__name__)
