"""The inner problems that a configuration asks for, to train on and to evaluate on."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch

from nfn_opt.data import ImageData, load_images
from nfn_opt.meta.classification import CNNClassification, MLPClassification
from nfn_opt.meta.config import FamilyConfig, MetaTrainConfig, TaskConfig
from nfn_opt.meta.config_parts import IMAGES
from nfn_opt.meta.families import (
    FAMILIES,
    Augmentation,
    AugmentedFamily,
    DataSources,
    TaskFamily,
    make_family,
)
from nfn_opt.meta.placement import on_device
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.meta.records import from_record
from nfn_opt.meta.tasks import Task
from nfn_opt.optim.rule import closest
from nfn_opt.weight_space import WeightSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where the instances of one place in a run come from.

    Attributes:
        name: Name of the place, unlike all others of the run: ``"family/number"``, or an image set.
        family: What the configuration says of its family.
        draw: Gives the instance of an epoch: the epoch grows by one when the instance is to be drawn anew.
    """

    name: str
    family: FamilyConfig
    draw: Callable[[int], Task]

    def epoch(self, step: int) -> int:
        """Which instance outer step ``step``, counted from 0, is made on."""
        return 0 if self.family.redraw_every is None else step // self.family.redraw_every


def make_task(config: TaskConfig, data: ImageData, device: torch.device | str = "cpu") -> Task:
    """The inner problem of the family "images" on given images."""
    if config.network == "mlp":
        return MLPClassification(
            data,
            hidden=config.widths,
            activation=config.activation,
            batch_size=config.batch_size,
            device=device,
        )
    return CNNClassification(
        data,
        channels=config.widths,
        activation=config.activation,
        batch_size=config.batch_size,
        device=device,
    )


def split_images(config: TaskConfig, source: str) -> tuple[ImageData, ImageData]:
    """The images that a configuration trains on, and those that it keeps for evaluation."""
    data = load_images(source, size=config.size, gray=config.gray)
    parts = data.split({"train": 1 - config.held_out, "held_out": config.held_out})
    return parts["train"], parts["held_out"]


def training_sources(config: MetaTrainConfig, device: str) -> list[TaskSource]:
    """What is trained on; instances of different families alternate.

    Raises:
        ValueError: If there is no family of a name, or its options are refused.
    """
    return _sources(config, config.families, device, held_out=False)


def held_out_sources(config: MetaTrainConfig, device: str) -> list[TaskSource]:
    """What is evaluated on: other instances of the families that are trained on, and further families."""
    fresh = [
        dataclasses.replace(family, instances=1 if family.name == IMAGES else config.evaluation_instances)
        for family in config.families
    ]
    return _sources(config, [*fresh, *config.evaluation_families], device, held_out=True)


def common_space(tasks: Iterable[tuple[str, Task]]) -> WeightSpace:
    """The weight space of all tasks.

    Args:
        tasks: Names and tasks.

    Raises:
        ValueError: If there are several; the message names two tasks.
    """
    spaces = [(name, task.space) for name, task in tasks]
    first, space = spaces[0]
    for name, other in spaces[1:]:
        if other.fingerprint != space.fingerprint:
            raise ValueError(
                f"sharing='per_parameter' makes outer parameters for one weight space, but the inner problems "
                f"have several: {first} has {space.fingerprint}, {name} has {other.fingerprint}; train on one "
                "architecture, or take sharing='by_relation'"
            )
    return space


def _sources(
    config: MetaTrainConfig, families: Sequence[FamilyConfig], device: str, *, held_out: bool
) -> list[TaskSource]:
    names = Counter[str]()
    each = []
    for family in families:
        names[family.name] += 1
        label = family.name if names[family.name] == 1 else f"{family.name}-{names[family.name]}"
        make = _image_sources if family.name == IMAGES else _family_sources
        each.append(make(config, family, label, device, held_out))
    rounds = itertools.zip_longest(*each)
    return [source for one in rounds for source in one if source is not None]


def _image_sources(
    config: MetaTrainConfig, family: FamilyConfig, label: str, device: str, held_out: bool
) -> list[TaskSource]:
    if label != IMAGES:
        raise ValueError(
            f"the family {IMAGES!r} is given twice, expected once; raise its number of instances"
        )
    tasks = {
        images: make_task(config.task, split_images(config.task, images)[held_out], device)
        for images in config.task.images
    }
    return [
        TaskSource(
            name=images if family.instances == 1 else f"{images}/{number}",
            family=family,
            draw=functools.partial(_same, task),
        )
        for number in range(family.instances)
        for images, task in tasks.items()
    ]


def _same(task: Task, epoch: int) -> Task:
    return task


def _family_sources(
    config: MetaTrainConfig, family: FamilyConfig, label: str, device: str, held_out: bool
) -> list[TaskSource]:
    drawn = _make_family(config, family)
    use = "held-out task" if held_out else "task"

    def draw(name: str, epoch: int) -> Task:
        task = drawn.sample(seeded_generator(config.seed, f"{use}/{name}/{epoch}"))
        return task if device == "cpu" else on_device(task, device)

    names = [f"{label}/{number}" for number in range(family.instances)]
    return [TaskSource(name=name, family=family, draw=functools.partial(draw, name)) for name in names]


def _make_family(config: MetaTrainConfig, family: FamilyConfig) -> TaskFamily:
    if family.name not in FAMILIES:
        known = [IMAGES, *FAMILIES]
        raise ValueError(
            f"there is no family of inner problems {family.name!r}{closest(family.name, known)}, expected one of "
            f"{', '.join(known)}"
        )
    options = dict(family.options)
    augmentation = options.pop("augmentation", None)
    data = _data_sources(tuple(sorted(config.data.items())), config.data_limit)
    try:
        made = make_family(family.name, data, **options)
        return (
            made if augmentation is None else AugmentedFamily(made, from_record(Augmentation, augmentation))
        )
    except TypeError as error:
        raise ValueError(
            f"the family {family.name!r} refuses its options {dict(family.options)}: {error}"
        ) from error


@functools.lru_cache(maxsize=4)
def _data_sources(files: tuple[tuple[str, str], ...], limit: int) -> DataSources:
    """Images and text, loaded once for all families."""
    return DataSources(dict(files), limit=limit)
