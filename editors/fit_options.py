"""How INRs are fitted: the options of a fit, checked, and the images that are fitted, checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nfn_opt.data import ImageData

__all__ = ["SCHEDULES", "FitOptions", "Schedule", "as_images", "learning_rate"]

Schedule = Literal["linear", "cosine", "constant"]

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What decides the result of a fit, beside the images and the architecture; see `editors.fit`.

    Attributes:
        steps: Number of Adam steps, at most.
        lr: Adam's initial learning rate.
        schedule: How it falls: linearly or as a cosine to zero, or not at all (constant).
        seed: Seed of the initial parameters and of the pixels that are drawn.
        target_psnr: Stop each INR as it reaches this PSNR (dB); all steps if not given.
        shared_init: Start all INRs from one draw of initial parameters instead of a fresh one for each.
        pixels_per_step: Pixels, drawn anew for each step, that a step looks at; all if not given.

    Raises:
        ValueError: If a number is out of range, or there is no such schedule.
    """

    steps: int = 100
    lr: float = 4e-3
    schedule: Schedule = "linear"
    seed: int = 0
    target_psnr: float | None = None
    shared_init: bool = False
    pixels_per_step: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, got {self.steps}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a positive finite number, got {self.lr!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.target_psnr is not None and not math.isfinite(self.target_psnr):
            raise ValueError(f"target_psnr must be finite (dB) or None, got {self.target_psnr!r}")
        if self.pixels_per_step is not None and self.pixels_per_step < 1:
            raise ValueError(f"pixels_per_step must be >= 1 or None, got {self.pixels_per_step}")


def learning_rate(options: FitOptions, step: int) -> float:
    """The learning rate of a step, counted from 0.

    Example:
        >>> [learning_rate(FitOptions(lr=1.0, steps=4, schedule=name), 1) for name in SCHEDULES]
        [0.75, 0.853..., 1.0]
    """
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "cosine":
        return options.lr * (1 + math.cos(math.pi * step / options.steps)) / 2
    return options.lr * (1 - step / options.steps)


def as_images(images: ImageData | Tensor | np.ndarray) -> Tensor:
    """`images` as a float32 tensor of shape (N, H, W, C), checked.

    Raises:
        TypeError: If they are neither an `ImageData` nor a tensor nor an array.
        ValueError: If they are empty, of a wrong shape, not finite, or outside [0, 1].
    """
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
