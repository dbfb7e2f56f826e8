"""Inner problems that meta-training goes through piece by piece, whatever the estimator of the gradient."""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
from torch import Tensor

from nfn_opt.meta.carry import Carry
from nfn_opt.meta.reparametrization import MixedReparametrization, Reparametrization
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.meta.trees import tree_map
from nfn_opt.meta.unroll import init_state
from nfn_opt.optim.rule import UpdateRule


class MetaGradient(abc.ABC):
    """An estimator of the gradient of the meta-loss with respect to the parameters of a rule.

    It advances a set of inner problems, the *carry*, and adds the gradient to ``parameter.grad``.
    """

    @abc.abstractmethod
    def start(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        """Draw the first inner problems."""

    @abc.abstractmethod
    def step(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator
    ) -> tuple[Tensor, Carry]:
        """Advance the inner problems and accumulate the gradient of the meta-loss.

        Inner problems that stop being finite are left out of meta-loss and gradient, counted in
        ``carry.dropped`` and drawn anew.

        Args:
            rule: The update rule; the gradient is added to the ``grad`` of its parameters.
            task: What it is trained on.
            carry: The inner problems, from :meth:`start` or the last step.
            generator: Source of randomness.

        Returns:
            The meta-loss, 0-d and detached, and the inner problems after this step. If no inner problem was
            finite the meta-loss is NaN and there is no gradient.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces(MetaGradient):
    """Inner problems of random length, of which every outer step trains a piece.

    An inner problem that has reached its horizon is drawn anew.

    Attributes:
        tasks: Number of inner problems trained at once, n.
        truncation: Updates in one piece, K.
        shortest_truncation: If given, the length of each piece is random between this and ``truncation``, its
            logarithm uniform. An inner problem then ends with the piece in which it reaches its horizon.
        horizon: Updates of one inner problem; a multiple of ``truncation`` if all pieces are of one length.
        shortest_horizon: If given, horizons are random between this and ``horizon``, their logarithm uniform,
            rounded up to a multiple of ``truncation``.
        stagger: Spread the inner problems over all stages of training, by ending the first ones early:
            problem i of n first ends at the fraction (i + 1) / n of its horizon.
        reparametrization: Random change of units of each inner problem.
        sensitivity: If given, each network reacts more or less strongly to updates, by a random factor s between
            these two, its logarithm uniform: it is evaluated at :math:`w_0 + s (w - w_0)` with the initial
            weights :math:`w_0`. A rule that is trained so has to find the step size that suits a problem.
    """

    tasks: int = 8
    truncation: int = 20
    shortest_truncation: int | None = None
    horizon: int = 100
    shortest_horizon: int | None = None
    stagger: bool = True
    reparametrization: Reparametrization | MixedReparametrization | None = None
    sensitivity: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.truncation < 1:
            raise ValueError(
                f"tasks and truncation must be at least 1, got {self.tasks} and {self.truncation}"
            )
        aligned = self.shortest_truncation is None
        if self.horizon < self.truncation or (aligned and self.horizon % self.truncation):
            raise ValueError(
                f"horizon is {self.horizon}, expected a positive multiple of the truncation, "
                f"{self.truncation}; inner problems end at the end of a piece"
            )
        if self.sensitivity is not None and not 0 < self.sensitivity[0] <= self.sensitivity[1]:
            raise ValueError(f"sensitivity is {self.sensitivity}, expected two factors, 0 < least <= largest")
        for name, most in (("shortest_horizon", self.horizon), ("shortest_truncation", self.truncation)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ValueError(
                    f"{name} is {value}, expected from 1 to the {name.removeprefix('shortest_')}, {most}"
                )

    def start(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        """See :class:`MetaGradient`."""
        carry = self.fresh(rule, task, generator)
        if not self.stagger:
            return carry
        part = (torch.arange(self.tasks, device=carry.horizon.device) + 1) / self.tasks
        copies = len(carry.horizon) // self.tasks
        return dataclasses.replace(carry, horizon=self._in_pieces(part.repeat(copies) * carry.horizon))

    @torch.no_grad()
    def fresh(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        """Draw inner problems at their start."""
        weights = task.init(generator, self.tasks)
        scale = self.reparametrization.sample(generator, weights) if self.reparametrization else {}
        params = {name: w / scale[name] if scale else w for name, w in weights.items()}
        scale, shift = self._sensitive(generator, weights, scale)
        device = next(iter(params.values())).device
        return Carry(
            params=params,
            state=tree_map(torch.clone, init_state(rule, task, params)),
            step=torch.zeros(self.tasks, dtype=torch.int64, device=device),
            horizon=self._horizons(generator).to(device),
            scale=scale,
            shift=shift,
        )

    def _sensitive(self, generator: torch.Generator, weights: Params, scale: Params) -> tuple[Params, Params]:
        """Scale and shift of networks that react to updates by a random factor more."""
        if self.sensitivity is None:
            return scale, {}
        low, high = self.sensitivity
        factors = _log_uniform(generator, (self.tasks,), low, high)
        scales, shifts = {}, {}
        for name, w in weights.items():
            factor = factors.to(w.device, w.dtype).reshape(-1, *(1,) * (w.dim() - 1))
            scales[name] = factor * scale[name] if scale else factor
            shifts[name] = (1 - factor) * w
        return scales, shifts

    def piece(self, generator: torch.Generator) -> int:
        """Draw the length of a piece."""
        if self.shortest_truncation is None:
            return self.truncation
        return int(_log_uniform(generator, (), self.shortest_truncation, self.truncation + 1))

    def succeed(
        self, rule: UpdateRule, task: Task, after: Carry, finite: Tensor, generator: torch.Generator
    ) -> Carry:
        """Draw those inner problems anew that are finished, or not ``finite``; bool, one for each problem."""
        finished = finite & (after.step >= after.horizon)
        ended = finished | ~finite
        if not bool(ended.any()):
            return after
        after = after.replaced(ended, self.fresh(rule, task, generator))
        counted = slice(self.tasks)  # each problem once, even if it is trained in two versions
        return dataclasses.replace(
            after,
            finished=after.finished + finished[counted].sum().to(after.finished.device),
            dropped=after.dropped + (~finite[counted]).sum().to(after.dropped.device),
        )

    def _horizons(self, generator: torch.Generator) -> Tensor:
        if self.shortest_horizon is None:
            return torch.full((self.tasks,), self.horizon, dtype=torch.int64)
        drawn = _log_uniform(generator, (self.tasks,), self.shortest_horizon, self.horizon)
        return self._in_pieces(drawn).clamp(max=self.horizon)

    def _in_pieces(self, steps: Tensor) -> Tensor:
        """Round up to a multiple of the truncation, if pieces have one length."""
        unit = self.truncation if self.shortest_truncation is None else 1
        return (torch.ceil(steps / unit) * unit).to(torch.int64)


def finite_problems(losses: Tensor, after: Carry) -> Tensor:
    """Which inner problems have finite losses, shape (steps, n), and parameters; bool (n,)."""
    finite = torch.isfinite(losses.detach()).all(0)
    for p in after.params.values():
        finite = finite & torch.isfinite(p).flatten(1).all(1)
    return finite


def _log_uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
