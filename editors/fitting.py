"""Fit many INRs to many images at once.

The networks are independent, so a chunk of them is one batch: their parameters are stacked, their gradient is
written out by hand into buffers that are made once, and one Adam updates all of them. A chunk is just large
enough to amortise the cost of calling torch and small enough to stay in the processor's cache.

For one network with layers ``z_l = omega W_l h_{l-1} + omega b_l``, ``h_l = sin z_l``, the loss is the mean
square of the residual ``r``; with ``d_l`` the derivative by ``z_l``, pixels along the last axis,

    d_l = (omega W_{l+1}^T d_{l+1}) * cos z_l,   dW_l = omega d_l h_{l-1}^T,   db_l = omega sum_pixels d_l,

and for the linear last layer the same without omega and cosine, from ``d = 2 r / (pixels * channels)``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from editors.inr_set import InrSet, psnr
from editors.siren import SirenConfig, coordinates, initial_parameters
from nfn_opt.data import ImageData

__all__ = ["fit"]

BETAS = (0.8, 0.9)
"""Adam's decay rates. Shorter memories than usual: a fit is a few dozen steps, without gradient noise."""

PIXELS_PER_CHUNK = 16_384
"""Pixels of all images of a chunk together, unless told: activations of about 2 MB a layer at width 32."""


def fit(
    images: ImageData | Tensor | np.ndarray,
    *,
    config: SirenConfig | None = None,
    steps: int = 60,
    lr: float = 1e-2,
    seed: int = 0,
    target_psnr: float | None = None,
    shared_init: bool = False,
    chunk_size: int | None = None,
    progress: bool = False,
) -> InrSet:
    """Fit one SIREN to each image by Adam on the mean squared error over all pixels.

    The learning rate falls linearly from `lr` to zero. With the defaults, INRs of 8 x 8 digits and of
    MNIST pass 40 dB. A smaller `lr` with more `steps` gives smoother images between the pixels.

    Args:
        images: Images with values in [0, 1], shape (N, H, W, C), or (N, H, W) for gray ones; an `ImageData`
            hands on its labels and source as well.
        config: Architecture; None stands for ``SirenConfig.for_images`` of the images' size.
        steps: Number of Adam steps, at most.
        lr: Adam's initial learning rate.
        seed: Seed of the initial parameters. They do not depend on `chunk_size`.
        target_psnr: Stop each INR at the first step at which it reaches this PSNR (dB). None runs all steps.
        shared_init: Start all INRs from one draw of initial parameters instead of a fresh one for each.
        chunk_size: Number of INRs fitted together; None chooses by the number of pixels.
        progress: Show a progress bar.

    Returns:
        The fitted INRs, in the order of the images, on the images' device. ``.psnr`` is what each reached.

    Raises:
        ValueError: If the images are empty, of a wrong shape, not finite, or outside [0, 1], if `config` has
            other channels, or if a number is out of range.
        TypeError: If `images` is of another type.

    Warns:
        RuntimeWarning: If an INR is not finite, or missed `target_psnr`; says how many, and which are first.

    Example:
        >>> from nfn_opt.data import load_images
        >>> inrs = fit(load_images("digits").images[:4], seed=0)
        >>> bool((inrs.psnr > 40).all())
        True
        >>> inrs.render((32, 32)).shape
        torch.Size([4, 32, 32, 1])
    """
    pixels = _as_images(images)
    count, height, width, channels = pixels.shape
    config = config or SirenConfig.for_images(height, width, channels)
    chunk_size = chunk_size or max(1, PIXELS_PER_CHUNK // (height * width))
    _check_options(config, channels, steps=steps, lr=lr, target_psnr=target_psnr, chunk_size=chunk_size)
    params = _initial(config, count, seed, shared_init, pixels.device)
    targets = (2 * pixels - 1).reshape(count, height * width, channels).mT
    coords = coordinates(height, width, device=pixels.device, dtype=torch.float32)
    reached = torch.empty(count, device=pixels.device)
    with tqdm(total=count, desc="fitting INRs", unit="INR", disable=not progress) as bar:
        for start in range(0, count, chunk_size):
            part = slice(start, start + chunk_size)
            reached[part] = _fit_chunk(
                {name: value[part] for name, value in params.items()},
                targets[part].contiguous(),
                coords,
                config,
                steps=steps,
                lr=lr,
                target_psnr=math.inf if target_psnr is None else target_psnr,
            )
            bar.update(len(reached[part]))
    _warn_of_failures(reached, target_psnr)
    options = {"steps": steps, "lr": lr, "seed": seed, "target_psnr": target_psnr, "shared_init": shared_init}
    meta: dict[str, Any] = {"fit": options}
    labels = None
    if isinstance(images, ImageData):
        labels = images.labels.to(pixels.device)
        meta["source"] = {"name": images.source, "checksum": images.checksum}
    return InrSet(params, config, reached, (height, width), labels=labels, meta=meta)


def _as_images(images: ImageData | Tensor | np.ndarray) -> Tensor:
    """`images` as a float32 tensor of shape (N, H, W, C), checked."""
    pixels = images.images if isinstance(images, ImageData) else images
    if not isinstance(pixels, (Tensor, np.ndarray)):
        raise TypeError(f"images must be an ImageData, a tensor or an array, got {type(images).__name__}")
    pixels = torch.tensor(pixels) if isinstance(pixels, np.ndarray) else pixels
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(-1)
    if pixels.ndim != 4 or pixels.numel() == 0:
        raise ValueError(
            f"images must have shape (N, H, W, C) or (N, H, W), none 0, got {tuple(pixels.shape)}"
        )
    pixels = pixels.detach().to(torch.float32)
    low, high = (bound.item() for bound in pixels.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("images must be finite, got NaN or infinite pixels; remove or replace them")
    if low < 0 or high > 1:
        raise ValueError(
            f"images must lie in [0, 1], got [{low:g}, {high:g}]; rescale them (bytes: divide by 255)"
        )
    return pixels


def _check_options(
    config: SirenConfig,
    channels: int,
    *,
    steps: int,
    lr: float,
    target_psnr: float | None,
    chunk_size: int,
) -> None:
    """Refuse options out of range."""
    if config.out_channels != channels:
        raise ValueError(
            f"config.out_channels is {config.out_channels}, but the images have {channels} channels; "
            f"use SirenConfig(out_channels={channels})"
        )
    if steps < 0 or chunk_size < 1:
        raise ValueError(f"steps must be >= 0 and chunk_size >= 1, got {steps} and {chunk_size}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive finite number, got {lr!r}")
    if target_psnr is not None and not math.isfinite(target_psnr):
        raise ValueError(f"target_psnr must be finite (dB) or None, got {target_psnr!r}")


def _initial(
    config: SirenConfig, count: int, seed: int, shared: bool, device: torch.device
) -> dict[str, Tensor]:
    """Initial parameters of `count` INRs; drawn on the CPU, so that every device starts from the same."""
    generator = torch.Generator().manual_seed(seed)
    params = initial_parameters(config, 1 if shared else count, generator)
    return {name: value.expand(count, *value.shape[1:]).to(device).clone() for name, value in params.items()}


def _warn_of_failures(reached: Tensor, target_psnr: float | None) -> None:
    """Warn of INRs that are not finite or missed the target."""
    broken = ~(reached > -math.inf)
    missed = broken if target_psnr is None else ~(reached >= target_psnr)
    if not missed.any():
        return
    first = ", ".join(map(str, missed.nonzero().flatten()[:10].tolist()))
    goal = "are finite" if target_psnr is None else f"reached {target_psnr:g} dB"
    warnings.warn(
        f"{int(missed.sum())} of {len(reached)} INRs never {goal} ({int(broken.sum())} are not finite); "
        f"the first: {first}. Use more steps or a smaller lr, or drop them: inrs[inrs.psnr > limit]",
        RuntimeWarning,
        stacklevel=3,
    )


@torch.no_grad()
def _fit_chunk(
    params: dict[str, Tensor],
    targets: Tensor,
    coords: Tensor,
    config: SirenConfig,
    *,
    steps: int,
    lr: float,
    target_psnr: float,
) -> Tensor:
    """Fit one chunk, writing into `params`; returns the PSNR of each INR in dB.

    Args:
        params: Initial parameters, (b, *shape) each; overwritten.
        targets: Pixels in [-1, 1], shape (b, C, P).
        coords: Shape (P, 2).
        config: Architecture.
        steps: Number of steps, at most.
        lr: Initial learning rate.
        target_psnr: In dB; infinite to run all steps.
    """
    network = _StackedSiren(params, targets, coords, config)
    optimizer = torch.optim.Adam([network.values], lr=lr, betas=BETAS, fused=True)
    reached = torch.full((len(targets),), math.nan, device=targets.device)
    pending = torch.ones_like(reached, dtype=torch.bool)
    for step in range(steps + 1):
        network.forward()
        if step == steps or target_psnr < math.inf:
            now = psnr(network.residual)
            # An INR that has reached the target keeps the parameters with which it did.
            done = pending if step == steps else pending & (now >= target_psnr)
            reached[done] = now[done]
            for name, value in network.split(network.values):
                params[name][done] = value[done]
            pending = pending & ~done
            if not pending.any():
                break
        network.backward()
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.step()
    return reached


class _StackedSiren:
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
        self._omega, self._targets = config.omega_0, targets
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
