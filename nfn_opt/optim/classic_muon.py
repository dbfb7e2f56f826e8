"""Muon as an update rule."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nfn_opt.optim.classic_base import (
    Memory,
    MomentConfig,
    MomentRule,
    accumulate_moments,
    adam_direction,
    check_range,
)
from nfn_opt.optim.orthogonal import orthogonalise
from nfn_opt.optim.rule import register_rule
from nfn_opt.optim.scalars import decay
from nfn_opt.weight_space import WeightSpace

Adjustment = Literal["original", "match_rms_adamw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig(MomentConfig):
    """Initial values of :class:`MuonRule`: those of :class:`MomentConfig`, the decays being AdamW's, and more.

    Attributes:
        momentum: Decay of the mean of gradients of matrices.
        nesterov: Whether to look ahead along the momentum.
        weight_decay: Decoupled weight decay, of all tensors; not learned.
        adjustment: How the step of a matrix depends on its shape: ``"original"``, the root of its rows over
            its columns where there are more rows; ``"match_rms_adamw"``, such that its entries move about as
            far as with AdamW (arXiv:2502.16982), so that one ``lr`` serves both.
        bfloat16: Whether matrices are orthogonalised in bfloat16, as torch does, or in their own type.
        exclude: Patterns of the names of matrices that AdamW trains, such as ``"*embedding*"``.
        adamw_ratio: Step size of AdamW over ``lr``.
    """

    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    adjustment: Adjustment = "match_rms_adamw"
    bfloat16: bool = False
    exclude: tuple[str, ...] = ()
    adamw_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_decay", "adamw_ratio"):
            check_range(name, getattr(self, name))
        check_range("momentum", self.momentum, 0.0, 1.0)
        if self.adjustment not in get_args(Adjustment):
            raise ValueError(
                f"adjustment is {self.adjustment!r}, expected one of {', '.join(get_args(Adjustment))}"
            )
        object.__setattr__(self, "exclude", tuple(self.exclude))


@register_rule
class MuonRule(MomentRule):
    r"""Muon, as :class:`torch.optim.Muon`, for matrices, and AdamW for the rest, with learnable step and decays.

    .. math::
        m_{t+1} = \mu m_t + (1 - \mu) g_t \qquad
        u_t = -\alpha \, (c \, \mathrm{orthogonalise}(\mu m_{t+1} + (1 - \mu) g_t) + \lambda p_t)

    with :math:`c` after the shape of the matrix. A tensor of more than two axes, such as the kernel of a
    convolution, is a matrix of its first axis and all others; a vector is trained by AdamW.
    """

    kind: ClassVar[str] = "muon"
    config_class = MuonConfig
    config: MuonConfig

    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Offsets of zero: the rule starts exactly at its configuration."""
        super().reset(generator, space)
        self.momentum = nn.Parameter(torch.zeros(()))

    def orthogonalised(self, name: str, param: Tensor) -> bool:
        """Whether a tensor is treated as a matrix."""
        return param.dim() >= 2 and not any(fnmatch.fnmatch(name, p) for p in self.config.exclude)

    def init_tensor(self, name: str, param: Tensor) -> Memory:
        """A momentum, or moments and a step count, of zero."""
        if self.orthogonalised(name, param):
            return {"momentum": torch.zeros_like(param)}
        return super().init_tensor(name, param)

    def update_tensor(self, name: str, param: Tensor, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """See :class:`PerTensorRule`."""
        alpha = self.alpha(grad.dtype)
        if self.orthogonalised(name, param):
            direction, memory = self._matrix(grad, memory)
        else:
            direction, memory = self._rest(grad, memory)
            alpha = self.config.adamw_ratio * alpha
        return -alpha * (direction + self.config.weight_decay * param), memory

    def _matrix(self, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        config = self.config
        mu = decay(config.momentum, self.momentum).to(grad.dtype)
        mean = mu * memory["momentum"] + (1 - mu) * grad
        matrix = (mu * mean + (1 - mu) * grad if config.nesterov else mean).flatten(1)
        orthogonal = orthogonalise(matrix, dtype=torch.bfloat16 if config.bfloat16 else None)
        return self._factor(*matrix.shape) * orthogonal.reshape(grad.shape), {"momentum": mean}

    def _factor(self, rows: int, columns: int) -> float:
        if self.config.adjustment == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def _rest(self, grad: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        beta1, beta2 = self.betas(grad.dtype)
        memory = accumulate_moments(memory, grad, beta1, beta2)
        return adam_direction(memory, beta1, beta2, self.config.eps), memory
