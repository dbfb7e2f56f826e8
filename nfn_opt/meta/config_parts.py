"""Parts of the configuration of a meta-training run: inner problems, their training, the outer optimization."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from nfn_opt.meta.classification import Activation
from nfn_opt.meta.objective import Measure
from nfn_opt.meta.reparametrization import Level, MixedReparametrization

Network = Literal["mlp", "cnn"]

Estimator = Literal["backprop", "es", "pes"]

IMAGES = "images"
"""Name of the family of inner problems that :class:`TaskConfig` describes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The family "images": networks of one architecture that classify given images.

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
class FamilyConfig:
    """A family of inner problems, and how many of its instances are trained on.

    An instance is one architecture with its data, drawn at random from the family. Instances stay the same for
    the whole run, so that what was compiled for them is used again, unless they are redrawn.

    Attributes:
        name: Name of the family; "images" is the one that --task describes.
        instances: Number of instances. Of "images": of each image set.
        networks: Inner problems trained at once on each instance; inner.tasks if not given.
        horizon: Updates of one inner problem; inner.horizon if not given.
        shortest_horizon: Shortest random horizon; inner.shortest_horizon if not given.
        redraw_every: Outer steps after which the instances are drawn anew; never if not given.
        options: Options of the family.
    """

    name: str = IMAGES
    instances: int = 1
    networks: int | None = None
    horizon: int | None = None
    shortest_horizon: int | None = None
    redraw_every: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("instances", "networks", "redraw_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of the family {self.name!r} is {value}, expected at least 1")
        if self.name == IMAGES and (self.options or self.redraw_every):
            raise ValueError(
                f"the family {IMAGES!r} has options {dict(self.options)} and redraw_every {self.redraw_every}, "
                "expected neither: it is described by task, and all its instances are alike"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """The inner training and how the outer gradient is obtained from it.

    Attributes:
        tasks: Inner problems trained at once, for each instance.
        horizon: Updates of one inner problem, a multiple of the truncation; also the length of evaluations.
        truncation: Updates between two outer steps.
        shortest_truncation: If given, truncations are random between this and the truncation, log-uniform.
        shortest_horizon: If given, horizons are random between this and the horizon, log-uniform.
        estimator: Backpropagation through the truncation ("backprop"), evolution strategies ("es"), or
            persistent evolution strategies ("pes").
        mixture: Weights of several estimators whose gradients are added, in place of one.
        sigma: Standard deviation of the perturbations of evolution strategies.
        measure: What evolution strategies minimise: the loss, the loss relative to the one before training, or
            its logarithm.
        cap: Evolution strategies count larger losses as this many times the loss before training.
        floor: With measure "log", added to losses relative to the one before training: smaller ones are as good.
        emphasis: How much more late updates count for evolution strategies, as a power of the share of the
            training done; 0 for all alike.
        second_order: Backpropagation also differentiates the inner gradients: exact, in more time and memory.
        stagger: Spread the inner problems over all stages of training.
        rescale: Levels at which inner problems are randomly reparametrised; each problem draws one of them.
            The same level may be given several times; "none" leaves a problem as it is.
        rescale_range: Smallest and largest factor of the reparametrisation, log-uniform.
        sensitivity: If given, inner problems react to updates by a random factor between these two more.
        compile: Compile the inner step, where the estimator can; takes some tens of seconds for each instance.
    """

    tasks: int = 8
    horizon: int = 100
    truncation: int = 10
    shortest_truncation: int | None = None
    shortest_horizon: int | None = None
    estimator: Estimator = "backprop"
    mixture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sigma: float = 0.01
    measure: Measure = "relative"
    cap: float = 1.5
    floor: float = 1e-13
    emphasis: float = 0.0
    second_order: bool = False
    stagger: bool = True
    rescale: tuple[Literal["none"] | Level, ...] = ("none",)
    rescale_range: tuple[float, float] = (1e-3, 1e3)
    sensitivity: tuple[float, float] | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise ValueError(
                f"estimator is {self.estimator!r}, expected one of {', '.join(get_args(Estimator))}"
            )
        for name, weight in self.mixture.items():
            if name not in get_args(Estimator) or not float(weight) > 0:
                raise ValueError(
                    f"mixture has {name}={weight!r}, expected names from {', '.join(get_args(Estimator))} "
                    "with positive weights"
                )
        if not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}, expected a positive number")
        if self.compile and "backprop" in (self.mixture or {self.estimator: 1}):
            raise ValueError(
                "compile=True and backpropagation are both asked for, but a compiled step keeps no graph; "
                "use estimator 'es' or 'pes', or compile=False"
            )

    def reparametrization(self) -> MixedReparametrization | None:
        """The augmentation, if there is one."""
        if set(self.rescale) == {"none"}:
            return None
        low, high = self.rescale_range
        return MixedReparametrization(levels=self.rescale, low=low, high=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """The outer optimization, by AdamW with linear warm-up and cosine decay.

    Attributes:
        steps: Number of outer steps.
        lr: Largest learning rate.
        warmup: Outer steps over which the learning rate rises from 0.
        final_lr: Learning rate at the end, as a fraction of lr; 1 for a constant one.
        beta1: Decay of AdamW's mean of gradients.
        beta2: Decay of AdamW's mean of squared gradients.
        weight_decay: Decoupled weight decay of AdamW.
        clip: Largest norm of the outer gradient; longer ones are scaled down.
        balance: Divide the gradient of each instance by a running mean of its norm, so that instances with
            large losses do not drown the others.
        tasks_per_step: Instances trained on in one outer step, in turn; all if not given.
        lr_factors: Factors of the learning rate for outer parameters whose name matches a pattern, such as
            "lstm.*"; 0 keeps them as they are. The first pattern that matches counts.
        ema: If given, the saved and evaluated rule is an exponential mean of the outer parameters, with this
            decay.
        give_up_after: Outer steps in a row without a finite gradient after which the run is given up.
    """

    steps: int = 300
    lr: float = 5e-3
    warmup: int = 20
    final_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 1.0
    balance: bool = False
    tasks_per_step: int | None = None
    lr_factors: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ema: float | None = None
    give_up_after: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(
                f"steps and warmup are {self.steps} and {self.warmup}, expected at least 1 and 0"
            )
        if not (self.lr > 0 and self.clip > 0):
            raise ValueError(f"lr and clip are {self.lr} and {self.clip}, expected positive numbers")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected a decay between 0 and 1")
        if self.give_up_after < 1:
            raise ValueError(f"give_up_after is {self.give_up_after}, expected at least 1")
        if self.tasks_per_step is not None and self.tasks_per_step < 1:
            raise ValueError(f"tasks_per_step is {self.tasks_per_step}, expected at least 1")
        for pattern, factor in self.lr_factors.items():
            if not float(factor) >= 0:
                raise ValueError(f"the factor of {pattern!r} in lr_factors is {factor}, expected at least 0")
