"""How networks that read INRs are given their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from editors.canonical import canonicalize
from editors.inr_set import InrSet
from editors.siren import COORDINATES, Siren, SirenConfig, config_differences
from nfn_opt.weight_space import Features, Symmetry, WeightSpace

__all__ = ["InrReader"]


class InrReader(nn.Module):
    """Weights of INRs as weight features of size one.

    Signs and phases are brought to their representative first (:func:`editors.canonicalize`), and every parameter is
    divided by its root mean square over the INRs of the training. Nothing is rendered, no gradient taken.

    Args:
        siren: Architecture of the INRs.
        symmetry: ``"all"`` (NP) or ``"hidden"`` (HNP).
        canonical: Whether signs and phases are brought to their representative.

    Shapes:
        in: ``{name: (B, *shape)}``; out: ``{name: (B, *shape, 1)}``.

    Example:
        >>> from editors.siren import initial_parameters
        >>> reader = InrReader(SirenConfig())
        >>> reader(initial_parameters(SirenConfig(), 3, torch.Generator().manual_seed(0)))["layers.1.weight"].shape
        torch.Size([3, 32, 32, 1])
    """

    scale: Tensor

    def __init__(self, siren: SirenConfig, symmetry: Symmetry = "hidden", *, canonical: bool = True) -> None:
        super().__init__()
        self.siren, self.canonical = siren, canonical
        self.space = WeightSpace.from_module(Siren(siren), torch.zeros(2, COORDINATES), symmetry=symmetry)
        self.register_buffer("scale", torch.ones(len(self.space.names)))

    @torch.no_grad()
    def standardize(self, inrs: InrSet) -> None:
        """Take the size of every parameter from a training set of INRs.

        Raises:
            ValueError: If there are none, or they are of another architecture.
        """
        self.check(inrs)
        if not len(inrs):
            raise ValueError("there are no INRs to take the sizes of weights from, expected at least 1")
        params = self._seen(inrs.params)
        for i, name in enumerate(self.space.names):
            self.scale[i] = params[name].square().mean().sqrt().clamp_min(1e-6)

    def forward(self, params: Mapping[str, Tensor]) -> Features:
        """Weight features of one channel."""
        seen = self._seen(params)
        return self.space.as_features(
            {name: seen[name] / scale for name, scale in zip(self.space.names, self.scale, strict=True)}
        )

    def check(self, inrs: InrSet) -> None:
        """Refuse INRs of another architecture.

        Raises:
            ValueError: With both architectures.
        """
        differing = config_differences(inrs.config, self.siren)
        if differing:
            raise ValueError(
                f"the INRs have {'; '.join(differing)}, as the network was made for; fit the images again with that "
                "architecture, or train a network for these INRs"
            )

    def _seen(self, params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return canonicalize(params, self.siren)[0] if self.canonical else params
