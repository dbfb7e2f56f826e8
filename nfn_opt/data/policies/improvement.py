"""Better policies by ascent of the predicted return in weight space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nfn_opt.data.policies.prediction import ReturnPredictor
from nfn_opt.data.policies.rollouts import check_params

__all__ = ["Improvement", "ImproveConfig", "improve", "random_steps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """How policies are improved.

    Attributes:
        steps: Steps of the ascent.
        radius: How far a policy may go, as a share of the norm of each of its weight tensors' usual size; see
            :func:`improve`.
        step: Length of the first step, as a share of ``radius``.
        pessimism: Standard deviations between the predictors that are taken off their mean.

    Raises:
        ValueError: If a number is out of bounds.
    """

    steps: int = 100
    radius: float = 0.5
    step: float = 0.2
    pessimism: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.radius > 0 or not 0 < self.step <= 1 or self.pessimism < 0:
            raise ValueError(
                f"got {self}, expected steps >= 1, radius > 0, step in (0, 1] and pessimism >= 0"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Improvement:
    """What an ascent did.

    Attributes:
        params: The weights after it, ``{name: (B, *shape)}``.
        before: Predicted mean return of each policy before, mean over the predictors, shape (B,).
        after: That after.
        distance: How far each went, in units of the length of its start, shape (B,).
    """

    params: dict[str, Tensor]
    before: Tensor
    after: Tensor
    distance: Tensor

    @property
    def predicted_gain(self) -> Tensor:
        """What the predictors expect of it, shape (B,); check it by real roll-outs."""
        return self.after - self.before


def improve(
    params: Mapping[str, Tensor],
    predictors: Sequence[ReturnPredictor] | ReturnPredictor,
    config: ImproveConfig | None = None,
) -> Improvement:
    r"""Climb the predicted return in weight space, within a ball around each policy.

    Maximises :math:`\bar f(w) - \lambda\, s(w)`, mean and standard deviation of the predictors' logits, subject to
    :math:`\lVert w - w_0 \rVert \le r \lVert w_0 \rVert`. Steps follow the normalised gradient, are projected onto the
    ball and taken only where the objective rises; a policy's step is halved where it does not, and grows by a fifth
    where it does. Nothing is drawn. Predictors are no environments: they may be wrong where no training policy lies,
    which is what ball and pessimism are against. What counts is :func:`~nfn_opt.data.policies.rollouts.roll_out`.

    Args:
        params: Weights of B policies, ``{name: (B, *shape)}``; they are not changed.
        predictors: Trained on policies of this architecture, one or better several of other seeds.
        config: Steps, radius and pessimism.

    Raises:
        ValueError: If there is no predictor, or weights do not fit.
    """
    if isinstance(predictors, ReturnPredictor):
        predictors = [predictors]
    if not predictors:
        raise ValueError("predictors is empty, expected at least one; train some with train_return_predictor")
    config = config or ImproveConfig()
    check_params(params, predictors[0].architecture)
    start, shapes = _flat(params)
    length = start.norm(dim=1, keepdim=True)
    limit = config.radius * length
    size = config.step * limit
    point = start
    value, gradient = _objective(point, shapes, predictors, config.pessimism)
    for _ in range(config.steps):
        direction = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
        tried = _projected(point + size * direction, start, limit)
        new, slope = _objective(tried, shapes, predictors, config.pessimism)
        better = (new > value).unsqueeze(1)
        point, gradient = torch.where(better, tried, point), torch.where(better, slope, gradient)
        value = torch.where(better.squeeze(1), new, value)
        size = torch.where(better, 1.2 * size, 0.5 * size)
    return Improvement(
        _named(point, shapes),
        _mean_return(params, predictors),
        _mean_return(_named(point, shapes), predictors),
        (point - start).norm(dim=1) / length.squeeze(1),
    )


def random_steps(
    params: Mapping[str, Tensor], distance: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Steps in random directions, as far as others went: what an ascent is to be compared with.

    Args:
        params: Weights of B policies, ``{name: (B, *shape)}``.
        distance: How far each is to go, in units of the length of its start, shape (B,).
        generator: Source of the directions.
    """
    start, shapes = _flat(params)
    drawn = torch.randn(start.shape, generator=generator, dtype=start.dtype)
    steps = drawn / drawn.norm(dim=1, keepdim=True) * start.norm(dim=1, keepdim=True)
    return _named(start + steps * distance.unsqueeze(1), shapes)


Shapes = Mapping[str, torch.Size]


def _flat(params: Mapping[str, Tensor]) -> tuple[Tensor, Shapes]:
    """Weights as rows (B, D), and the shapes to undo it."""
    return torch.cat([value.detach().flatten(1) for value in params.values()], 1), {
        name: value.shape[1:] for name, value in params.items()
    }


def _named(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    parts = flat.split([shape.numel() for shape in shapes.values()], 1)
    return {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _objective(
    flat: Tensor, shapes: Shapes, predictors: Sequence[ReturnPredictor], pessimism: float
) -> tuple[Tensor, Tensor]:
    """Pessimistic mean of the logits (B,), and its gradient (B, D)."""
    flat = flat.detach().requires_grad_()
    with torch.enable_grad():
        logits = torch.stack([predictor(_named(flat, shapes)) for predictor in predictors])
        value = logits.mean(0)
        if len(predictors) > 1:
            value = value - pessimism * logits.std(0)
        (gradient,) = torch.autograd.grad(value.sum(), flat)
    return value.detach(), gradient


def _projected(point: Tensor, start: Tensor, limit: Tensor) -> Tensor:
    """The closest points within a distance of the starts."""
    step = point - start
    return start + step * (limit / step.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)


def _mean_return(params: Mapping[str, Tensor], predictors: Sequence[ReturnPredictor]) -> Tensor:
    return torch.stack([predictor.returns(params) for predictor in predictors]).mean(0)
