"""How the axes of a tensor are written down by hand, and the sizes that follow from the shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

FIXED = "_"
"""What the name of a fixed axis starts with."""

Factor = str | int | None
AxisDescription = Factor | tuple[Factor, ...] | list[Factor | tuple[Factor, ...]]
"""A group's name, ``None`` or a number or a name that starts with ``_`` for what is fixed; a tuple for the product of
several, major first; a list for several one behind the other."""
Descriptions = Mapping[str, Sequence[AxisDescription]]


@dataclass(frozen=True)
class WrittenFactor:
    """One factor of an axis: its identity, its size where the description gives it, and whether it is fixed."""

    key: str
    fixed: bool
    size: int | None = None


@dataclass(frozen=True)
class WrittenAxis:
    """One stored axis of one tensor: its parts, each a product of factors, and its size where it is known."""

    tensor: str
    position: int
    parts: tuple[tuple[WrittenFactor, ...], ...]
    size: int | None

    def __str__(self) -> str:
        return f"{self.tensor}, axis {self.position}"

    @property
    def formula(self) -> str:
        """The description with the names of what is unknown."""
        return " + ".join(" * ".join(factor.key for factor in part) for part in self.parts)


def read_axes(
    tensor: str, description: Sequence[AxisDescription], shape: tuple[int, ...] | None
) -> list[WrittenAxis]:
    """The written axes of one tensor; for inputs and outputs, whose sizes are open, without a shape."""
    if isinstance(description, str) or not isinstance(description, Sequence):
        raise TypeError(
            f"{tensor}: the axes are {description!r}, expected a sequence with one entry for each axis; "
            f"write ({description!r},) for a tensor of one axis"
        )
    if shape is not None and len(description) != len(shape):
        raise ValueError(
            f"{tensor}: {len(description)} axes are described, expected {len(shape)} as in its shape {shape}; "
            "give one entry for each axis, None where it is fixed"
        )
    return [
        WrittenAxis(tensor, i, tuple(_parts(entry, tensor, i)), shape[i] if shape else None)
        for i, entry in enumerate(description)
    ]


def _parts(entry: AxisDescription, tensor: str, position: int) -> Iterator[tuple[WrittenFactor, ...]]:
    """The parts of one axis; what has no name is named after its place."""
    parts = entry if isinstance(entry, list) else [entry]
    products = [part if isinstance(part, tuple) else (part,) for part in parts]
    if not products or not all(products):
        raise TypeError(f"{tensor}, axis {position} is described by {entry!r}, expected at least one name")
    count = sum(len(product) for product in products)
    numbers = iter(range(count))
    for product in products:
        factors = []
        for factor in product:
            number = next(numbers)
            label = f"{tensor}.{position}" + (f".{number}" if count > 1 else "")
            factors.append(_factor(factor, label, f"{tensor}, axis {position}"))
        yield tuple(factors)


def _factor(given: object, label: str, where: str) -> WrittenFactor:
    if given is None:
        return WrittenFactor(label, True)
    if isinstance(given, str) and given:
        return WrittenFactor(given, given.startswith(FIXED))
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return WrittenFactor(label, True, given)
    raise TypeError(
        f"{where} is described by {given!r}, expected a name, None or a positive number; join several by a tuple "
        "(a product, major first) or a list (one behind the other)"
    )


def solve_sizes(places: Sequence[WrittenAxis], sizes: dict[str, int]) -> dict[str, int]:
    """Sizes of all factors: those given, and whatever follows from the shapes."""
    origins = dict.fromkeys(sizes, "sizes")
    for place in places:
        sizes.update({f.key: f.size for part in place.parts for f in part if f.size is not None})
    changed = True
    while changed:
        changed = False
        for place in places:
            unknown = {f.key for part in place.parts for f in part if f.key not in sizes}
            if len(unknown) == 1 and not _twice_in_a_product(place, *unknown):
                (key,) = unknown
                sizes[key], origins[key] = _remainder(place, key, sizes, origins), str(place)
                changed = True
    for place in places:
        _check_size(place, sizes, origins)
    return sizes


def _twice_in_a_product(place: WrittenAxis, key: str) -> bool:
    return any(sum(factor.key == key for factor in part) > 1 for part in place.parts)


def _remainder(place: WrittenAxis, key: str, sizes: Mapping[str, int], origins: Mapping[str, str]) -> int:
    """The size of the one name of a place whose size is unknown."""
    assert place.size is not None
    others, beside = 0, 0
    for part in place.parts:
        product = prod(sizes[factor.key] for factor in part if factor.key != key)
        if any(factor.key == key for factor in part):
            beside += product
        else:
            others += product
    rest = place.size - others
    if rest <= 0 or rest % beside:
        raise ValueError(
            f"{place} has {place.size} entries, and {place.formula} leaves no whole size for {key!r} beside "
            f"{_known(place, sizes, origins)}; correct the description or the sizes"
        )
    return rest // beside


def _check_size(place: WrittenAxis, sizes: Mapping[str, int], origins: Mapping[str, str]) -> None:
    unknown = sorted({f.key for part in place.parts for f in part if f.key not in sizes})
    if unknown:
        raise ValueError(
            f"{place} has {place.size} entries, and {place.formula} does not tell the sizes of "
            f"{', '.join(map(repr, unknown))}; give all but one by sizes={{name: size}}, those of fixed ones as numbers"
        )
    expected = sum(prod(sizes[factor.key] for factor in part) for part in place.parts)
    if place.size != expected:
        raise ValueError(
            f"{place} has {place.size} entries, expected {expected} = {place.formula}, with "
            f"{_known(place, sizes, origins)}; give what has different sizes different names"
        )


def _known(place: WrittenAxis, sizes: Mapping[str, int], origins: Mapping[str, str]) -> str:
    factors = dict.fromkeys(f.key for part in place.parts for f in part if f.key in sizes)
    return (
        ", ".join(f"{key} = {sizes[key]} (from {origins.get(key, 'the description')})" for key in factors)
        or "nothing"
    )


def check_unused(sizes: Mapping[str, int], tensors: Iterable[Sequence[WrittenAxis]]) -> None:
    """Refuse sizes of what the description does not name."""
    used = Counter(f.key for places in tensors for place in places for part in place.parts for f in part)
    for name, size in sizes.items():
        if name not in used:
            raise ValueError(
                f"sizes has {name!r}, expected names of the description: {', '.join(used)}; correct the name"
            )
        if size < 1:
            raise ValueError(
                f"sizes has {size} for {name!r}, expected at least 1; give the number of entries"
            )
