"""Weight spaces: all parameters of one architecture with the neuron permutations that act on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nfn_opt.weight_space.axis_notation import AxisDescription, Descriptions
from nfn_opt.weight_space.cells import Cells
from nfn_opt.weight_space.checks import check_features, check_permutation, check_tensors
from nfn_opt.weight_space.compare import Comparison, compare
from nfn_opt.weight_space.describe import describe
from nfn_opt.weight_space.described import describe_by_hand
from nfn_opt.weight_space.features import as_features, from_features, stack, write
from nfn_opt.weight_space.spec import Axis, Permutation, Role, TensorSpec
from nfn_opt.weight_space.tracing import trace_module
from nfn_opt.weight_space.verify import verify

Symmetry = Literal["hidden", "all"]
Features = dict[str, Tensor]
"""Weight features: for each parameter a tensor ``(B, *axes, C)``, the axes as viewed."""


@dataclass(frozen=True)
class WeightSpace:
    """The parameters of one architecture and the permutation groups that act on their axes.

    Permuting the hidden neurons of a network, that is the matching axes of all its parameters, leaves the
    function it computes unchanged (arXiv:2302.14040). A weight space says which axes match.

    Attributes:
        parameters: One record for each parameter, in the order of ``model.named_parameters()``.
        buffers: Records of the buffers that move with the neurons (running statistics) and of those that do not.
        inputs: Records of the model's tensor inputs; their axes carry groups only where ``symmetry="all"``.
        outputs: Records of the model's tensor outputs, likewise.
        symmetry: ``"hidden"``: only hidden neurons may be permuted (HNP). ``"all"``: input and output neurons
            too (NP); the model's inputs and outputs are then permuted along.
        aliases: Further ``state_dict`` names of tied tensors, each with the name that stands for it.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 3))
        >>> space.groups
        {'h1': 5}
        >>> perm = space.random_permutation(torch.Generator().manual_seed(0))
        >>> other = space.permute(model.state_dict(), perm)
        >>> bool(space.verify(model, torch.randn(4, 3)) < 1e-10)
        True
    """

    parameters: tuple[TensorSpec, ...]
    buffers: tuple[TensorSpec, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    symmetry: Symmetry = "hidden"
    aliases: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError(
                "the weight space has no parameters, expected at least one; pass a model with parameters"
            )
        sizes: dict[str, int] = {}
        for spec in (*self.parameters, *self.buffers):
            for axis in (*spec.axes, *spec.leaves()):
                if sizes.setdefault(axis.name, axis.size) != axis.size:
                    raise ValueError(
                        f"{spec.name}: axis {axis.name!r} has size {axis.size}, expected {sizes[axis.name]} as in the "
                        "tensors before it; give axes of different sizes different names"
                    )

    # Construction

    @classmethod
    def from_module(
        cls, model: nn.Module, example_inputs: Any, *, symmetry: Symmetry = "hidden"
    ) -> WeightSpace:
        """Find the permutation symmetry of a model by tracing one forward pass.

        The model is run once on fake tensors (no arithmetic, no memory), in evaluation mode, and is left as it
        was. Operators that are not understood fix the axes that they touch, with a warning that names them:
        a symmetry may be missed, never invented.

        Args:
            model: The network.
            example_inputs: What ``model`` is called with: a tensor, a tuple of positional arguments, or a dict
                of keyword arguments. Only shapes and dtypes matter.
            symmetry: ``"hidden"`` (HNP) or ``"all"`` (NP).

        Raises:
            ValueError: If the model has no parameters, the inputs do not fit, or the forward pass cannot be traced.
        """
        return cls(**trace_module(model, example_inputs, symmetry=symmetry))

    @classmethod
    def independent(cls, tensors: Mapping[str, Tensor]) -> WeightSpace:
        """A space in which every axis of every tensor is a group of its own.

        It is what an optimizer can assume when it knows the tensors but not the network: no axis of one tensor
        is tied to an axis of another.

        Example:
            >>> print(WeightSpace.independent({"w": torch.zeros(2, 3)}).parameters[0])
            w (w.0:2, w.1:3)
        """
        roles: list[Literal["out", "in", "space"]] = ["out", "in"]
        specs = tuple(
            TensorSpec(
                name,
                tuple(tensor.shape),
                tuple(
                    Axis(f"{name}.{i}", size, size > 1, roles[i] if i < 2 else "space")
                    for i, size in enumerate(tensor.shape)
                ),
            )
            for name, tensor in tensors.items()
        )
        return cls(parameters=specs)

    @classmethod
    def from_axes(
        cls,
        axes: Descriptions,
        tensors: nn.Module | Mapping[str, Tensor | Sequence[int]],
        *,
        sizes: Mapping[str, int] | None = None,
        roles: Mapping[str, Sequence[Role]] | None = None,
        inputs: Sequence[Sequence[AxisDescription]] | None = None,
        outputs: Sequence[Sequence[AxisDescription]] | None = None,
        symmetry: Symmetry = "hidden",
    ) -> WeightSpace:
        """A weight space written by hand: for every parameter, what each of its axes runs over.

        For models that cannot be traced (see :mod:`nfn_opt.weight_space.described` for one), in the spirit of the
        permutation specification of arXiv:2402.05232. Check it by :meth:`verify`. An axis is described by

        - a name: the group that permutes it; axes with the same name are permuted together;
        - ``None``, a number (its size), or a name that starts with ``_``: the axis is fixed;
        - a tuple: the product of these, major first, such as ``("heads", "head_dim")``, ``("h1", 49)`` for the
          channels of a picture of 49 pixels, flattened, or ``(4, "h1")`` for the gates of an LSTM;
        - a list: these one behind the other, such as ``["h1", "h2"]`` behind a concatenating skip.

        Args:
            axes: ``{parameter: (description of axis 0, of axis 1, ...)}``. Buffers of a module may be described too;
                those that are not are fixed.
            tensors: The module, or its parameters, or their shapes.
            sizes: Sizes of names that the shapes leave open, such as the number of heads. All others are inferred,
                and checked.
            roles: For parameters whose axes are not (out, in, space, ...), the role of each axis: ``("in", "out",
                "space", "space")`` for a transposed convolution.
            inputs: The axes of each tensor that the model is called with, ``None`` for the batch; by default one
                tensor that no group acts on.
            outputs: The axes of each tensor that it returns, likewise.
            symmetry: ``"hidden"``: names that occur in inputs or outputs count as fixed. ``"all"``: they do not.

        Raises:
            ValueError: If names, numbers of axes or sizes do not fit; the message names parameter and axis.
            TypeError: If a description is of another type.

        Example:
            >>> shapes = {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (2, 5)}
            >>> axes = {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h")}
            >>> print(WeightSpace.from_axes(axes, shapes))
            WeightSpace: 3 parameters, 30 weights, symmetry='hidden'
              groups: h (5)
              0.weight  (h:5, 3)  fixed: by hand
              0.bias    (h:5,)
              2.weight  (2, h:5)  fixed: by hand
        """
        described = describe_by_hand(
            axes, tensors, sizes=sizes, roles=roles, inputs=inputs, outputs=outputs, symmetry=symmetry
        )
        return cls(**described)

    # Looking at it

    def compare(self, other: WeightSpace) -> Comparison:
        """Say whether two spaces are equal, compatible (the same relations, other widths) or different, and why.

        The names of groups are irrelevant. Features of an equal space fit every layer; features of any other space
        fit layers with ``sharing="by_relation"`` alone, with that space given to ``forward``.

        Example:
            >>> narrow, wide = (
            ...     WeightSpace.from_module(
            ...         nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2)), torch.zeros(1, 3)
            ...     )
            ...     for n in (5, 8)
            ... )
            >>> print(narrow.compare(wide))
            compatible
              0.weight, axis 0: group 'h1' of size 5 here, 'h1' of size 8 there
            >>> narrow.compare(narrow).verdict
            'equal'
        """
        return compare(self, other)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter names in order."""
        return tuple(spec.name for spec in self.parameters)

    @property
    def groups(self) -> dict[str, int]:
        """Name and size of every permutation group that acts on a parameter or moving buffer."""
        specs = (*self.parameters, *self.buffers)
        return {axis.name: axis.size for spec in specs for axis in spec.leaves() if axis.permutable}

    @property
    def numel(self) -> int:
        """Number of weights of one network."""
        return sum(spec.numel for spec in self.parameters)

    @cached_property
    def _hash(self) -> int:
        return hash((self.parameters, self.buffers, self.symmetry))

    def __hash__(self) -> int:
        return self._hash

    def __getitem__(self, name: str) -> TensorSpec:
        for spec in self.parameters:
            if spec.name == name:
                return spec
        raise KeyError(f"no parameter {name!r} in this weight space; it has {', '.join(self.names)}")

    @property
    def fingerprint(self) -> str:
        """A short hash of the parameters, their shapes and symmetries; equal spaces have equal fingerprints."""
        records = [
            (
                spec.name,
                spec.shape,
                [(axis.name, axis.size, axis.permutable, axis.role) for axis in spec.leaves()],
            )
            for spec in self.parameters
        ]
        return hashlib.sha256(repr(records).encode()).hexdigest()[:16]

    @cached_property
    def cells(self) -> Cells:
        """The space with every tensor cut where a concatenated axis passes from one part to the next."""
        return Cells(self)

    def __str__(self) -> str:
        return describe(self)

    # Permuting

    def random_permutation(self, generator: torch.Generator) -> Permutation:
        """Draw one uniformly random permutation for every group, those of inputs and outputs included."""
        specs = (*self.parameters, *self.buffers, *self.inputs, *self.outputs)
        sizes = {axis.name: axis.size for spec in specs for axis in spec.leaves() if axis.permutable}
        return Permutation({name: torch.randperm(size, generator=generator) for name, size in sizes.items()})

    def permute(
        self, tensors: Mapping[str, Tensor], permutation: Permutation, *, inverse: bool = False
    ) -> dict[str, Tensor]:
        """Permute the neurons of one network.

        Args:
            tensors: A ``state_dict`` or any dict of tensors of this space, stored shapes, buffers optional.
            permutation: What to apply; see :class:`Permutation`.
            inverse: Undo instead.

        Raises:
            ValueError: If a parameter is missing, unknown or of another shape, or if the permutation is of another
                space. Groups that the permutation leaves out stay as they are.
        """
        check_tensors(self, tensors)
        check_permutation(self, permutation)
        permutation = permutation.inverse() if inverse else permutation
        specs = self.specs_by_name()
        return {
            name: specs[name].unview(specs[name].permute(specs[name].view(tensor), permutation))
            for name, tensor in tensors.items()
        }

    def permute_features(
        self, features: Mapping[str, Tensor], permutation: Permutation, *, inverse: bool = False
    ) -> Features:
        """Permute the neurons of batched weight features ``{name: (B, *axes, C)}``."""
        check_features(self, features)
        check_permutation(self, permutation)
        permutation = permutation.inverse() if inverse else permutation
        return {
            name: self[name].permute(tensor, permutation, batch_dims=1) for name, tensor in features.items()
        }

    def verify(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        generator: torch.Generator | None = None,
        trials: int = 3,
        tolerance: float | None = None,
        dtype: torch.dtype | None = torch.float64,
    ) -> float:
        """Check on the model itself that permuting its neurons leaves its outputs unchanged.

        Args:
            model: A network of this space; it is not modified.
            example_inputs: Real inputs, in the form given to :meth:`from_module`.
            generator: Source of the permutations; a fixed one by default.
            trials: How many random permutations of all groups to try, before some of half of the groups each.
            tolerance: Largest accepted relative change; by default 1e-10 in float64, 1e-4 otherwise.
            dtype: Floating-point type to compute in, ``None`` for that of the model.

        Returns:
            The largest change of an output, relative to the largest absolute output.

        Raises:
            ValueError: If the change exceeds the tolerance, or nothing can be compared.
        """
        return verify(self, model, example_inputs, generator, trials, tolerance, dtype)

    # Weight features

    def features(self, models: Sequence[nn.Module | Mapping[str, Tensor]]) -> Features:
        """Stack networks of this architecture into weight features with one channel.

        Args:
            models: Networks, or dicts of their tensors in stored shapes.

        Returns:
            ``{name: (B, *axes, 1)}``.
        """
        return self.as_features(stack(self, models))

    def as_features(self, *tensors: Mapping[str, Tensor]) -> Features:
        """Turn batched tensors into weight features, one channel for each dict given.

        Args:
            tensors: Dicts ``{name: (B, *shape)}``: weights, and if wanted gradients, momenta and so on.

        Returns:
            ``{name: (B, *axes, len(tensors))}``.
        """
        return as_features(self, tensors)

    def from_features(self, features: Mapping[str, Tensor], channel: int = 0) -> dict[str, Tensor]:
        """Turn one channel of weight features back into batched tensors ``{name: (B, *shape)}``."""
        return from_features(self, features, channel)

    def write(
        self, features: Mapping[str, Tensor], model: nn.Module, index: int = 0, channel: int = 0
    ) -> None:
        """Copy network ``index`` of one channel of weight features into a model, in place."""
        write(self, features, model, index, channel)

    def specs_by_name(self) -> dict[str, TensorSpec]:
        """Records of all parameters, buffers and aliases by ``state_dict`` name."""
        specs = {spec.name: spec for spec in (*self.parameters, *self.buffers)}
        specs.update({alias: specs[name] for alias, name in self.aliases})
        return specs
