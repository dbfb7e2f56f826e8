"""Tasks on images, from an image set and a network."""

from __future__ import annotations

from typing import Any

from torch import nn

from nfn_opt.data.images import ImageData
from nfn_opt.meta.families.network_tasks import SupervisedTask, cross_entropy, mean_squared_error


def classify(network: nn.Module, data: ImageData, *, flat: bool = False, **options: Any) -> SupervisedTask:
    """Classifying images.

    Args:
        network: From images (B, C, H, W), or rows of pixels (B, H * W * C), to logits.
        data: Images with labels.
        flat: Whether the network takes rows of pixels.
        options: Of :class:`SupervisedTask`.
    """
    inputs = data.images.flatten(1) if flat else data.images.movedim(-1, 1)
    return SupervisedTask(network, 2 * inputs - 1, data.labels, objective=cross_entropy, **options)


def autoencode(network: nn.Module, data: ImageData, *, flat: bool = False, **options: Any) -> SupervisedTask:
    """Putting out the image that was put in, by mean squared error of values in [0, 1].

    Args:
        network: From images to images, (B, C, H, W) or rows of pixels.
        data: Images.
        flat: Whether the network takes rows of pixels.
        options: Of :class:`SupervisedTask`.
    """
    inputs = data.images.flatten(1) if flat else data.images.movedim(-1, 1)
    return SupervisedTask(network, inputs, inputs, objective=mean_squared_error, **options)
