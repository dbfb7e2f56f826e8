"""Obtaining the outer gradient by evolution strategies, without differentiating through the inner training."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from nfn_opt.meta.carry import Carry
from nfn_opt.meta.objective import Objective
from nfn_opt.meta.pieces import Pieces, finite_problems
from nfn_opt.meta.stepper import InnerStep
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.meta.trees import map_data, tree_map
from nfn_opt.optim.rule import UpdateRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class AntitheticES(Pieces):
    r"""Evolution strategies with pairs of opposite perturbations.

    Every inner problem is trained twice, with the outer parameters :math:`\theta + \epsilon_i` and
    :math:`\theta - \epsilon_i`, from the same start and on the same minibatches. With their meta-losses
    :math:`L_i^\pm` over a piece, see :class:`Objective`, and :math:`\xi_i` what a subclass takes for the cause
    of their difference,

    .. math:: \hat g = \frac{1}{n} \sum_i \frac{L_i^+ - L_i^-}{2 \sigma^2} \, \xi_i, \qquad
        \epsilon_i \sim \mathcal N(0, \sigma^2)

    The losses are those before each update, on the minibatch that it is made from. A problem one version of
    which is not finite is left out and drawn anew, both versions.

    Attributes:
        sigma: Standard deviation of the perturbations.
        objective: How losses become one number.
        compiled: Whether to compile the inner step, see :class:`InnerStep`.
    """

    sigma: float = 0.01
    objective: Objective = dataclasses.field(default_factory=Objective)
    compiled: bool = False
    _steps: dict[tuple[int, int], InnerStep] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}, expected a positive standard deviation, such as 0.01")

    @abc.abstractmethod
    def cause(self, noise: Params, carry: Carry) -> Params:
        """What the difference of the two versions is put down to, ``{name: (n, *shape)}``.

        Args:
            noise: The perturbations of this piece.
            carry: The inner problems before it.
        """

    def fresh(self, rule: UpdateRule, task: Task, generator: torch.Generator) -> Carry:
        """Draw inner problems, both versions of each the same: first all of one sign, then all of the other."""
        carry = super().fresh(rule, task, generator)
        initial = torch.full((self.tasks,), torch.nan, device=carry.step.device)
        past = {
            name: torch.zeros((self.tasks, *p.shape), dtype=p.dtype, device=p.device)
            for name, p in _trained(rule)
        }
        carry = dataclasses.replace(carry, extra={"initial_loss": initial, "past_noise": past})
        return carry.repeated(2)

    @torch.no_grad()
    def step(
        self, rule: UpdateRule, task: Task, carry: Carry, generator: torch.Generator
    ) -> tuple[Tensor, Carry]:
        """See :class:`MetaGradient`."""
        steps, noise = self.piece(generator), self._noise(rule, generator)
        theta = {name: p.expand(2 * self.tasks, *p.shape) for name, p in rule.named_parameters()}
        theta |= {name: torch.cat([p + noise[name], p - noise[name]]) for name, p in _trained(rule)}
        losses, after = self._advance(rule, task, carry, theta, steps, generator)
        finite = finite_problems(losses, after)
        finite = (finite[: self.tasks] & finite[self.tasks :]).repeat(2)
        initial = after.extra["initial_loss"].to(losses.dtype)
        time = carry.step + torch.arange(steps, device=carry.step.device).unsqueeze(1)
        progress = ((time + 1) / carry.horizon).clamp(max=1).to(losses.dtype)
        values = torch.where(finite, self.objective(losses, initial, progress), 0)
        cause = self.cause(noise, carry)
        count = finite[: self.tasks].sum()
        if bool(count > 0):
            self._accumulate(rule, values[: self.tasks] - values[self.tasks :], cause, count)
        after.extra["past_noise"] = tree_map(lambda one: torch.cat([one, one]), cause)
        return values.sum() / (2 * count), self.succeed(rule, task, after, finite, generator)

    def _noise(self, rule: UpdateRule, generator: torch.Generator) -> Params:
        noise = {}
        for name, p in _trained(rule):
            shape = (self.tasks, *p.shape)
            drawn = torch.randn(shape, generator=generator, dtype=p.dtype, device=generator.device)
            noise[name] = self.sigma * drawn.to(p.device)
        return noise

    def _advance(
        self,
        rule: UpdateRule,
        task: Task,
        carry: Carry,
        theta: Params,
        steps: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Carry]:
        """Losses before each update, (K, 2n), and the inner problems after the piece."""
        inner = self._steps.setdefault((id(rule), id(task)), InnerStep(rule, task, compiled=self.compiled))
        params, state, history = carry.params, carry.state, []
        for t in range(steps):
            batch = map_data(lambda one: torch.cat([one, one]), task.batch(generator, self.tasks))
            params, state, losses = inner(
                params,
                state,
                batch,
                step=carry.step + t,
                total_steps=carry.horizon,
                theta=theta,
                scale=carry.scale or None,
                shift=carry.shift or None,
            )
            history.append(losses)
        known = carry.extra["initial_loss"]
        extra = {**carry.extra, "initial_loss": torch.where(known.isnan(), history[0].to(known), known)}
        after = dataclasses.replace(carry, params=params, state=state, step=carry.step + steps, extra=extra)
        return torch.stack(history), after

    def _accumulate(self, rule: UpdateRule, difference: Tensor, cause: Params, count: Tensor) -> None:
        weights = difference / (2 * self.sigma**2 * count)
        for name, p in _trained(rule):
            gradient = torch.einsum("n,n...->...", weights.to(p.dtype), cause[name])
            p.grad = gradient if p.grad is None else p.grad + gradient


def _trained(rule: UpdateRule) -> list[tuple[str, Tensor]]:
    """Outer parameters that are trained; the others are not perturbed, which would only add noise."""
    return [(name, p) for name, p in rule.named_parameters() if p.requires_grad]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolutionStrategies(AntitheticES):
    r"""Evolution strategies on pieces: :math:`\xi_i = \epsilon_i`.

    With ``truncation=horizon`` the gradient of the smoothed meta-loss of the whole inner training without bias;
    on shorter pieces what a perturbation changes after its piece is left out.
    """

    def cause(self, noise: Params, carry: Carry) -> Params:
        """See :class:`AntitheticES`."""
        return noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class PersistentES(AntitheticES):
    r"""Persistent evolution strategies (PES, arXiv:2112.13835).

    Both versions of a problem go on from piece to piece, each with new perturbations, and :math:`\xi_i` is the
    sum of all perturbations that the problem has had: an unbiased gradient on short pieces.
    """

    def cause(self, noise: Params, carry: Carry) -> Params:
        """See :class:`AntitheticES`."""
        past = carry.extra["past_noise"]
        return {name: past[name][: self.tasks] + one for name, one in noise.items()}
