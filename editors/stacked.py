"""SIRENs stacked into one batch, with their gradient written out by hand into buffers that are reused.

For one network with layers ``z_l = omega W_l h_{l-1} + omega b_l``, ``h_l = sin z_l``, the loss is the mean
square of the residual ``r``; with ``d_l`` the derivative by ``z_l``, pixels along the last axis,

    d_l = (omega W_{l+1}^T d_{l+1}) * cos z_l,   dW_l = omega d_l h_{l-1}^T,   db_l = omega sum_pixels d_l,

and for the linear last layer the same without omega and cosine, from ``d = 2 r / (pixels * channels)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from editors.fit_options import FitOptions, learning_rate
from editors.inr_set import psnr
from editors.siren import SirenConfig, siren_apply
from nfn_opt.meta.randomness import seeded_generator

__all__ = ["StackedSiren", "fit_chunk"]

BETAS = (0.8, 0.9)
"""Adam's decay rates. Shorter memories than usual: a fit is a few dozen steps, without gradient noise."""


CHECK_EVERY = 10
"""Steps from one look at the PSNR to the next, where it needs an evaluation of its own."""

PIXELS_AT_ONCE = 65_536
"""Pixels of all images together in such an evaluation."""


@torch.no_grad()
def fit_chunk(
    params: dict[str, Tensor], targets: Tensor, coords: Tensor, config: SirenConfig, options: FitOptions
) -> Tensor:
    """Fit one chunk, writing into `params`; returns the PSNR of each INR in dB, over all pixels.

    Args:
        params: Initial parameters, (b, *shape) each; overwritten.
        targets: Pixels in [-1, 1], shape (b, C, P).
        coords: Shape (P, 2).
        config: Architecture.
        options: How to fit.
    """
    drawn = options.pixels_per_step or len(coords)
    draws = seeded_generator(options.seed, "pixels") if drawn < len(coords) else None
    network = StackedSiren(params, targets[..., :drawn], coords[:drawn], config)
    optimizer = torch.optim.Adam([network.values], lr=options.lr, betas=BETAS, fused=True)
    target = math.inf if options.target_psnr is None else options.target_psnr
    every = 1 if draws is None else CHECK_EVERY
    reached = torch.full((len(targets),), math.nan, device=targets.device)
    pending = torch.ones_like(reached, dtype=torch.bool)
    for step in range(options.steps + 1):
        last = step == options.steps
        if draws is None:
            network.forward()
        if last or (target < math.inf and step % every == 0):
            now = psnr(network.residual) if draws is None else network.psnr(targets, coords)
            # An INR that has reached the target keeps the parameters with which it did.
            done = pending if last else pending & (now >= target)
            reached[done] = now[done]
            for name, value in network.split(network.values):
                params[name][done] = value[done]
            pending = pending & ~done
            if not pending.any():
                break
        if draws is not None:
            chosen = torch.randperm(len(coords), generator=draws)[:drawn].to(coords.device)
            network.look_at(targets[..., chosen], coords[chosen])
            network.forward()
        network.backward()
        optimizer.param_groups[0]["lr"] = learning_rate(options, step)
        optimizer.step()
    return reached


class StackedSiren:
    """SIRENs of one architecture, their residual and their gradient, in buffers that are reused.

    Attributes:
        values: All parameters in one vector: each parameter of the whole chunk, one after the other.
        residual: Prediction minus target after `forward`, shape (b, C, P).
    """

    def __init__(
        self, params: dict[str, Tensor], targets: Tensor, coords: Tensor, config: SirenConfig
    ) -> None:
        batch, channels, pixels = targets.shape
        self._shapes = {name: value.shape for name, value in params.items()}
        self._config, self._omega, self._targets = config, config.omega_0, targets
        self.values = torch.cat([value.flatten() for value in params.values()])
        self.values.grad = torch.zeros_like(self.values)
        self._layers = self._pairs(self.values)
        self._grads = self._pairs(self.values.grad)
        self._inputs = coords.t().expand(batch, -1, -1).contiguous()
        shape = (batch, config.hidden_width, pixels)
        self._sines = [targets.new_empty(shape) for _ in range(config.hidden_layers)]
        self._cosines = [targets.new_empty(shape) for _ in range(config.hidden_layers)]
        self.residual = targets.new_empty((batch, channels, pixels))

    def split(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name of each parameter and the view of it, (b, *shape), in a vector laid out like `values`."""
        start = 0
        for name, shape in self._shapes.items():
            yield name, vector[start : start + shape.numel()].view(shape)
            start += shape.numel()

    def _pairs(self, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias as a column) of each layer as views of a vector laid out like `values`."""
        views = [view for _, view in self.split(vector)]
        return [(weight, bias.unsqueeze(-1)) for weight, bias in zip(views[::2], views[1::2], strict=True)]

    def look_at(self, targets: Tensor, coords: Tensor) -> None:
        """Take other pixels, as many as before, for the next `forward`."""
        self._targets = targets
        self._inputs.copy_(coords.t())

    def psnr(self, targets: Tensor, coords: Tensor) -> Tensor:
        """PSNR of each INR in dB over any pixels, without touching the buffers."""
        params, step = dict(self.split(self.values)), max(1, PIXELS_AT_ONCE // len(coords))
        parts = []
        for start in range(0, len(targets), step):
            part = {name: value[start : start + step] for name, value in params.items()}
            parts.append(psnr(siren_apply(part, coords, self._config).mT - targets[start : start + step]))
        return torch.cat(parts)

    def forward(self) -> None:
        """Fill the activations and `residual`."""
        hidden = self._inputs
        for (weight, bias), sine, cosine in zip(self._layers, self._sines, self._cosines, strict=False):
            torch.baddbmm(bias * self._omega, weight * self._omega, hidden, out=cosine)
            torch.sin(cosine, out=sine)
            cosine.cos_()
            hidden = sine
        weight, bias = self._layers[-1]
        torch.baddbmm(bias, weight, hidden, out=self.residual)
        self.residual -= self._targets

    def backward(self) -> None:
        """Fill ``values.grad`` from the activations of `forward`; overwrites the activations."""
        delta = self.residual.mul_(2 / self.residual[0].numel())
        scale = 1.0
        for layer in reversed(range(len(self._layers))):
            weight_grad, bias_grad = self._grads[layer]
            inputs = self._sines[layer - 1] if layer else self._inputs
            torch.bmm(delta, inputs.mT, out=weight_grad)
            torch.sum(delta, -1, keepdim=True, out=bias_grad)
            if scale != 1.0:
                weight_grad.mul_(scale)
                bias_grad.mul_(scale)
            if layer:
                # The inputs are not needed again: their buffer takes their derivative.
                torch.bmm((self._layers[layer][0] * scale).mT, delta, out=inputs)
                delta, scale = inputs.mul_(self._cosines[layer - 1]), self._omega
