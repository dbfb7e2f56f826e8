"""What a predictor is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from nfn_opt.functionals import InvariantConfig, NeuronMessagesConfig
from nfn_opt.functionals.body import check_at_least
from nfn_opt.functionals.head import check_dropout
from nfn_opt.functionals.invariant import PoolKind
from nfn_opt.weight_space import Symmetry

__all__ = ["KINDS", "Kind", "PredictorConfig", "Target"]

Kind = Literal[
    "np",
    "hnp",
    "attention",
    "universal",
    "relation",
    "messages",
    "statnn",
    "mlp",
    "mlp-augmented",
    "deepsets",
    "probing",
]
"""How a predictor reads a network; see :class:`PredictorConfig`."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Target = Literal["score", "class", "value"]
"""What is predicted; see :class:`PredictorConfig`."""

WEIGHT_SPACE_KINDS: tuple[Kind, ...] = ("np", "hnp", "attention", "universal", "relation", "messages")
"""Kinds whose hidden layers are equivariant to permuting neurons, and that read weights alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Shape of a :class:`~nfn_opt.predictors.Predictor`.

    The kinds:

    - ``"np"``, ``"hnp"``: NF-Layers (arXiv:2302.14040) for the symmetry of all neurons, with an encoding that tells
      inputs, outputs and layers apart, or for that of the hidden neurons alone.
    - ``"attention"``: an NF-Transformer (arXiv:2305.13546).
    - ``"universal"``: the predictor of arXiv:2402.05232 for any space that can be traced: NF-Layers for the hidden
      neurons as residual blocks with norms. On a chain of layers its linear maps are those of ``"hnp"``.
    - ``"relation"``: NF-Layers whose weights are shared by what tensors are to each other: one predictor for networks
      of any architecture.
    - ``"messages"``: messages between neurons, multiplied with the weights that they pass, for chains of dense or
      convolutional layers (:class:`~nfn_opt.functionals.NeuronMessages`).
    - ``"statnn"``: mean, variance and quantiles of every tensor (arXiv:2002.11448), a baseline.
    - ``"deepsets"``: every tensor as a set of numbers, a baseline.
    - ``"mlp"``, ``"mlp-augmented"``: an MLP of all weights in a row, a baseline; the second is trained on networks
      whose neurons are permuted at random at every step.
    - ``"probing"``: as ``"hnp"``, and what the network answers at learned inputs. It runs the network, and so is no
      pure reader of weights; compare it with the others with that in mind.

    Attributes:
        kind: How a network is read.
        target: ``"score"``: a number in [0, 1] such as an accuracy, trained by binary cross-entropy on logits.
            ``"class"``: one of `outputs` classes, by cross-entropy. ``"value"``: any number, standardised, by squared
            error.
        outputs: How many numbers are predicted, or of how many classes.
        inputs: Names of further numbers that are given for each network, such as ``"activation=tanh"`` (1 or 0):
            weights alone do not say which activation a network has.
        hidden_channels: Channels of the equivariant layers; of ``"messages"`` a neuron has four times as many.
        hidden_layers: Number of these.
        pool: How every parameter is reduced over its neurons.
        heads: Heads of the attention.
        norm: Whether a channel norm stands before every activation.
        position_bands: Bands of the encoding of positions; None for 3 where a kind needs one to tell layers, inputs and
            outputs apart, else 0.
        fourier_frequencies: Random Fourier frequencies of the weights; 0 for none.
        statistics: Whether the head reads the statistics of ``"statnn"`` too, whatever the kind; they are invariant.
            Of no effect with ``"statnn"``, which reads nothing else, and with ``"relation"``: their number would
            depend on the architecture.
        spectrum: Whether the head reads the singular values of every weight too, which are invariant. Of no effect with
            ``"relation"``.
        compress: Whether weights are seen as ``asinh(w / s)``, with ``s`` their usual size, so that networks with
            large weights and with small ones are both resolved. Signs stay.
        probes: Learned inputs of ``"probing"``.
        embedding: Neurons that the weights are mapped to before the head.
        head_width: Neurons of every hidden layer of the head.
        head_layers: Number of these.
        dropout: Probability that a neuron of embedding or head is dropped in training.

    Raises:
        ValueError: If an option is out of bounds, or two do not go together.

    Example:
        >>> PredictorConfig(kind="np").symmetry
        'all'
    """

    kind: Kind = "hnp"
    target: Target = "score"
    outputs: int = 1
    inputs: tuple[str, ...] = ()
    hidden_channels: int = 8
    hidden_layers: int = 2
    pool: PoolKind = "mean"
    heads: int = 2
    norm: bool = False
    position_bands: int | None = None
    fourier_frequencies: int = 0
    statistics: bool = False
    spectrum: bool = False
    compress: bool = True
    probes: int = 8
    embedding: int = 128
    head_width: int = 128
    head_layers: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        for name, choices in (("kind", KINDS), ("target", get_args(Target))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        check_at_least(self, 1, "outputs", "probes", "embedding", "head_width")
        check_at_least(self, 0, "head_layers")
        check_dropout("dropout", self.dropout)
        if self.target == "class" and self.outputs < 2:
            raise ValueError(f"outputs is {self.outputs}, expected the number of classes, 2 or more")
        if len(set(self.inputs)) != len(self.inputs):
            raise ValueError(f"inputs are {', '.join(self.inputs)}, expected each name once")
        self.body  # noqa: B018  (refuses what does not go together)

    @property
    def reads_statistics(self) -> bool:
        """Whether the head reads the statistics beside what the kind reads."""
        return self.statistics and self.kind not in ("relation", "statnn")

    @property
    def reads_spectrum(self) -> bool:
        """Whether the head reads singular values beside what the kind reads."""
        return self.spectrum and self.kind != "relation"

    @property
    def symmetry(self) -> Symmetry:
        """Of the weight space."""
        return "all" if self.kind == "np" else "hidden"

    @property
    def messages(self) -> NeuronMessagesConfig:
        """The messages of kind ``"messages"``."""
        frequencies = self.fourier_frequencies or 32
        return NeuronMessagesConfig(
            channels=4 * self.hidden_channels, fourier_frequencies=frequencies, fourier_scale=0.2
        )

    @property
    def body(self) -> InvariantConfig:
        """The functional that reads the weights, up to the embedding."""
        bands = self.position_bands
        if bands is None:
            bands = 3 if self.kind in ("np", "attention", "relation") else 0
        return InvariantConfig(
            hidden_channels=self.hidden_channels,
            hidden_layers=self.hidden_layers,
            sharing="by_relation" if self.kind == "relation" else "per_parameter",
            fourier_frequencies=self.fourier_frequencies,
            position_bands=bands,
            norm=self.norm or self.kind == "universal",
            residual=self.kind == "universal",
            mixing={"attention": "attention", "deepsets": "pointwise"}.get(self.kind, "linear"),  # type: ignore[arg-type]
            heads=self.heads,
            out_features=self.embedding,
            pool=self.pool,
            head_layers=0,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PredictorConfig:
        """Rebuild a configuration from ``dataclasses.asdict``, as stored in a predictor's file."""
        return cls(**values)
