"""Quadratics with a controlled spectrum, and networks that imitate a random network."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nfn_opt.meta.classification import Activation
from nfn_opt.meta.families.base import TaskFamily, choose, integer, log_uniform, random_initializer
from nfn_opt.meta.families.initializers import Initializer
from nfn_opt.meta.families.network_tasks import SupervisedTask, mean_squared_error
from nfn_opt.meta.families.networks import Norm, normed_mlp
from nfn_opt.meta.families.stacked import run_stacked
from nfn_opt.meta.tasks import Params, Task
from nfn_opt.weight_space import WeightSpace


class QuadraticTask(Task):
    r"""A quadratic with noisy gradients, whose loss is 1 on average at the start.

    .. math:: \ell(x) = \frac{1}{2 \sigma^2 \sum_i \lambda_i} \sum_i \lambda_i \, [Q (x - x^*)]_i^2

    The initial parameters are normal with deviation :math:`\sigma`, so is the minimum :math:`x^*`. Gradient noise
    is normal with a deviation given in multiples of the root mean square of the first gradient's entries.

    Args:
        eigenvalues: Spectrum, shape (d,), not negative.
        rotation: An orthogonal matrix Q, shape (d, d).
        minimum: Shape of the one parameter ``x``, with d entries.
        scale: Deviation of the initial parameters, sigma.
        noise: Deviation of the gradient noise, relative.

    Raises:
        ValueError: If the shapes do not fit, or the spectrum is negative or zero.
    """

    def __init__(
        self,
        eigenvalues: Tensor,
        rotation: Tensor,
        minimum: Tensor,
        *,
        scale: float = 1.0,
        noise: float = 0.0,
    ) -> None:
        d = minimum.numel()
        if eigenvalues.shape != (d,) or rotation.shape != (d, d):
            raise ValueError(
                f"got eigenvalues {tuple(eigenvalues.shape)} and a rotation {tuple(rotation.shape)}, expected "
                f"({d},) and ({d}, {d}) for a minimum of {d} entries"
            )
        if not (eigenvalues.min() >= 0 and eigenvalues.sum() > 0):
            raise ValueError("eigenvalues must not be negative, and not all zero")
        self.scale, self.minimum = scale, minimum
        self.eigenvalues = eigenvalues / (2 * scale**2 * eigenvalues.sum())
        self.rotation_t = rotation.T.contiguous()
        self.noise = noise * 2 * math.sqrt(2) * scale * float(self.eigenvalues.square().mean().sqrt())
        self._space = WeightSpace.independent({"x": minimum})

    @property
    def space(self) -> WeightSpace:
        """One parameter without symmetry."""
        return self._space

    def init(self, generator: torch.Generator, n: int) -> Params:
        """Normal."""
        return {"x": self.scale * self._normal(generator, n)}

    def batch(self, generator: torch.Generator, n: int) -> Tensor:
        """Gradient noise, shape (n, *shape)."""
        return self.noise * self._normal(generator, n)

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        """See :class:`Task`."""
        return self.losses({"x": params["x"].unsqueeze(0)}, batch.unsqueeze(0))[0]

    def losses(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        """The quadratic; the noise changes its gradient, not its value."""
        x = params["x"]
        turned = (x - self.minimum).flatten(1) @ self.rotation_t
        tilt = (batch * (x - x.detach())).flatten(1).sum(1)
        return (turned.square() * self.eigenvalues).sum(1) + tilt

    @torch.no_grad()
    def full_losses(self, params: Mapping[str, Tensor]) -> Tensor:
        """The quadratic."""
        return self.losses(params, torch.zeros_like(params["x"]))

    def _normal(self, generator: torch.Generator, n: int) -> Tensor:
        shape, dtype = (n, *self.minimum.shape), self.minimum.dtype
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device).to(
            self.minimum.device
        )


class QuadraticFamily(TaskFamily):
    """Quadratics of 8 to 96 dimensions: vectors or matrices, condition numbers of 1 to 10,000, random noise."""

    family = "quadratic"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        rows, columns = choose(generator, ((1, 8), (1, 32), (1, 64), (4, 8), (8, 8), (8, 12), (16, 6)))
        shape = (columns,) if rows == 1 else (rows, columns)
        d = rows * columns
        condition = log_uniform(generator, 1.0, 1e4)
        eigenvalues = condition ** -torch.rand(d, generator=generator)
        q, r = torch.linalg.qr(torch.randn(d, d, generator=generator))
        scale = log_uniform(generator, 0.1, 10.0)
        noise = choose(generator, (0.0, log_uniform(generator, 0.03, 3.0)))
        minimum = scale * torch.randn(shape, generator=generator)
        return QuadraticTask(eigenvalues, q * r.diagonal().sign(), minimum, scale=scale, noise=noise)


class TeacherStudentFamily(TaskFamily):
    """Regression on the outputs of a random MLP, with noise, by an MLP of another size."""

    family = "teacher-student"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        n_in, n_out = choose(generator, (4, 8, 16, 32)), choose(generator, (1, 2, 4))
        inputs = torch.randn(2048, n_in, generator=generator)
        targets = self._teach(generator, inputs, n_out)
        widths = [round(log_uniform(generator, 8, 64)) for _ in range(integer(generator, 1, 3))]
        return SupervisedTask(
            normed_mlp((n_in, *widths, n_out), _activation(generator), _norm(generator)),
            inputs,
            targets,
            batch_size=round(log_uniform(generator, 16, 128)),
            objective=mean_squared_error,
            initializer=random_initializer(generator),
        )

    def _teach(self, generator: torch.Generator, inputs: Tensor, n_out: int) -> Tensor:
        """Outputs of a random teacher, of variance one, and noise of variance up to one tenth."""
        teacher = normed_mlp((inputs.shape[1], round(log_uniform(generator, 4, 32)), n_out), "tanh")
        params = Initializer(kind="lecun_normal", scale=2.0)(teacher, generator, 1)
        outputs = run_stacked(teacher, inputs.unsqueeze(0), params)[0]
        outputs = (outputs - outputs.mean(0)) / outputs.std(0)
        noise = choose(generator, (0.0, 0.1, 0.3)) * torch.randn(outputs.shape, generator=generator)
        return outputs + noise


def _activation(generator: torch.Generator) -> Activation:
    options: tuple[Activation, ...] = ("relu", "tanh", "gelu", "silu")
    return choose(generator, options)


def _norm(generator: torch.Generator) -> Norm:
    options: tuple[Norm, ...] = ("none", "none", "layer")
    return choose(generator, options)
