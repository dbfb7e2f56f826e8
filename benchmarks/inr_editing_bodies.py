"""Editors that :mod:`benchmarks.inr_editing` compares: the peer's, and those of this package beside the default."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from editors import Editor, EditorConfig, InrSet, coordinates
from editors.editor import STATISTICS_FROM
from editors.editor_config import WEIGHTS_ONLY
from editors.guide import pull_back, render_for_gradient
from nfn_opt.functionals import EquivariantFunctional
from nfn_opt.weight_space import Symmetry

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package uses names that newer libraries have deprecated
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import (
        GaussianFourierFeatureTransform,
        IOSinusoidalEncoding,
        LearnedScale,
        NPLinear,
        TupleOp,
    )

Params = Mapping[str, Tensor]

DEFAULT = "default"
"""Name of the editor that users get."""


class Reference(nn.Module):
    """The NP editor of the ``nfn`` package.

    Args:
        inrs: Some of the INRs.
    """

    def __init__(self, inrs: InrSet) -> None:
        super().__init__()
        self.layers = inrs.config.hidden_layers + 1
        spec = network_spec_from_wsfeat(self._features(inrs[:1].params), set_all_dims=True)
        fourier, position = GaussianFourierFeatureTransform(spec, 1, 128, scale=3), IOSinusoidalEncoding(spec)
        sizes = [position.num_out_chan(fourier.out_channels), 128, 128, 128]
        hidden: list[nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            hidden += [NPLinear(spec, into, out), TupleOp(nn.ReLU())]
        self.network = nn.Sequential(
            fourier, position, *hidden, NPLinear(spec, 128, 1), LearnedScale(spec, 0.01)
        )

    def edit_params(self, params: Params) -> dict[str, Tensor]:
        """The edited weights."""
        change, edited = self.network(self._features(params)), {}
        for i in range(self.layers):
            for kind, values in (("weight", change.weights[i]), ("bias", change.biases[i])):
                edited[f"layers.{i}.{kind}"] = params[f"layers.{i}.{kind}"] + values.squeeze(1)
        return edited

    def _features(self, params: Params) -> Any:
        return WeightSpaceFeatures(
            *(
                [params[f"layers.{i}.{kind}"].unsqueeze(1) for i in range(self.layers)]
                for kind in ("weight", "bias")
            )
        )


class FlatEditor(Editor):
    """An MLP on all weights in a row, which knows no symmetry: the baseline of arXiv:2302.14040 (App. C.2)."""

    def __init__(self, config: EditorConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator=generator)
        numel = sum(spec.numel for spec in self.space.parameters)
        sizes = (numel, 1000, 1000, 1000)
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            layers += [nn.Linear(into, out), nn.ReLU()]
        self.bodies[0] = Flat(nn.Sequential(*layers, nn.Linear(1000, numel)))


class Flat(nn.Module):
    """Weight features of one channel through a network of vectors."""

    def __init__(self, network: nn.Module, scale: float = 0.01) -> None:
        super().__init__()
        self.network, self.scale = network, nn.Parameter(torch.tensor(scale))

    def forward(self, features: Params) -> dict[str, Tensor]:
        """See :class:`~nfn_opt.functionals.EquivariantFunctional`."""
        flat = torch.cat([value.flatten(1) for value in features.values()], 1)
        parts = (self.scale * self.network(flat)).split([value[0].numel() for value in features.values()], 1)
        return {
            name: part.view_as(value) for (name, value), part in zip(features.items(), parts, strict=True)
        }


class SampledGradients(Editor):
    """The INR's gradients at the points of a fixed grid as further channels, one each, beside the weights.

    After arXiv:2507.01649, which takes 64 points.
    """

    coords: Tensor
    size: Tensor

    def __init__(
        self, config: EditorConfig, *, side: int = 8, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, generator=generator)
        channels = config.siren.out_channels
        body = dataclasses.replace(config.body, in_channels=1 + side**2 * channels)
        self.bodies[0] = EquivariantFunctional(self.space, body, generator=generator)
        self.register_buffer("coords", coordinates(side, side))
        self.register_buffer("size", torch.ones(len(self.space.names)))

    @torch.no_grad()
    def standardize(self, inrs: InrSet) -> None:
        """See :class:`~editors.Editor`."""
        super().standardize(inrs)
        gradients = self._gradients(self._seen(inrs[:STATISTICS_FROM].params)[0])
        for i, name in enumerate(self.space.names):
            sizes = [(self.std[i] * gradient[name]).square().mean() for gradient in gradients]
            self.size[i] = torch.stack(sizes).mean().sqrt()

    def change(self, params: Params, condition: Tensor | None = None) -> dict[str, Tensor]:
        """See :class:`~editors.Editor`."""
        seen, signs = self._seen(params)
        places = range(len(self.space.names))
        names = dict(zip(places, self.space.names, strict=True))
        values = {names[i]: (seen[names[i]] - self.mean[i]) / self.std[i] for i in places}
        scaled = [
            {names[i]: gradient[names[i]] * (self.std[i] / self.size[i]) for i in places}
            for gradient in self._gradients(seen)
        ]
        raw = self.space.from_features(self.bodies[0](self.space.as_features(values, *scaled)))
        return signs.apply({names[i]: raw[names[i]] * self.std[i] for i in places})

    def _gradients(self, params: Params) -> list[dict[str, Tensor]]:
        """The gradient of every channel's value at every point."""
        rendering = render_for_gradient(params, self.coords, self.config.siren)
        values = rendering.values
        numel = values[0].numel()
        ones = torch.eye(numel, dtype=values.dtype, device=values.device).view(numel, *values.shape[1:])
        return [pull_back(params, rendering, one.expand_as(values)) for one in ones]


def bodies(config: EditorConfig) -> dict[str, Callable[[torch.Generator], Editor]]:
    """The default editor; it with one option changed; then those that read weights only."""

    def of(**options: Any) -> Callable[[torch.Generator], Editor]:
        return lambda generator: Editor(dataclasses.replace(config, **options), generator=generator)

    def weights_only(**options: Any) -> EditorConfig:
        body = dataclasses.replace(WEIGHTS_ONLY["body"], **options)
        return dataclasses.replace(config, **{**WEIGHTS_ONLY, "body": body})

    def reading(
        kind: type[Editor] = Editor,
        symmetry: Symmetry = "all",
        canonical: bool = True,
        outputs: int = 1,
        **options: Any,
    ) -> Callable[[torch.Generator], Editor]:
        made = weights_only(**options)
        made = dataclasses.replace(made, symmetry=symmetry, canonical=canonical, outputs=outputs)
        return lambda generator: kind(made, generator=generator)

    return {
        DEFAULT: of(),
        "one refinement": of(refinements=1),
        "two refinements": of(refinements=2),
        "signs and phases as fitted": of(canonical=False),
        "16 channels": of(body=dataclasses.replace(config.body, hidden_channels=16)),
        "pointwise functional": of(body=dataclasses.replace(config.body, mixing="pointwise")),
        "two outputs": of(outputs=2),
        "weights only": reading(),
        "weights only, two outputs": reading(outputs=2),
        "weights only, four outputs": reading(outputs=4),
        "weights only, signs and phases as fitted": reading(canonical=False),
        "weights only, no Fourier features": reading(fourier_frequencies=0),
        "weights only, five residual layers": reading(hidden_layers=5, residual=True),
        "weights only, HNP": reading(symmetry="hidden"),
        "weights only, NF-Transformer": reading(mixing="attention", norm=False),
        "weights only, pointwise": reading(mixing="pointwise"),
        "weights only, flat MLP": reading(FlatEditor),
        "gradients at 64 points": reading(SampledGradients, fourier_frequencies=0),
    }
