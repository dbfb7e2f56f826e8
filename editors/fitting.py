"""Fit many INRs to many images at once.

The networks are independent, so a chunk of them is one batch: their parameters are stacked, their gradient is
written out by hand into buffers that are made once, and one Adam updates all of them. A chunk is just large
enough to amortise the cost of calling torch and small enough to stay in the processor's cache.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from editors.inr_set import InrSet
from editors.siren import SirenConfig, coordinates, initial_parameters
from editors.stacked import fit_chunk
from nfn_opt.data import ImageData

__all__ = ["fit"]

PIXELS_PER_CHUNK = 8_192
"""Pixels of all images of a chunk together, unless told: activations of about 1 MB a layer at width 32."""


def fit(
    images: ImageData | Tensor | np.ndarray,
    *,
    config: SirenConfig | None = None,
    steps: int = 100,
    lr: float = 4e-3,
    seed: int = 0,
    target_psnr: float | None = None,
    shared_init: bool = False,
    chunk_size: int | None = None,
    progress: bool = False,
) -> InrSet:
    """Fit one SIREN to each image by Adam on the mean squared error over all pixels.

    The learning rate falls linearly from `lr` to zero. With the defaults, INRs of 8 x 8 digits pass
    75 dB, and 99 % of those of MNIST pass 40 dB. ``steps=50, lr=1.2e-2`` reaches 40 dB in half the time, but
    large steps scatter the weights: the images are rougher between the pixels, and edits of such weights are
    harder to learn.

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

    def fit_part(start: int) -> int:
        part = slice(start, start + chunk_size)
        reached[part] = fit_chunk(
            {name: value[part] for name, value in params.items()},
            targets[part].contiguous(),
            coords,
            config,
            steps=steps,
            lr=lr,
            target_psnr=math.inf if target_psnr is None else target_psnr,
        )
        return len(reached[part])

    with tqdm(total=count, desc="fitting INRs", unit="INR", disable=not progress) as bar:
        for done in _in_parallel(fit_part, range(0, count, chunk_size), pixels.device):
            bar.update(done)
    _warn_of_failures(reached, target_psnr)
    options = {"steps": steps, "lr": lr, "seed": seed, "target_psnr": target_psnr, "shared_init": shared_init}
    meta: dict[str, Any] = {"fit": options}
    labels = None
    if isinstance(images, ImageData):
        labels = images.labels.to(pixels.device)
        meta["source"] = {"name": images.source, "checksum": images.checksum}
    return InrSet(params, config, reached, (height, width), labels=labels, meta=meta)


def _in_parallel(task: Callable[[int], int], starts: Sequence[int], device: torch.device) -> Iterator[int]:
    """Results of a task for each start, in order; on a CPU by one thread per core.

    Threads that each work alone on a chunk never wait for one another, as torch's own threads do after every
    operation; and what a chunk computes does not depend on the number of threads.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(starts) == 1:
        yield from map(task, starts)
        return
    pool = ThreadPoolExecutor(min(threads, len(starts)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(task, starts)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a part of what the workers set holds for the whole process


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
