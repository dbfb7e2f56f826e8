"""The table of families: which ones the shipped rules are meta-trained on, and which ones are held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from nfn_opt.meta.families.base import TaskFamily
from nfn_opt.meta.families.image_families import (
    AutoencoderFamily,
    CNNFamily,
    InrFamily,
    MLPFamily,
    ResidualCNNFamily,
)
from nfn_opt.meta.families.other_families import PolicyFamily, RecurrentFamily, TransformerFamily
from nfn_opt.meta.families.quadratics import QuadraticFamily, TeacherStudentFamily
from nfn_opt.meta.families.sources import DataSources

Split = Literal["train", "held out"]


@dataclasses.dataclass(frozen=True)
class FamilyEntry:
    """A row of the table.

    Attributes:
        split: Whether the shipped rules are meta-trained on it.
        make: Its class.
    """

    split: Split
    make: type[TaskFamily]

    @property
    def description(self) -> str:
        """What its instances are, in a line."""
        return (self.make.__doc__ or "").strip().splitlines()[0]


FAMILIES: dict[str, FamilyEntry] = {
    entry.make.family: entry
    for entry in (
        FamilyEntry("train", MLPFamily),
        FamilyEntry("train", QuadraticFamily),
        FamilyEntry("train", TeacherStudentFamily),
        FamilyEntry("train", RecurrentFamily),
        FamilyEntry("held out", CNNFamily),
        FamilyEntry("held out", ResidualCNNFamily),
        FamilyEntry("held out", AutoencoderFamily),
        FamilyEntry("held out", InrFamily),
        FamilyEntry("held out", TransformerFamily),
        FamilyEntry("held out", PolicyFamily),
    )
}
"""All families by name."""


def make_family(name: str, data: DataSources | None = None, **options: Any) -> TaskFamily:
    """A family of the table.

    Args:
        name: Its name.
        data: Where images and text come from.
        options: Further options of the family's class.

    Raises:
        ValueError: If there is no family of this name.
    """
    return FAMILIES[_known([name])[0]].make(data, **options)


def family_names(split: Split) -> tuple[str, ...]:
    """Names of the families of one split.

    Example:
        >>> family_names("train")
        ('mlp', 'quadratic', 'teacher-student', 'recurrent')
    """
    return tuple(name for name, entry in FAMILIES.items() if entry.split == split)


def family_table() -> str:
    """The table, as Markdown.

    Example:
        >>> print(family_table().splitlines()[2])
        | `mlp` | train | Fully connected classifiers: 1 to 3 hidden layers of 8 to 64, with or without layer ... |
    """
    rows = [f"| `{name}` | {entry.split} | {entry.description} |" for name, entry in FAMILIES.items()]
    return "\n".join(["| Family | Split | Instances |", "|---|---|---|", *rows])


def check_disjoint(trained_on: Iterable[str], evaluated_on: Iterable[str]) -> None:
    """Refuse an evaluation on families that a rule was meta-trained on.

    Args:
        trained_on: Families that the rule was meta-trained on, as its file says.
        evaluated_on: Families of the tasks that it is about to be evaluated on.

    Raises:
        ValueError: If they have a family in common, or one is not in the table.

    Example:
        >>> check_disjoint(["mlp", "quadratic"], ["cnn"])
        >>> check_disjoint(["mlp", "inr"], ["inr", "cnn"])
        Traceback (most recent call last):
        ...
        ValueError: the rule was meta-trained on inr, so results there are not held out; evaluate on ...
    """
    trained, evaluated = set(_known(trained_on)), set(_known(evaluated_on))
    if common := sorted(trained & evaluated):
        rest = [name for name in FAMILIES if name not in trained]
        raise ValueError(
            f"the rule was meta-trained on {', '.join(common)}, so results there are not held out; "
            f"evaluate on other families ({', '.join(rest)}), or report them as trained on"
        )


def _known(names: Iterable[str]) -> list[str]:
    names = list(names)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise ValueError(f"there is no family {', '.join(unknown)}; the table has {', '.join(FAMILIES)}")
    return names
