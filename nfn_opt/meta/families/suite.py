"""The fixed suite of held-out tasks on which learned optimizers are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from nfn_opt.meta.classification import Activation
from nfn_opt.meta.families.control import Acrobot, Pendulum
from nfn_opt.meta.families.image_tasks import autoencode, classify
from nfn_opt.meta.families.initializers import Initializer
from nfn_opt.meta.families.modules import CharTransformer
from nfn_opt.meta.families.network_tasks import CharTask, InrTask
from nfn_opt.meta.families.networks import (
    Norm,
    conv_autoencoder,
    conv_net,
    normed_mlp,
    residual_net,
    siren,
)
from nfn_opt.meta.families.policies import PolicyTask
from nfn_opt.meta.families.sources import DataSources
from nfn_opt.meta.tasks import Task


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """One task of the suite.

    Attributes:
        name: Its name.
        family: The family that it belongs to, a name of the table of families.
        build: Makes it from data.
        horizon: Number of updates for which it is trained.
        sources: Image sets that it needs.
    """

    name: str
    family: str
    build: Callable[[DataSources], Task]
    horizon: int = 1000
    sources: tuple[str, ...] = ()


def suite(names: Iterable[str] | None = None) -> tuple[SuiteTask, ...]:
    """The tasks of the suite, all or those named, in the order of the suite.

    Args:
        names: Names of tasks.

    Raises:
        ValueError: If there is no task of a name.

    Example:
        >>> [task.name for task in suite(["siren-patch", "cnn-mnist"])]
        ['cnn-mnist', 'siren-patch']
    """
    known = [task.name for task in SUITE]
    wanted = known if names is None else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"there is no suite task {', '.join(unknown)}; the suite has {', '.join(known)}")
    return tuple(task for task in SUITE if task.name in wanted)


def _images(make: Callable[[DataSources, str], Task], name: str, family: str, source: str) -> SuiteTask:
    return SuiteTask(name, family, lambda data: make(data, source), sources=(source,))


def _cnn(
    channels: tuple[int, ...], activation: Activation = "relu", norm: Norm = "none"
) -> Callable[[DataSources, str], Task]:
    def build(data: DataSources, source: str) -> Task:
        images = data.images(source, 8)
        widths = (images.images.shape[-1], *channels)
        network = conv_net(widths, len(images.class_names), activation, norm)
        return classify(network, images, batch_size=32)

    return build


def _resnet(data: DataSources, source: str) -> Task:
    images = data.images(source, 8)
    network = residual_net((images.images.shape[-1], 6, 12), len(images.class_names))
    return classify(network, images, batch_size=16, initializer=Initializer(kind="he_normal"))


def _autoencoder(data: DataSources, source: str) -> Task:
    images = data.images(source, 8)
    pixels = images.images[0].numel()
    return autoencode(normed_mlp((pixels, 64, 16, 64, pixels)), images, flat=True, batch_size=64)


def _conv_autoencoder(data: DataSources, source: str) -> Task:
    images = data.images(source, 8)
    network = conv_autoencoder((images.images.shape[-1], 8, 8), "silu")
    return autoencode(network, images, batch_size=16)


def _siren(data: DataSources, source: str, size: int, place: int) -> Task:
    images = data.images(source, size).subset(slice(place, place + 1))
    omega = 30.0
    network = siren(24, 2, images.images.shape[-1], omega)
    return InrTask(network, images, batch_size=128, initializer=Initializer(kind="siren", omega=omega))


def _transformer(dim: int, initializer: Initializer) -> Callable[[DataSources], Task]:
    def build(data: DataSources) -> Task:
        text = data.text()
        with torch.device("meta"):
            network = CharTransformer(len(text.alphabet), 16, dim=dim, heads=2)
        return CharTask(network, text, length=16, batch_size=4, initializer=initializer)

    return build


SUITE: tuple[SuiteTask, ...] = (
    _images(_cnn((8, 16)), "cnn-mnist", "cnn", "mnist"),
    _images(_cnn((8, 16)), "cnn-cifar", "cnn", "cifar10"),
    _images(_cnn((12, 12), "gelu", "group"), "cnn-cifar-norm", "cnn", "cifar10"),
    _images(_resnet, "resnet-mnist", "residual-cnn", "mnist"),
    _images(_resnet, "resnet-cifar", "residual-cnn", "cifar10"),
    SuiteTask("transformer-text-small", "transformer", _transformer(24, Initializer())),
    SuiteTask("transformer-text", "transformer", _transformer(40, Initializer(kind="gpt"))),
    SuiteTask("siren-patch", "inr", lambda data: _siren(data, "photos", 32, 7), sources=("photos",)),
    SuiteTask("siren-digit", "inr", lambda data: _siren(data, "mnist", 28, 5), sources=("mnist",)),
    _images(_autoencoder, "autoencoder-mnist", "autoencoder", "mnist"),
    _images(_autoencoder, "autoencoder-cifar", "autoencoder", "cifar10"),
    _images(_conv_autoencoder, "conv-autoencoder-mnist", "autoencoder", "mnist"),
    SuiteTask("policy-acrobot", "policy", lambda data: PolicyTask(Acrobot(), horizon=150), horizon=300),
    SuiteTask("policy-pendulum", "policy", lambda data: PolicyTask(Pendulum())),
)
"""The suite, in the order of its tables."""
