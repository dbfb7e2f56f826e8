"""What a family of inner problems is, and how random choices are drawn for it."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch

from nfn_opt.meta.families.initializers import Initializer, InitKind
from nfn_opt.meta.families.sources import DataSources
from nfn_opt.meta.tasks import Task

T = TypeVar("T")


class TaskFamily(abc.ABC):
    """A distribution of inner problems: architecture, initial parameters, batch size and data are random.

    Attributes:
        family: Its group in the table of families, which evaluation compares with what a rule was trained on.

    Args:
        data: Where images and text come from; the sources of the library if not given.

    Example:
        >>> from nfn_opt.meta.families import make_family
        >>> family = make_family("quadratic")
        >>> task = family.sample(torch.Generator().manual_seed(0))
        >>> family.family, task.space.names
        ('quadratic', ('x',))
    """

    family: ClassVar[str]

    def __init__(self, data: DataSources | None = None) -> None:
        self.data = data or DataSources()

    @property
    def name(self) -> str:
        """What the family is called in logs and files; its group, unless a subclass tells more."""
        return self.family

    @abc.abstractmethod
    def sample(self, generator: torch.Generator) -> Task:
        """Draw an instance."""


def choose(generator: torch.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[integer(generator, 0, len(options) - 1)]


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included, all equally likely."""
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def log_uniform(generator: torch.Generator, low: float, high: float) -> float:
    """A number between ``low`` and ``high`` whose logarithm is uniform.

    Example:
        >>> 0.1 <= log_uniform(torch.Generator().manual_seed(0), 0.1, 10.0) <= 10.0
        True
    """
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64, device=generator.device))
    return math.exp(math.log(low) + uniform * math.log(high / low))


def random_initializer(generator: torch.Generator) -> Initializer:
    """PyTorch's default in half of the cases, another distribution in the others; a scale in [1/2, 2]."""
    kinds: tuple[InitKind, ...] = ("lecun_normal", "he_normal", "glorot_uniform", "orthogonal")
    kind: InitKind = "default" if integer(generator, 0, 1) else choose(generator, kinds)
    return Initializer(kind=kind, scale=log_uniform(generator, 0.5, 2.0))
