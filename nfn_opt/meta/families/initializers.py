"""Random initial parameters of other distributions and scales than PyTorch's."""

from __future__ import annotations

import dataclasses
from math import prod, sqrt
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nfn_opt.meta.initialization import default_init

InitKind = Literal[
    "default", "lecun_normal", "he_normal", "glorot_uniform", "orthogonal", "gpt", "siren", "irnn"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initializer:
    r"""How a network's parameters start.

    Every kind begins with PyTorch's defaults and then draws the weights (parameters of layers with two axes or
    more) anew:

    * ``"default"``: not at all;
    * ``"lecun_normal"``, ``"he_normal"``: normal with variance :math:`1 / \text{fan in}` or :math:`2 / \text{fan in}`;
    * ``"glorot_uniform"``: uniform with variance :math:`2 / (\text{fan in} + \text{fan out})`;
    * ``"orthogonal"``: a random matrix, fan out by fan in, with orthonormal rows or columns;
    * ``"gpt"``: normal with deviation 0.02, biases zero;
    * ``"siren"``: the first layer uniform in :math:`\pm 1 / \text{fan in}`, later ones in
      :math:`\pm \sqrt{6 / \text{fan in}} / \omega` (arXiv:2006.09661);
    * ``"irnn"``: recurrent matrices are the identity, their biases zero (arXiv:1504.00941).

    Attributes:
        kind: One of these.
        scale: Factor on all weights; biases and normalisations keep theirs.
        omega: Frequency of a SIREN.

    Example:
        >>> initializer = Initializer(kind="orthogonal", scale=2.0)
        >>> params = initializer(nn.Linear(3, 3), torch.Generator().manual_seed(0), 5)
        >>> square = params["weight"] @ params["weight"].mT
        >>> bool((square - 4 * torch.eye(3)).abs().max() < 1e-5)
        True
    """

    kind: InitKind = "default"
    scale: float = 1.0
    omega: float = 30.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(InitKind):
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(get_args(InitKind))}")
        if not (self.scale > 0 and self.omega > 0):
            raise ValueError(f"scale and omega are {self.scale} and {self.omega}, expected positive numbers")

    def __call__(
        self,
        network: nn.Module,
        generator: torch.Generator,
        n: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Draw the parameters of ``n`` networks, ``{name: (n, *shape)}``; arguments as of `default_init`."""
        params = default_init(network, generator, n, dtype=dtype)
        weights = [name for name, p in params.items() if p.dim() > 2]
        for depth, name in enumerate(weights):
            params[name] = self._weight(name, params[name], depth == 0, generator) * self.scale
        if self.kind in ("gpt", "irnn"):
            touched = "bias" if self.kind == "gpt" else "bias_hh_l0"
            for name, p in params.items():
                if name.endswith(touched):
                    params[name] = torch.zeros_like(p)
        return {name: p.to(device) for name, p in params.items()}

    def _weight(self, name: str, old: Tensor, first: bool, generator: torch.Generator) -> Tensor:
        """A new weight of the shape of the old one (n, fan out, ...), before the scale."""
        fan_in, fan_out = prod(old.shape[2:]), old.shape[1]

        def uniform(bound: float) -> Tensor:
            return (2 * torch.rand(old.shape, generator=generator, dtype=old.dtype) - 1) * bound

        def normal(deviation: float) -> Tensor:
            return torch.randn(old.shape, generator=generator, dtype=old.dtype) * deviation

        if self.kind == "lecun_normal":
            return normal(sqrt(1 / fan_in))
        if self.kind == "he_normal":
            return normal(sqrt(2 / fan_in))
        if self.kind == "glorot_uniform":
            return uniform(sqrt(6 / (fan_in + fan_out)))
        if self.kind == "orthogonal":
            return _orthogonal(normal(1.0).flatten(2)).view(old.shape)
        if self.kind == "gpt":
            return normal(0.02)
        if self.kind == "siren":
            return uniform(1 / fan_in if first else sqrt(6 / fan_in) / self.omega)
        if self.kind == "irnn" and name.endswith("weight_hh_l0"):
            return torch.eye(fan_out, dtype=old.dtype).expand(old.shape)
        return old


def _orthogonal(normal: Tensor) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer; uniformly distributed, as the signs are fixed."""
    tall = normal if normal.shape[1] >= normal.shape[2] else normal.mT
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    return (q if q.shape == normal.shape else q.mT).contiguous()
