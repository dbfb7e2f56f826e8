"""Attention along the neuron axes of weight features (NF-Transformer)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from nfn_opt.layers.attention_chunks import attend_in_chunks
from nfn_opt.layers.attention_core import Projection, attend
from nfn_opt.layers.attention_plan import AttentionPlan, plan_attention
from nfn_opt.layers.checks import check_input
from nfn_opt.layers.compilation import Compilable
from nfn_opt.weight_space import Features, WeightSpace
from nfn_opt.weight_space.cells import Cells

AttentionSharing = Literal["shared", "per_parameter"]


class NFAttention(Compilable):
    r"""Attention between weights that share neurons, equivariant to permuting the neurons.

    For every group of neurons, the *tokens* are all slices, over the other indices, of the tensors with an axis in
    the group: the columns of the weight before the neurons, their bias, the rows of the weight behind. A token is a
    matrix of neurons times channels, and attention is between these tokens (Eqs. (3) to (5) of arXiv:2305.13546):

    .. math:: \mathrm{out}_t = \sum_{t'} \mathrm{softmax}_{t'}\!\Bigl(
        \tfrac{1}{\sqrt{n c}} \sum_{j=1}^n q_{tj} \cdot k_{t'j}\Bigr)\, v_{t'}

    with :math:`n` neurons and :math:`c` channels a head. A weight gets one such term for each of its axes (a tensor
    that one group acts on twice for both), and one more, attention among the means of all tensors, which is
    broadcast. Time and memory grow with the square of the number of tokens.

    Fixed axes get no attention of their own. With ``sharing="shared"`` they number tokens (kernel positions;
    under ``symmetry="hidden"``, HNP, also inputs and outputs), and the means are kept apart along them. The layer
    alone cannot tell such positions apart: put a :class:`PositionEmbedding` in front. With
    ``sharing="per_parameter"`` they count as channels, so that every tensor has projections of its own, and one more
    that maps the result back; it is the paper's form for convolutions, and tells positions apart.

    Args:
        space: The weight space; ``symmetry="all"`` gives the paper's NP layer.
        channels: Channels in and out.
        heads: Number of heads; divides ``channels``.
        sharing: ``"shared"``: one projection for all tensors, which applies to any other space.
            ``"per_parameter"``: one for each tensor.
        dropout: Probability that a token's attention to another is dropped in training, by torch's generator.
        gain: Initial size of the output over that of the input where all tokens agree. Where they are independent,
            their average is smaller.
        generator: Source of the initial weights.
        compile: Whether to run under ``torch.compile``; where no compiler is found, it warns and runs as it is.

    Shapes:
        in and out: ``{name: (B, *axes, channels)}``.

    Raises:
        ValueError: If ``heads`` does not divide ``channels``, or an option is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> space = WeightSpace.from_module(model, torch.zeros(1, 2))
        >>> layer = NFAttention(space, 16, heads=4)
        >>> layer({spec.name: torch.zeros(3, *spec.view_shape, 16) for spec in space.parameters})["0.weight"].shape
        torch.Size([3, 4, 2, 16])
    """

    def __init__(
        self,
        space: WeightSpace,
        channels: int,
        heads: int = 8,
        *,
        sharing: AttentionSharing = "shared",
        dropout: float = 0.0,
        gain: float = 1.0,
        generator: torch.Generator | None = None,
        compile: bool = False,  # noqa: A002  (torch's own word)
    ) -> None:
        super().__init__(compile=compile)
        check_heads(channels, heads)
        check_dropout(dropout)
        if sharing not in ("shared", "per_parameter"):
            raise ValueError(f"sharing is {sharing!r}, expected 'shared' or 'per_parameter'; see NFAttention")
        self.space, self.channels, self.heads = space, channels, heads
        self.sharing, self.dropout = sharing, dropout
        self._plan = plan_attention(space.cells.space, sharing == "per_parameter")
        folds = [1] if sharing == "shared" else [layout.fold for layout in self._plan.layouts]
        largest = max(self._plan.terms(i) for i in range(len(self._plan.layouts)))
        self.qkv = nn.ParameterList(_normal(3 * channels, fold * channels, generator) for fold in folds)
        with torch.no_grad():
            for weight in self.qkv:
                weight[2 * channels :] *= gain / largest
        apart = sharing == "per_parameter"
        self.query_bias = nn.Parameter(torch.zeros(len(folds), channels))
        self.key_bias = nn.Parameter(torch.zeros(len(folds), channels)) if apart else None
        self.value_bias = nn.Parameter(torch.zeros(len(folds), channels))
        back = folds if apart else []
        self.out = nn.ParameterList(_normal(fold * channels, channels, generator) for fold in back)
        self.out_bias = nn.ParameterList(torch.zeros(fold * channels) for fold in back)

    def forward(self, features: Mapping[str, Tensor], space: WeightSpace | None = None) -> Features:
        """Map weight features of ``space``, by default the one given at construction.

        Raises:
            ValueError: If the features do not fit, or another space is given to projections of each parameter.
        """
        plan = self._plan_of(space)
        space = space or self.space
        check_input(space, features, self.channels, self.query_bias)
        if not features[space.names[0]].shape[0]:
            return {name: features[name].clone() for name in space.names}  # no network, nothing to attend to
        result: Features = self._call(self._map, dict(features), space.cells, plan)
        return result

    def _map(self, features: Features, split: Cells, plan: AttentionPlan) -> Features:
        cells = split.split(features)
        inputs = [layout.arrange(cells[layout.spec.name]) for layout in plan.layouts]
        projections = self._projections(plan)
        if self.training and self.dropout:
            mixed = attend(plan, inputs, projections, self.heads, self.dropout)
        else:
            mixed = attend_in_chunks(plan, inputs, projections, self.heads)
        results = {layout.spec.name: layout.restore(y) for layout, y in zip(plan.layouts, mixed, strict=True)}
        return split.join(results)

    def _plan_of(self, space: WeightSpace | None) -> AttentionPlan:
        if space is None or space == self.space:
            return self._plan
        if self.sharing == "per_parameter":
            raise ValueError(
                "another space was given to an attention layer with projections for each parameter, expected the one "
                "that it was built for; build it with sharing='shared'"
            )
        return plan_attention(space.cells.space, False)

    def _projections(self, plan: AttentionPlan) -> list[Projection]:
        """The projection of every tensor."""
        if self.key_bias is None:
            one = Projection(self.qkv[0], self.query_bias[0], self.value_bias[0])
            return [one] * len(plan.layouts)
        biases = zip(self.query_bias, self.value_bias, self.key_bias, strict=True)
        rows = zip(self.qkv, biases, self.out, self.out_bias, strict=True)
        return [Projection(qkv, *bias, out, out_bias) for qkv, bias, out, out_bias in rows]

    def extra_repr(self) -> str:
        """Channels, heads and sharing."""
        return (
            f"{self.channels} channels, {self.heads} heads, {self.sharing}, symmetry={self.space.symmetry!r}"
        )


def check_heads(channels: int, heads: int) -> None:
    """Refuse channels that do not divide among the heads."""
    if channels < 1 or heads < 1 or channels % heads:
        raise ValueError(
            f"channels is {channels} and heads is {heads}, expected positive numbers and channels divisible by heads; "
            "change one of them"
        )


def check_dropout(dropout: float) -> None:
    """Refuse probabilities outside [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}, expected a probability in [0, 1); 0 leaves it out")


def _normal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Weights that keep the variance of what they map."""
    return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
