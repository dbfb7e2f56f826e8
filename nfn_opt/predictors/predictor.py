"""Predictors: networks that read the weights of other networks and tell a property of each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError, load_artifact, save_artifact
from nfn_opt.data.zoos.architecture import CnnArchitecture
from nfn_opt.functionals.head import mlp
from nfn_opt.layers import SpectrumFeatures, StatisticsFeatures
from nfn_opt.predictors.architectures import (
    Architecture,
    read_space,
    space_for,
    space_record,
)
from nfn_opt.predictors.config import PredictorConfig
from nfn_opt.predictors.group import NetworkGroup, failed_networks
from nfn_opt.predictors.ranges import TrainingRange
from nfn_opt.predictors.readers import (
    Evaluate,
    FixedReader,
    PooledReader,
    ProbeReader,
    Standardize,
    evaluate_module,
    evaluate_small_cnn,
    make_reader,
)
from nfn_opt.predictors.scaling import WeightScaling
from nfn_opt.predictors.shipped import predictor_path
from nfn_opt.weight_space import WeightSpace

__all__ = ["Predictor"]

KIND = "predictor"
"""The kind of a predictor's file."""

NETWORKS_PER_CHUNK = 128
"""Networks that are read at once outside training."""


class Predictor(nn.Module):
    """Reads the weights of networks, and predicts a score, a class or a value of each.

    A reader of the chosen kind turns the weights into a vector, to which the numbers given beside the weights
    are added; an MLP maps it to the outputs. Weights, these numbers and targets are standardised by the training
    networks (:meth:`fit`).

    Args:
        architecture: The networks: a weight space, of ``symmetry="all"`` for kind ``"np"`` and else ``"hidden"``, or
            the description of small CNNs.
        config: What the predictor is made of.
        network: For kind ``"probing"`` with a weight space, one of the networks, to be run with other weights.
        probes: For kind ``"probing"`` with a weight space, its learned inputs at the start, shape (P, *input shape).
        generator: Source of the initial weights; None stands for a new generator of seed 0.

    Attributes:
        space: The weight space that is meant when ``forward`` is not given another.
        range: The range of the training networks; None before :meth:`fit`.
        metadata: What a file says of the predictor: command, scores, data.

    Raises:
        ValueError: If the symmetry of the weight space is not the kind's, or ``"probing"`` lacks what it needs.

    Example:
        >>> predictor = Predictor(CnnArchitecture(widths=(4, 4)), PredictorConfig(kind="statnn"))
        >>> params = {name: torch.rand(3, *shape) for name, shape in predictor.cnn.parameter_shapes.items()}
        >>> predictor(params).shape, bool((predictor.predict(params) < 1).all())
        (torch.Size([3, 1]), True)
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        architecture: Architecture,
        config: PredictorConfig | None = None,
        *,
        network: nn.Module | None = None,
        probes: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = config or PredictorConfig()
        generator = generator or torch.Generator().manual_seed(0)
        self.config, self.space = config, space_for(architecture, config)
        self.cnn = architecture if isinstance(architecture, CnnArchitecture) else None
        self.range: TrainingRange | None = None
        self.metadata: dict[str, Any] = {}
        self.scaling = WeightScaling(self.space, shared=self.shared, compress=config.compress)
        self.reader = make_reader(self.space, config, generator)
        parts = 1
        if config.reads_statistics:
            self.statistics = FixedReader(
                StatisticsFeatures(self.space), config.embedding, generator=generator
            )
            parts += 1
        if config.reads_spectrum:
            self.spectrum = FixedReader(SpectrumFeatures(self.space), config.embedding, generator=generator)
            parts += 1
        if config.kind == "probing":
            self.probing = self._probe_reader(network, probes, generator)
            parts += 1
        self.beside = Standardize(len(config.inputs))
        sizes = [parts * config.embedding + len(config.inputs), *config.head_layers * [config.head_width]]
        self.dropout = nn.Dropout(config.dropout)
        self.head = mlp([*sizes, config.outputs], config.dropout, generator)
        self.register_buffer("target_mean", torch.zeros(config.outputs))
        self.register_buffer("target_std", torch.ones(config.outputs))

    @property
    def shared(self) -> bool:
        """Whether the predictor reads networks of any architecture."""
        return self.config.kind == "relation"

    def _probe_reader(
        self, network: nn.Module | None, probes: Tensor | None, generator: torch.Generator
    ) -> ProbeReader:
        config, evaluate = self.config, _evaluate(self.cnn, network, self.config.inputs)
        if self.cnn is not None and probes is None:
            shape = self.cnn.example_inputs()[0].shape[1:]
            probes = torch.rand(config.probes, *shape, generator=generator) * 2 - 1
        if probes is None:
            raise ValueError(
                "probes is missing, expected learned inputs of shape (P, *input shape) with kind 'probing'"
            )
        zeros = {spec.name: torch.zeros(1, *spec.shape) for spec in self.space.parameters}
        answers = evaluate(zeros, probes, torch.zeros(1, len(config.inputs))).shape[-1]
        return ProbeReader(evaluate, probes.clone(), answers, config.embedding, generator=generator)

    def forward(
        self, params: Mapping[str, Tensor], inputs: Tensor | None = None, space: WeightSpace | None = None
    ) -> Tensor:
        """Raw outputs: logits of scores or classes, standardised values.

        Args:
            params: Weights ``{name: (B, *shape)}``.
            inputs: The numbers beside them that ``config.inputs`` names, shape (B, I).
            space: Their weight space, for kind ``"relation"``; the predictor's own by default.

        Returns:
            Shape (B, outputs).

        Raises:
            ValueError: If weights or inputs do not fit.
        """
        features = self.scaling(params, space)
        batch = len(params[self.space.names[0]]) if space is None else len(params[space.names[0]])
        inputs = self._inputs(inputs, batch)
        reader = self.reader
        parts = [reader(features, space) if isinstance(reader, PooledReader) else reader(features)]
        if self.config.reads_statistics:
            parts.append(self.statistics(features))
        if self.config.reads_spectrum:
            parts.append(self.spectrum(features))
        if self.config.kind == "probing":
            parts.append(self.probing(params, inputs))
        hidden = self.dropout(torch.relu(torch.cat(parts, 1)))
        return self.head(torch.cat([hidden, self.beside(inputs)], 1))

    def _inputs(self, inputs: Tensor | None, batch: int) -> Tensor:
        names = self.config.inputs
        if inputs is None and not names:
            return self.target_mean.new_zeros(batch, 0)
        if inputs is None or tuple(inputs.shape) != (batch, len(names)):
            got = "none" if inputs is None else f"shape {tuple(inputs.shape)}"
            raise ValueError(
                f"inputs has {got}, expected {(batch, len(names))}: for each network {', '.join(names) or 'nothing'}"
            )
        return inputs.to(self.target_mean)

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """What training makes small: binary cross-entropy, cross-entropy, or mean squared error of standardised values.

        Args:
            raw: Raw outputs, shape (B, outputs).
            targets: Shape (B, outputs), or (B,) of a single output or of classes.
        """
        if self.config.target == "class":
            return F.cross_entropy(raw, targets.long())
        targets = self._columns(targets)
        if self.config.target == "score":
            return F.binary_cross_entropy_with_logits(raw, targets)
        return F.mse_loss(raw, (targets - self.target_mean) / self.target_std)

    def _columns(self, targets: Tensor) -> Tensor:
        """Targets as (B, outputs)."""
        targets = targets.reshape(len(targets), -1).to(self.target_mean)
        if targets.shape[1] != self.config.outputs:
            raise ValueError(
                f"the targets have {targets.shape[1]} columns, expected {self.config.outputs}, one for each output"
            )
        return targets

    @torch.no_grad()
    def predict(
        self, params: Mapping[str, Tensor], inputs: Tensor | None = None, space: WeightSpace | None = None
    ) -> Tensor:
        """Predictions in the unit of the target, in evaluation mode.

        Args:
            params: Weights ``{name: (B, *shape)}``, of any B.
            inputs: As in :meth:`forward`.
            space: As in :meth:`forward`.

        Returns:
            Scores in [0, 1] or values, shape (B, outputs); numbers of classes, shape (B,).

        Raises:
            ValueError: As :meth:`forward`, and if the weights of a network are not finite.
        """
        raw = self._raw(params, inputs, space)
        if self.config.target == "class":
            return raw.argmax(1)
        return raw.sigmoid() if self.config.target == "score" else raw * self.target_std + self.target_mean

    @torch.no_grad()
    def probabilities(
        self, params: Mapping[str, Tensor], inputs: Tensor | None = None, space: WeightSpace | None = None
    ) -> Tensor:
        """Probability of every class, shape (B, outputs); arguments as of :meth:`predict`.

        Raises:
            ValueError: If no classes are predicted, and as :meth:`predict`.
        """
        if self.config.target != "class":
            raise ValueError(
                f"target is {self.config.target!r}, expected 'class' for probabilities; use predict"
            )
        return self._raw(params, inputs, space).softmax(1)

    def _raw(self, params: Mapping[str, Tensor], inputs: Tensor | None, space: WeightSpace | None) -> Tensor:
        """Raw outputs in evaluation mode, part by part."""
        failed = int(failed_networks(params).sum())
        if failed:
            raise ValueError(
                f"{failed} of the networks have weights that are not finite, expected finite ones; leave them out"
            )
        training = self.training
        self.eval()
        try:
            device = self.target_mean
            parts = [
                self(
                    {
                        name: value[start : start + NETWORKS_PER_CHUNK].to(device)
                        for name, value in params.items()
                    },
                    None if inputs is None else inputs[start : start + NETWORKS_PER_CHUNK],
                    space,
                )
                for start in range(0, len(next(iter(params.values()))), NETWORKS_PER_CHUNK)
            ]
        finally:
            self.train(training)
        return torch.cat(parts)

    @torch.no_grad()
    def fit(self, groups: Sequence[NetworkGroup]) -> None:
        """Standardise weights, what readers make of them, further inputs and targets; keep the range.

        Args:
            groups: The training networks, those of one architecture in a group.

        Raises:
            ValueError: If scores are not in [0, 1], or classes are not numbers of classes.
        """
        for group in groups:
            self._check_targets(group.targets)
        pairs = [(group.space or self.space, group.params) for group in groups]
        self.scaling.fit(pairs)
        self.range = TrainingRange.of(pairs, shared=self.shared)
        if self.config.inputs:
            rows = [self._inputs(group.inputs, len(group)) for group in groups]
            self.beside.fit(torch.cat(rows))
        if self.config.target == "value":
            targets = torch.cat([self._columns(group.targets) for group in groups])
            self.target_mean.copy_(targets.mean(0))
            self.target_std.copy_(targets.std(0, correction=0).clamp_min(1e-8))
        for module in self.modules():
            if isinstance(module, PooledReader):
                module.standardize.fit(self._pooled(module, groups))

    def _pooled(self, reader: PooledReader, groups: Sequence[NetworkGroup]) -> Tensor:
        """What a reader makes of training networks before its linear map, (N, features)."""
        vectors = []
        for group in groups:
            for start in range(0, len(group), NETWORKS_PER_CHUNK):
                some = {
                    name: value[start : start + NETWORKS_PER_CHUNK].to(self.target_mean)
                    for name, value in group.params.items()
                }
                vectors.append(reader.pooled(self.scaling(some, group.space), group.space))
        return torch.cat(vectors)

    def _check_targets(self, targets: Tensor) -> None:
        if self.config.target == "class":
            if targets.ndim != 1 or targets.min() < 0 or targets.max() >= self.config.outputs:
                raise ValueError(
                    f"targets has shape {tuple(targets.shape)} and values from {targets.min()} to {targets.max()}, "
                    f"expected one class a network, 0 to {self.config.outputs - 1}"
                )
            return
        self._columns(targets)
        if self.config.target == "score" and (targets.min() < 0 or targets.max() > 1):
            raise ValueError(
                f"targets reach from {targets.min():.4g} to {targets.max():.4g}, expected scores from 0 to 1; take "
                "target='value' for other numbers"
            )

    def save(self, path: str | os.PathLike[str], **metadata: Any) -> Path:
        """Write the predictor to one safetensors file.

        Args:
            path: The file.
            metadata: What the file shall say of it, beside ``self.metadata``: command, scores, data; JSON values.

        Raises:
            TypeError: If the metadata are no JSON.
            OSError: If it cannot be written.
        """
        record = {
            "config": dataclasses.asdict(self.config),
            "cnn": None if self.cnn is None else dataclasses.asdict(self.cnn),
            "space": space_record(self.space),
            "probes": list(self.probing.probes.shape) if self.config.kind == "probing" else None,
            "range": None if self.range is None else self.range.limits,
            "metadata": self.metadata | metadata,
        }
        return save_artifact(path, self.state_dict(), kind=KIND, metadata=record)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, network: nn.Module | None = None) -> Predictor:
        """Read a predictor written by :meth:`save`.

        Args:
            path: The file.
            network: For a predictor of kind ``"probing"`` that is not one of small CNNs, a network to run.

        Raises:
            FileNotFoundError: If there is no such file.
            ArtifactError: If the file is damaged or does not hold a predictor.
            ValueError: If the network is missing.
        """
        tensors, record = load_artifact(path, kind=KIND)
        try:
            config = PredictorConfig.from_dict(record["config"])
            cnn = None if record["cnn"] is None else CnnArchitecture(**record["cnn"])
            space = read_space(record["space"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(_damaged(path, error)) from error
        probes = None if record["probes"] is None else torch.zeros(record["probes"])
        predictor = cls(cnn or space, config, network=network, probes=probes)
        try:
            if predictor.space.compare(space).verdict != "equal":
                raise ValueError("its weight space is not that of its architecture")
            predictor.load_state_dict(tensors)
            limits, predictor.metadata = record["range"], record["metadata"]
            predictor.range = None if limits is None else TrainingRange(limits, shared=predictor.shared)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(_damaged(path, error)) from error
        return predictor.eval()

    @classmethod
    def pretrained(cls, name: str) -> Predictor:
        """A predictor that ships with the package.

        Args:
            name: One of :func:`~nfn_opt.predictors.list_predictors`.

        Raises:
            ValueError: If there is none of that name; the message says which there are.
        """
        return cls.load(predictor_path(name))

    def extra_repr(self) -> str:
        """Kind, target and number of outputs."""
        return f"{self.config.kind}, {self.config.target}, {self.config.outputs} outputs"


def _damaged(path: str | os.PathLike[str], error: Exception) -> str:
    return f"{os.fspath(path)} does not hold a valid predictor: {error!r}; train or copy it again"


def _evaluate(cnn: CnnArchitecture | None, network: nn.Module | None, inputs: Sequence[str]) -> Evaluate:
    """How networks are run for probing."""
    if network is not None:
        return evaluate_module(network)
    if cnn is None:
        raise ValueError(
            "network is missing: kind 'probing' runs the networks; give one of them as network=, here or to "
            "Predictor.load"
        )
    if "activation=tanh" not in inputs:
        raise ValueError(
            f"inputs are {', '.join(inputs) or 'none'}, expected 'activation=tanh' among them: kind 'probing' runs "
            "the networks, and their weights do not say which activation they have"
        )
    return evaluate_small_cnn(cnn.stride, inputs.index("activation=tanh"))
