"""Families of tasks on images: classifiers, auto-encoders, implicit representations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nfn_opt.data.images import ImageData
from nfn_opt.meta.classification import Activation
from nfn_opt.meta.families.base import TaskFamily, choose, integer, log_uniform, random_initializer
from nfn_opt.meta.families.image_tasks import autoencode, classify
from nfn_opt.meta.families.initializers import Initializer
from nfn_opt.meta.families.network_tasks import InrTask
from nfn_opt.meta.families.networks import (
    Norm,
    conv_autoencoder,
    conv_net,
    normed_mlp,
    residual_net,
    siren,
)
from nfn_opt.meta.families.sources import DataSources
from nfn_opt.meta.tasks import Task

_ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh", "gelu", "silu", "sigmoid")


class ImageFamily(TaskFamily):
    """A family whose instances take one of several image sets, at one of several sizes.

    Args:
        data: Where images come from.
        sources: Names of image sets.
        sizes: Heights and widths, in pixels.
    """

    def __init__(
        self,
        data: DataSources | None = None,
        *,
        sources: Sequence[str] = ("digits",),
        sizes: Sequence[int] = (8,),
    ) -> None:
        super().__init__(data)
        self.sources, self.sizes = tuple(sources), tuple(sizes)

    def draw_images(self, generator: torch.Generator) -> ImageData:
        """Choose images."""
        return self.data.images(choose(generator, self.sources), choose(generator, self.sizes))


class MLPFamily(ImageFamily):
    """Fully connected classifiers: 1 to 3 hidden layers of 8 to 64, with or without layer normalisation."""

    family = "mlp"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        data = self.draw_images(generator)
        norms: tuple[Norm, ...] = ("none", "none", "layer")
        widths = [round(log_uniform(generator, 8, 64)) for _ in range(integer(generator, 1, 3))]
        network = normed_mlp(
            (data.images[0].numel(), *widths, len(data.class_names)),
            choose(generator, _ACTIVATIONS),
            choose(generator, norms),
        )
        batch_size = round(log_uniform(generator, 16, 256))
        initializer = random_initializer(generator)
        return classify(network, data, flat=True, batch_size=batch_size, initializer=initializer)


class CNNFamily(ImageFamily):
    """Plain convolutional classifiers: 1 to 3 layers of 4 to 16 channels."""

    family = "cnn"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        data = self.draw_images(generator)
        norms: tuple[Norm, ...] = ("none", "none", "group", "layer")
        channels = [round(log_uniform(generator, 4, 16)) for _ in range(integer(generator, 1, 3))]
        network = conv_net(
            (data.images.shape[-1], *channels),
            len(data.class_names),
            choose(generator, _ACTIVATIONS[:4]),
            choose(generator, norms),
        )
        batch_size = round(log_uniform(generator, 16, 64))
        return classify(network, data, batch_size=batch_size, initializer=random_initializer(generator))


class ResidualCNNFamily(ImageFamily):
    """Residual classifiers: 1 to 2 blocks of 4 to 12 channels, group or layer normalisation."""

    family = "residual-cnn"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        data = self.draw_images(generator)
        norms: tuple[Norm, ...] = ("group", "layer")
        width = 2 * integer(generator, 2, 4)
        channels = [width, *choose(generator, ((width,), (2 * width,), (width, 2 * width)))]
        network = residual_net(
            (data.images.shape[-1], *channels),
            len(data.class_names),
            choose(generator, ("relu", "gelu", "silu")),
            choose(generator, norms),
        )
        batch_size = round(log_uniform(generator, 8, 32))
        return classify(network, data, batch_size=batch_size, initializer=random_initializer(generator))


class AutoencoderFamily(ImageFamily):
    """Auto-encoders: fully connected with a code of 4 to 32, or convolutional with two levels.

    The sizes of the images must be multiples of 4.
    """

    family = "autoencoder"

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        data = self.draw_images(generator)
        activation = choose(generator, _ACTIVATIONS[:4])
        flat = integer(generator, 0, 2) > 0
        if flat:
            pixels, width = data.images[0].numel(), round(log_uniform(generator, 16, 96))
            code = round(log_uniform(generator, 4, 32))
            network = normed_mlp((pixels, width, code, width, pixels), activation)
        else:
            width = integer(generator, 4, 10)
            network = conv_autoencoder((data.images.shape[-1], width, width), activation)
        batch_size = round(log_uniform(generator, 16, 128 if flat else 32))
        initializer = random_initializer(generator)
        return autoencode(network, data, flat=flat, batch_size=batch_size, initializer=initializer)


class InrFamily(ImageFamily):
    """SIRENs that fit images.

    Args:
        data: Where images come from.
        sources: Names of image sets; ``"photos"`` are patches of photographs.
        sizes: Heights and widths, in pixels.
        images: Number of images of an instance; network ``i`` fits image ``i % images``.
        full_batch: Whether every update sees all pixels, as fits of small images usually do, in place of a random
            32 to 256 of them.
        widths: Least and largest width of the hidden layers.
        layers: Least and largest number of them.
        frequencies: Least and largest frequency (omega_0), relative to the side of the images in pixels; it is then
            limited to 10 to 40.
    """

    family = "inr"

    def __init__(
        self,
        data: DataSources | None = None,
        *,
        sources: Sequence[str] = ("photos", "digits"),
        sizes: Sequence[int] = (12, 16, 24, 32),
        images: int = 16,
        full_batch: bool = False,
        widths: tuple[int, int] = (16, 48),
        layers: tuple[int, int] = (1, 3),
        frequencies: tuple[float, float] = (0.75, 2.0),
    ) -> None:
        super().__init__(data, sources=sources, sizes=sizes)
        self.images, self.full_batch = images, full_batch
        ranges = {"widths": widths, "layers": layers, "frequencies": frequencies}
        for name, bounds in ranges.items():
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name} is {bounds!r}, expected the least and the largest, both positive")
        self.widths, self.layers, self.frequencies = widths, layers, frequencies

    def sample(self, generator: torch.Generator) -> Task:
        """See :class:`TaskFamily`."""
        data = self.draw_images(generator)
        chosen = torch.randint(len(data), (self.images,), generator=generator)
        side, channels = data.images.shape[1], data.images.shape[-1]
        omega = min(log_uniform(generator, *self.frequencies) * side, 40.0)
        width = round(log_uniform(generator, *self.widths))
        network = siren(width, integer(generator, *self.layers), channels, max(omega, 10.0))
        batch_size = round(log_uniform(generator, 32, 256))
        return InrTask(
            network,
            data.subset(chosen),
            batch_size=None if self.full_batch else batch_size,
            initializer=Initializer(kind="siren", omega=max(omega, 10.0)),
        )
