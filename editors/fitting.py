"""Fit many INRs to many images at once.

The networks are independent, so a chunk of them is one batch: their parameters are stacked, their gradient is
written out by hand into buffers that are made once, and one Adam updates all of them. On a CPU a chunk is just
large enough to amortise the cost of calling torch and small enough to stay in the processor's cache.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from editors.fit_options import FitOptions, Schedule, as_images
from editors.inr_set import InrSet
from editors.siren import SirenConfig, coordinates, initial_parameters
from editors.stacked import fit_chunk
from nfn_opt.data import ImageData
from nfn_opt.meta.processes import Processes

__all__ = ["FitJob", "fit"]

PIXELS_PER_CHUNK = 8_192
"""Pixels of all images of a chunk together on a CPU, unless told: activations of 1 MB a layer at width 32."""

PIXELS_PER_CHUNK_ON_GPU = 1_048_576
"""The same on another device, which wants large operations: activations of 128 MB a layer at width 32."""


def fit(
    images: ImageData | Tensor | np.ndarray,
    *,
    config: SirenConfig | None = None,
    steps: int = 100,
    lr: float = 4e-3,
    schedule: Schedule = "linear",
    seed: int = 0,
    target_psnr: float | None = None,
    shared_init: bool = False,
    pixels_per_step: int | None = None,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> InrSet:
    """Fit one SIREN to each image by Adam on the mean squared error over all pixels.

    With the defaults, INRs of 8 x 8 digits pass 75 dB, and 99 % of those of MNIST pass 40 dB.
    ``steps=50, lr=1.2e-2`` reaches 40 dB in half the time, but large steps scatter the weights: the images are
    rougher between the pixels, and edits of such weights are harder to learn. For images of very many pixels
    see `pixels_per_step`; to fit more INRs than one sitting allows, `editors.fit_to_file`.

    Args:
        images: Images with values in [0, 1], shape (N, H, W, C), or (N, H, W) for gray ones; an `ImageData`
            hands on its labels and source as well.
        config: Architecture; None stands for ``SirenConfig.for_images`` of the images' size.
        steps: Number of Adam steps, at most.
        lr: Adam's initial learning rate.
        schedule: How it falls during the fit: "linear" or "cosine", to zero, or "constant", not at all.
        seed: Seed of the initial parameters and of the pixels drawn. Neither depends on `chunk_size`.
        target_psnr: Stop each INR at the first step at which it reaches this PSNR (dB). None runs all steps.
            With `pixels_per_step` it is looked at every 10 steps.
        shared_init: Start all INRs from one draw of initial parameters instead of a fresh one for each.
        pixels_per_step: Take the loss of each step over that many pixels only, drawn without repeats for each
            step, the same for all images. A step is cheaper, but noisy: take more of them. None, or as many
            as there are, stands for all.
        chunk_size: Number of INRs fitted together; None chooses by the number of pixels and the device.
        device: Where to fit; None stands for where the images are.
        progress: Show a progress bar.

    Returns:
        The fitted INRs, in the order of the images, on that device. ``.psnr`` is what each reached, over all
        pixels.

    Raises:
        ValueError: If the images are empty, of a wrong shape, not finite, or outside [0, 1], if `config` has
            other channels, or if an option is out of range.
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
    options = FitOptions(
        steps=steps,
        lr=lr,
        schedule=schedule,
        seed=seed,
        target_psnr=target_psnr,
        shared_init=shared_init,
        pixels_per_step=pixels_per_step,
    )
    job = FitJob(images, config, options, chunk_size=chunk_size, device=device)
    with tqdm(total=len(job), desc="fitting INRs", unit="INR", disable=not progress) as bar:
        inrs = job.run(slice(0, len(job)), bar.update)
    warn_of_failures(inrs.psnr, target_psnr)
    return inrs


class FitJob:
    """Images to fit and all that decides the result, of which any part can be fitted on its own.

    A part that starts at a multiple of `chunk_size` has, to the last bit, the parameters that it has in the whole.

    Args:
        images: See `fit`.
        config: See `fit`.
        options: How to fit.
        chunk_size: See `fit`.
        device: See `fit`.

    Attributes:
        pixels: The images, float32, shape (N, H, W, C), where they were.
        labels: Their labels, or None.
        meta: How and from what the INRs are made, for `InrSet.meta`.
    """

    def __init__(
        self,
        images: ImageData | Tensor | np.ndarray,
        config: SirenConfig | None,
        options: FitOptions,
        *,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.pixels, self.options = as_images(images), options
        height, width, channels = self.pixels.shape[1:]
        self.device = self.pixels.device if device is None else torch.device(Processes().device(str(device)))
        self.config = config or SirenConfig.for_images(height, width, channels)
        at_once = PIXELS_PER_CHUNK if self.device.type == "cpu" else PIXELS_PER_CHUNK_ON_GPU
        pixels = min(options.pixels_per_step or height * width, height * width)
        self.chunk_size = chunk_size or max(1, at_once // pixels)
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
        if self.config.out_channels != channels:
            raise ValueError(
                f"config.out_channels is {self.config.out_channels}, but the images have {channels} channels; "
                f"use SirenConfig(out_channels={channels})"
            )
        self.labels: Tensor | None = None
        self.meta: dict[str, Any] = {"fit": dataclasses.asdict(options)}
        if isinstance(images, ImageData):
            self.labels = images.labels
            self.meta["source"] = {"name": images.source, "checksum": images.checksum}
        self._start = self._initial()
        self._coords = coordinates(height, width, device=self.device, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def run(self, part: slice, done: Callable[[int], object]) -> InrSet:
        """Fit the images from ``part.start`` to ``part.stop``.

        Args:
            part: Which.
            done: Called with the number of INRs of each chunk, after it.
        """
        params = {name: value[part].to(self.device).clone() for name, value in self._start.items()}
        pixels = self.pixels[part]
        reached = torch.empty(len(pixels), device=self.device)

        def fit_part(start: int) -> int:
            chunk = slice(start, start + self.chunk_size)
            images = pixels[chunk].to(self.device)
            reached[chunk] = fit_chunk(
                {name: value[chunk] for name, value in params.items()},
                (2 * images - 1).flatten(1, 2).mT.contiguous(),
                self._coords,
                self.config,
                self.options,
            )
            return len(images)

        for count in _in_parallel(fit_part, range(0, len(pixels), self.chunk_size), self.device):
            done(count)
        labels = None if self.labels is None else self.labels[part].to(self.device)
        return InrSet(params, self.config, reached, self.image_size, labels=labels, meta=self.meta)

    def _initial(self) -> dict[str, Tensor]:
        """Initial parameters of all INRs; drawn on the CPU, so that every device starts from the same."""
        generator = torch.Generator().manual_seed(self.options.seed)
        params = initial_parameters(self.config, 1 if self.options.shared_init else len(self), generator)
        return {name: value.expand(len(self), *value.shape[1:]) for name, value in params.items()}


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


def warn_of_failures(reached: Tensor, target_psnr: float | None) -> None:
    """Warn, in the name of the caller's caller, of INRs that are not finite or missed the target."""
    broken = ~(reached > 0)  # an error above 1 is worse than that of any image
    missed = broken if target_psnr is None else ~(reached >= target_psnr)
    if not missed.any():
        return
    first = ", ".join(map(str, missed.nonzero().flatten()[:10].tolist()))
    goal = "came close to their image" if target_psnr is None else f"reached {target_psnr:g} dB"
    warnings.warn(
        f"{int(missed.sum())} of {len(reached)} INRs never {goal} ({int(broken.sum())} are below 0 dB or not finite); "
        f"the first: {first}. Use more steps or a smaller lr, or drop them: inrs[inrs.psnr > limit]",
        RuntimeWarning,
        stacklevel=3,
    )
