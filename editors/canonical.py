r"""The symmetries of a SIREN beside permutations: signs and phases of its neurons.

A hidden neuron computes :math:`\sin(\omega (w \cdot h + b))` and the next layer reads it with the column :math:`v`.
Because the sine is odd and of period :math:`2 \pi`, the network stays the same function under

.. math::
    (w, b, v) \to (-w, -b, -v) \qquad (w, b, v) \to (w, b - k \pi / \omega, (-1)^k v), \; k \in \mathbb Z

so that each neuron has one representative with :math:`|b| \le \pi / (2 \omega)` and a sign that a convention picks;
fits from random starts are spread over all others. (Phase and sign canonicalisation as in arXiv:2406.10685; the
conventions are this package's.) What is chosen for a neuron depends on its own weights and on sums over its
neighbours, so it commutes with permutations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from editors.siren import SirenConfig

__all__ = ["Signs", "canonicalize"]


@dataclasses.dataclass(frozen=True)
class Signs:
    """How parameters were negated; see :func:`canonicalize`.

    Attributes:
        rows: For each hidden layer what its neurons' weights and biases were multiplied with, +1 or -1, (B, n).
        columns: For each hidden layer what the columns that read its neurons were multiplied with, likewise.
    """

    rows: list[Tensor]
    columns: list[Tensor]

    def apply(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Negate parameters, or changes of parameters; twice is nothing.

        Args:
            params: ``{name: (B, *shape)}`` as those of a SIREN.
        """
        signed = dict(params)
        for layer, (row, column) in enumerate(zip(self.rows, self.columns, strict=True)):
            weight, bias, reading = (
                f"layers.{layer}.weight",
                f"layers.{layer}.bias",
                f"layers.{layer + 1}.weight",
            )
            signed[weight] = signed[weight] * row.unsqueeze(2)
            signed[bias] = signed[bias] * row
            signed[reading] = signed[reading] * column.unsqueeze(1)
        return signed


def canonicalize(params: Mapping[str, Tensor], config: SirenConfig) -> tuple[dict[str, Tensor], Signs]:
    r"""The representative of each SIREN among those that differ from it by signs and phases.

    Biases of hidden neurons then lie in :math:`[-\pi / 2 \omega, \pi / 2 \omega]`. Neurons of the first layer have a
    first weight of at least 0, those of later ones read by columns whose sum is.

    Args:
        params: ``{name: (B, *shape)}``.
        config: Architecture.

    Returns:
        Parameters of the same functions, and the signs: a change of these parameters, ``signs.apply(change)``, is the
        change of the given ones that makes of them the same functions.

    Example:
        >>> from editors.siren import coordinates, initial_parameters, siren_apply
        >>> config, grid = SirenConfig(), coordinates(8, 8)
        >>> params = initial_parameters(config, 2, torch.Generator().manual_seed(0))
        >>> same, _ = canonicalize(params, config)
        >>> torch.allclose(siren_apply(same, grid, config), siren_apply(params, grid, config), atol=1e-4)
        True
    """
    found, period, signs = dict(params), math.pi / config.omega_0, Signs([], [])
    # From the back: the sign of a neuron is found from the rows that read it, whose own signs have to be settled.
    for layer in reversed(range(config.hidden_layers)):
        weight, bias, reading = f"layers.{layer}.weight", f"layers.{layer}.bias", f"layers.{layer + 1}.weight"
        turns = torch.round(found[bias] / period)
        phase = 1 - 2 * turns.remainder(2)
        column = found[reading] * phase.unsqueeze(1)
        side = found[weight][..., 0] if layer == 0 else column.sum(1)
        sign = torch.where(side < 0, -1.0, 1.0).to(phase)
        found[bias] = (found[bias] - turns * period) * sign
        found[weight] = found[weight] * sign.unsqueeze(2)
        found[reading] = column * sign.unsqueeze(1)
        signs.rows.insert(0, sign)
        signs.columns.insert(0, phase * sign)
    return found, signs
