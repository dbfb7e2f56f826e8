r"""The step size of each tensor in the spectral rule: from where training stands, and from how gradients agree.

All that is read of gradients is free of the units of the loss. Steps are relative to the size that a tensor starts
with, so that a network with other units is trained alike, as long as it starts no larger than PyTorch would make it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.optim.accumulators import Accumulated
from nfn_opt.optim.first_layer import initial_weight
from nfn_opt.optim.layout import Segment
from nfn_opt.optim.scalars import positive
from nfn_opt.weight_space import WeightSpace

GAIN = 10.0
"""Outer parameters that add to a logarithm are multiplied by this, so that noise of 0.01 moves a step by 10 %."""

MILESTONES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Shares of the training around which the schedule can bend."""

UNKNOWN = 0.5
"""Share of the training that is assumed done all along where its length is not known."""

RISE = 50
"""Updates over which the step size rises where the length of the training is not known."""

LARGEST_RATE = 0.1
"""Most that the network moves the logarithm of a step size in one update, beside what the cosine does."""

LOWEST, HIGHEST = -4.0, 2.0
"""Bounds of how far the logarithm of a step size is moved in all."""

USUAL_SIZE, USUAL_FAN_IN, USUAL_DEPTH = 0.06, 100, 3

SHALLOWEST, DEEPEST = 2, 5
"""Numbers of layers between which step sizes depend on it: those that meta-training knows."""

USUAL_SCALE = 3**-0.5
"""Root mean square of PyTorch's initial weights times the root of the fan-in."""

LARGEST_EXCESS = 1.5
"""Bound of the logarithm of what a tensor is larger than usual."""

TINY = 1e-25  # to the power -3/2 it is finite in float32


LARGEST_SIZE = 1e12
"""Sizes of tensors are cut to this, so that step sizes stay finite for all finite tensors."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """All that the step sizes of T tensors read of their entries.

    Attributes:
        gradient: Sum of squares of the gradient, shape (T, 1).
        momentum: Sum of squares of each momentum, which has taken in the gradient, shape (T, M).
        products: Sum of products of the gradient with each momentum, shape (T, M).
        size: Root mean square of the tensor, shape (T,).
    """

    gradient: Tensor
    momentum: Tensor
    products: Tensor
    size: Tensor

    @staticmethod
    def of(means: Accumulated, gradient: Tensor, parameter: Tensor) -> Sums:
        """Those of flat tensors, shape (N,), and of their running means."""
        layout, momentum = means.layout, means.momentum
        squares = torch.cat([(gradient * gradient)[None], momentum * momentum, momentum * gradient])
        sums = torch.stack([part.sum(1) for part in layout.split(squares)])
        M = len(momentum)
        size = torch.stack([root_mean_square(p) for p in layout.split(parameter)])
        square, momenta, products = sums.split([1, M, M], dim=1)
        return Sums(square, momenta, products, size)


@dataclasses.dataclass(frozen=True)
class Agreement:
    r"""How the gradient agrees with the momenta from before it.

    Attributes:
        cosine: Cosine of the angle between gradient and each momentum, shape (T, M) for T tensors. Positive:
            the steps could be longer; near zero: noise; negative: they overshoot.
        ratio: Logarithm of the norm of each momentum over that of the gradient, shape (T, M).
    """

    cosine: Tensor
    ratio: Tensor


def agreement(sums: Sums, decays: Sequence[float]) -> Agreement:
    """Compare gradients with the momenta into which they were just taken, with these decays.

    The momenta from before follow from those after: ``m_before = (m - (1 - d) g) / d``.
    """
    square, squares = sums.gradient, sums.momentum
    d = torch.tensor(decays, dtype=square.dtype, device=square.device)
    cross = (sums.products - (1 - d) * square) / d
    before = (squares - 2 * (1 - d) * sums.products + (1 - d) ** 2 * square) / d**2
    cosine = cross * torch.rsqrt(before.clamp(min=0) + TINY) * torch.rsqrt(square + TINY)
    cosine = torch.where(before > 1e-5 * squares, cosine, 0.0)  # what is left there is rounding
    ratio = 0.5 * (torch.log(squares + TINY) - torch.log(square + TINY))
    return Agreement(cosine.clamp(-1, 1), ratio.clamp(-6, 2))


def fan_in(shape: Sequence[int]) -> int:
    """Number of inputs of each output, by the shape of a weight as stored; a usual one for vectors."""
    return math.prod(shape[1:]) if len(shape) > 1 else USUAL_FAN_IN


@functools.lru_cache(maxsize=256)
def depth(space: WeightSpace) -> int:
    """Number of parameters of a network with two or more axes; at least 1."""
    return max(1, sum(len(spec.shape) > 1 for spec in space.parameters))


def root_mean_square(p: Tensor) -> Tensor:
    """Of all entries, shape ()."""
    return torch.linalg.vector_norm(p) / max(1, p.numel()) ** 0.5


def initial_size(p: Tensor) -> Tensor:
    """Root mean square of a tensor at its start, shape (); that of a usual initialisation if it is zero."""
    usual = 0.5 * fan_in(p.shape) ** -0.5
    found = root_mean_square(p).clamp(max=LARGEST_SIZE)
    return torch.where(found > 1e-3 * usual, found, usual)


class StepControl(nn.Module):
    r"""The root mean square that the update of each tensor has.

    .. math::
        \alpha_i(t) = \alpha_k \, (s_i / 0.06)^{\beta_k} \, (f_i / 100)^{-\gamma_k} \, (L / 3)^{-\nu_k} \,
        x_i^{-\xi_k} \, h_k(t / T) \, e^{c(z_i) + l_i(t)}
        \qquad l_i(t) = l_i(t - 1) + \kappa \, (\bar c_i - \tau) + r(z_i)

    with the kind :math:`k` of tensor (two or more axes, or fewer), the root mean square :math:`s_i` of the tensor at
    its start, its fan-in :math:`f_i`, the number :math:`L` of tensors of the network with two or more axes, from 2
    up to 5, and the excess :math:`x_i = \max(1, s_i \sqrt{3 f_i})`, up to 4.5: how much larger the tensor starts than
    PyTorch would make it. The more layers move at once, the more each step changes the output (arXiv:2405.14813).

    A small network with outputs :math:`c, r` sees the agreement between gradient and momenta, :math:`s_i`, the growth
    of the tensor since, :math:`k` and the time. The sum :math:`l_i` finds a step size that nothing known at the start
    gives: it grows while the mean cosine :math:`\bar c_i` of gradient and first momentum is above :math:`\tau`, and
    falls while steps overshoot; it stays in [-4, 2]. The schedule is

    .. math:: h_k(\tau) = \min(1, \tau / w) \, (1 - \tau)^{\rho_k} \, \exp \sum_j \eta_{kj} \tanh(10 (\tau - \tau_j))

    Where the length :math:`T` of the training is not known, :math:`\tau` is one half and the step size rises over
    the first 50 updates.

    Args:
        start: Initial :math:`\alpha_k`, of matrices and of vectors.
        rate: Initial :math:`\kappa`.
        target: Initial :math:`\tau`.
        warmup: Initial :math:`w`.
        width_exponent: Initial :math:`\gamma_k`.
        size_exponent: Initial :math:`\beta_k`.
        depth_exponent: Initial :math:`\nu_k`.
        excess_exponent: Initial :math:`\xi_k`.
        momenta: Number of momenta.
        hidden: Width of the hidden layer of :math:`c` and :math:`r`; 0 for none, which are 0 then.
        generator: Source of its initial weights.
    """

    def __init__(
        self,
        *,
        start: tuple[float, float],
        rate: float,
        target: float,
        warmup: float,
        width_exponent: float,
        size_exponent: float,
        depth_exponent: float,
        excess_exponent: float,
        momenta: int,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.start, self.rate_start, self.warmup_start = start, rate, warmup
        self.log_lr = nn.Parameter(torch.zeros(2))
        self.width = nn.Parameter(torch.full((2,), width_exponent / GAIN))
        self.size = nn.Parameter(torch.full((2,), size_exponent / GAIN))
        self.depth = nn.Parameter(torch.full((2,), depth_exponent / GAIN))
        self.excess = nn.Parameter(torch.full((2,), excess_exponent / GAIN))
        self.rate = nn.Parameter(torch.zeros(()))
        self.target = nn.Parameter(torch.tensor(target))
        self.decay = nn.Parameter(torch.zeros(2))
        self.warmup = nn.Parameter(torch.zeros(()))
        self.schedule = nn.Parameter(torch.zeros(2, len(MILESTONES)))
        self.hidden = hidden
        if hidden:
            self.weight = initial_weight(hidden, 2 * momenta + 3 + len(MILESTONES), generator)
            self.bias = nn.Parameter(torch.zeros(hidden))
            self.out = initial_weight(2, hidden, generator, 0.01)

    def forward(
        self,
        segments: Sequence[Segment],
        now: Tensor,
        initial: Tensor,
        found: Agreement,
        moved: Tensor,
        step: Tensor,
        total_steps: Tensor | None,
        layers: int,
    ) -> tuple[Tensor, Tensor]:
        """Step sizes, shape (T,), and :math:`l_i`, shape (T,).

        Args:
            segments: T tensors.
            now: Their root mean squares, shape (T,).
            initial: Those at the start, shape (T,).
            found: How gradient and momenta agree.
            moved: :math:`l_i` before, shape (T,).
            step: Number of updates made, shape ().
            total_steps: Number of updates of the training, shape (), where known.
            layers: :math:`L`, see :func:`depth`.
        """
        kinds = torch.tensor([segment.kind for segment in segments], device=now.device)
        widths = now.new_tensor([math.log(fan_in(segment.spec.shape) / USUAL_FAN_IN) for segment in segments])
        growth = (torch.log(now + TINY) - torch.log(initial)).clamp(-2, 4)
        size = torch.log(initial / USUAL_SIZE)
        progress, rise = self._time(step, total_steps, now.dtype)
        bends = torch.tanh(10 * (progress - now.new_tensor(MILESTONES)))
        known = torch.stack([kinds.to(size), 0.3 * size, growth], dim=1)
        z = torch.cat([found.cosine, 0.3 * found.ratio, known, bends.expand(len(segments), -1)], dim=1)
        shared = self._schedule(progress, bends)
        scale = size + 0.5 * widths + math.log(USUAL_SIZE * USUAL_FAN_IN**0.5 / USUAL_SCALE)
        excess = self.excess[kinds] * scale.clamp(0, LARGEST_EXCESS)
        layered = self.depth[kinds] * math.log(min(max(layers, SHALLOWEST), DEEPEST) / USUAL_DEPTH)
        own = self.size[kinds] * size - self.width[kinds] * widths - layered - excess
        factor, rate = self._control(z)
        pull = positive(self.rate_start, GAIN * self.rate) * (found.cosine[:, 0] - self.target)
        moved = (moved + pull + rate).clamp(LOWEST, HIGHEST)
        return rise * torch.exp(shared[kinds] + GAIN * own + factor + moved), moved

    def _time(self, step: Tensor, total_steps: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Share of the training done, and the rise of the step size at its beginning."""
        t = step.to(dtype)
        if total_steps is None:
            return torch.full_like(t, UNKNOWN), torch.clamp((t + 1) / RISE, max=1)
        total = total_steps.to(dtype).clamp(min=1)
        updates = (self.warmup_start * torch.exp(GAIN * self.warmup) * total).clamp(min=1)
        return (t / total).clamp(max=1), torch.clamp((t + 1) / updates, max=1)

    def _schedule(self, progress: Tensor, bends: Tensor) -> Tensor:
        """Logarithm of the step size of each kind, shape (2,)."""
        start = torch.log(torch.tensor(self.start, dtype=progress.dtype, device=progress.device))
        fall = torch.exp(GAIN * self.decay) * torch.log((1 - progress).clamp(min=1e-3))
        return start + fall + GAIN * (self.log_lr + self.schedule @ bends / len(MILESTONES))

    def _control(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What each tensor gets for itself: a logarithm within 2 of 0, and how fast to move on, shape (T,) each."""
        if not self.hidden:
            return torch.zeros_like(z[:, 0]), torch.zeros_like(z[:, 0])
        hidden = torch.relu(F.linear(z, self.weight, self.bias))
        factor, rate = torch.tanh(GAIN * F.linear(hidden, self.out) / 2).unbind(1)
        return 2 * factor, LARGEST_RATE * rate
