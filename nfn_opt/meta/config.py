"""Configuration of a meta-training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from nfn_opt.meta.classification import Activation
from nfn_opt.meta.reparametrization import Level, Reparametrization

Network = Literal["mlp", "cnn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The inner problems: networks that classify images.

    Attributes:
        images: Image sets, each a name known to nfn_opt.data.load_images or the path of an .npz file or a
            folder. With several, every outer step trains on all of them.
        size: Height and width to which images are resized, in pixels; unchanged if not given.
        gray: Convert images to gray.
        held_out: Fraction of the images that is kept for evaluation and never trained on.
        network: Fully connected ("mlp") or convolutional ("cnn").
        widths: Widths of the hidden layers, or channels of the convolutions.
        activation: Activation of the hidden layers.
        batch_size: Images in a minibatch.
    """

    images: tuple[str, ...] = ("digits",)
    size: int | None = None
    gray: bool = False
    held_out: float = 0.2
    network: Network = "mlp"
    widths: tuple[int, ...] = (32,)
    activation: Activation = "relu"
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not self.images or len(set(self.images)) < len(self.images):
            raise ValueError(f"images is {self.images}, expected one or more image sets, each named once")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}, expected a fraction between 0 and 1")
        if self.network not in get_args(Network):
            raise ValueError(f"network is {self.network!r}, expected one of {', '.join(get_args(Network))}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """The inner training and how it is differentiated.

    Attributes:
        tasks: Inner problems trained at once, for each image set.
        horizon: Updates of one inner problem, a multiple of the truncation; also the length of evaluations.
        truncation: Updates between two outer steps, through which the gradient is propagated.
        shortest_horizon: If given, horizons are random between this and the horizon, log-uniform.
        second_order: Also differentiate the inner gradients: the exact gradient, in more time and memory.
        stagger: Spread the inner problems over all stages of training.
        rescale: Level at which inner problems are randomly reparametrised; "none" to leave them.
        rescale_range: Smallest and largest factor of the reparametrisation, log-uniform.
    """

    tasks: int = 8
    horizon: int = 100
    truncation: int = 10
    shortest_horizon: int | None = None
    second_order: bool = False
    stagger: bool = True
    rescale: Literal["none"] | Level = "none"
    rescale_range: tuple[float, float] = (1e-3, 1e3)

    def reparametrization(self) -> Reparametrization | None:
        """The augmentation, if there is one."""
        if self.rescale == "none":
            return None
        low, high = self.rescale_range
        return Reparametrization(level=self.rescale, low=low, high=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """The outer optimization, by AdamW with linear warm-up and cosine decay.

    Attributes:
        steps: Number of outer steps.
        lr: Largest learning rate.
        warmup: Outer steps over which the learning rate rises from 0.
        final_lr: Learning rate at the end, as a fraction of lr.
        beta1: Decay of AdamW's mean of gradients.
        beta2: Decay of AdamW's mean of squared gradients.
        weight_decay: Decoupled weight decay of AdamW.
        clip: Largest norm of the outer gradient; longer ones are scaled down.
    """

    steps: int = 300
    lr: float = 5e-3
    warmup: int = 20
    final_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(
                f"steps and warmup are {self.steps} and {self.warmup}, expected at least 1 and 0"
            )
        if not (self.lr > 0 and self.clip > 0):
            raise ValueError(f"lr and clip are {self.lr} and {self.clip}, expected positive numbers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaTrainConfig:
    """A meta-training run.

    Attributes:
        out: Folder that everything is written to.
        rule: Kind of update rule.
        rule_options: Options of the rule.
        start_from: File of a rule whose parameters are trained further, in place of a new rule.
        task: The inner problems.
        inner: The inner training.
        outer: The outer optimization.
        seed: Seed of the initial rule and of all inner problems.
        device: Where to compute, such as "cpu" or "cuda".
        evaluate_every: Outer steps between evaluations on held-out inner problems.
        evaluation_seeds: Number of seeds of an evaluation.
        checkpoint_every: Outer steps between checkpoints.
        tensorboard: Also log for TensorBoard.
        quiet: Show no progress.
    """

    out: Path
    rule: str = "nfn"
    rule_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start_from: Path | None = None
    task: TaskConfig = TaskConfig()
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    seed: int = 0
    device: str = "cpu"
    evaluate_every: int = 50
    evaluation_seeds: int = 5
    checkpoint_every: int = 100
    tensorboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("evaluate_every", "evaluation_seeds", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.start_from is not None and self.rule_options:
            raise ValueError(
                f"start_from and rule_options {dict(self.rule_options)} are both given; the file {self.start_from} "
                "has its own options, leave rule_options out"
            )

    def record(self) -> dict[str, Any]:
        """All options as nested dicts of JSON values."""
        return _plain(dataclasses.asdict(self))


FREE_TO_CHANGE = ("out", "checkpoint_every", "tensorboard", "quiet")
"""Options that do not change the result, so that a resumed run may have others."""


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two records of a configuration, one line for each option.

    Example:
        >>> differences({"seed": 0, "outer": {"lr": 0.1}}, {"seed": 0, "outer": {"lr": 0.2}})
        ['outer.lr was 0.1, now 0.2']
    """
    found = []
    for key in sorted(stored.keys() | now.keys()):
        before, after = stored.get(key), now.get(key)
        if not prefix and key in FREE_TO_CHANGE:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {before!r}, now {after!r}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
