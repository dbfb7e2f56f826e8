"""A user's own checkpoints, as networks that a predictor can read."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from nfn_opt.data.zoos.varied_architecture import VariedActivation, VariedArchitecture, VariedCnn
from nfn_opt.predictors.predictor import Predictor
from nfn_opt.weight_space import WeightSpace

__all__ = ["ENDINGS", "Checkpoint", "Reading", "read_folder"]

ENDINGS = (".pt", ".pth", ".safetensors")
"""Files that are read."""

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs keep the state dict of a network."""


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network that a predictor can read.

    Attributes:
        file: Where it comes from.
        params: Its weights by the names of its weight space, ``{name: shape}``.
        space: Its weight space.
        renamed: Whether its tensors have other names than the space's, and were matched by order and shape.
    """

    file: Path
    params: Mapping[str, Tensor]
    space: WeightSpace
    renamed: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was found in a folder.

    Attributes:
        checkpoints: The networks that can be read, in the order of their files' names.
        failed: Files of networks whose weights are not finite.
        unsupported: Files that hold no network that the predictor reads, each with the reason.
    """

    checkpoints: Sequence[Checkpoint]
    failed: Sequence[Path]
    unsupported: Mapping[Path, str]


def read_folder(folder: str | os.PathLike[str], predictor: Predictor) -> Reading:
    """Read all state dicts of a folder; what cannot be read is told, never left out in silence.

    ``.pt`` and ``.pth`` files are read with ``weights_only=True``, so that no code in them is run.

    Args:
        folder: The folder; files in folders below it are not read.
        predictor: What the networks are for.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.glob("*") if path.suffix in ENDINGS and path.is_file())
    if folder.is_file():
        raise FileNotFoundError(
            f"{os.fspath(folder)!r} is a file, expected a folder; give the one that it lies in"
        )
    if not files:
        what = f"no {', '.join(ENDINGS)} file in" if folder.is_dir() else "no folder"
        raise FileNotFoundError(f"there is {what} {os.fspath(folder)!r}; give the folder of your checkpoints")
    found: list[Checkpoint] = []
    failed: list[Path] = []
    unsupported: dict[Path, str] = {}
    for file in files:
        try:
            one = _matched(file, _state_dict(file), predictor)
        except ValueError as error:
            unsupported[file] = str(error)
            continue
        if all(bool(value.isfinite().all()) for value in one.params.values()):
            found.append(one)
        else:
            failed.append(file)
    return Reading(found, failed, unsupported)


def _state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: If it holds no state dict.
    """
    try:
        if file.suffix == ".safetensors":
            held: Any = safetensors.torch.load_file(file)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle make the unpickler raise anything
        # torch's own message offers to read the file with the risk of running its code.
        raise ValueError(
            f"it is damaged, or holds more than tensors and could run code when it is read ({type(error).__name__})"
        ) from error
    if isinstance(held, Mapping):
        held = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), held)
    if not isinstance(held, Mapping) or not held or not all(isinstance(one, Tensor) for one in held.values()):
        raise ValueError(
            f"it holds a {type(held).__name__} of other things, expected a state dict of tensors, by itself or under "
            f"one of the keys {', '.join(WRAPPERS)}"
        )
    # What DistributedDataParallel puts before every name.
    state = {str(name).removeprefix("module."): value for name, value in held.items()}
    if file.suffix == ".safetensors":  # such a file does not keep the order of its tensors
        state = {name: state[name] for name in sorted(state, key=_place)}
    return state


def _place(name: str) -> tuple[list[tuple[int, str]], int, str]:
    """Where a tensor stands among those of a module, by its name: numbers count as such, weights come before biases."""
    *module, kind = name.split(".")
    words = [word for part in module for word in re.split(r"(\d+)", part) if word]
    order = [(int(word), "") if word.isdigit() else (-1, word) for word in words]
    return order, {"weight": 0, "bias": 1}.get(kind, 2), kind


def _matched(file: Path, state: Mapping[str, Tensor], predictor: Predictor) -> Checkpoint:
    """The tensors as weights of a space that the predictor reads.

    Raises:
        ValueError: If they are not.
    """
    other = [name for name, value in state.items() if not value.is_floating_point()]
    if other:
        raise ValueError(
            f"its tensor {other[0]} holds no floating-point numbers (batch norm has such a counter), expected weights "
            "and biases alone"
        )
    shapes = [tuple(value.shape) for value in state.values()]
    space = _space_of(shapes, predictor) if predictor.shared else predictor.space
    expected = {spec.name: spec.shape for spec in space.parameters}
    if {name: tuple(value.shape) for name, value in state.items()} == expected:
        params, renamed = {name: state[name] for name in expected}, False
    elif shapes == list(expected.values()):
        params, renamed = dict(zip(expected, state.values(), strict=True)), True
    else:
        raise ValueError(
            f"its tensors have the shapes {_listed(shapes)}, expected {_listed(expected.values())}"
        )
    return Checkpoint(file, {name: value.float() for name, value in params.items()}, space, renamed)


def _space_of(shapes: Sequence[tuple[int, ...]], predictor: Predictor) -> WeightSpace:
    """The weight space of a chain of convolutions with tensors of these shapes, for a predictor of any architecture."""
    if shapes == [spec.shape for spec in predictor.space.parameters]:
        return predictor.space
    try:
        kernels = shapes[:-2:2]
        # Strides, activations and paddings make no difference to what may be permuted.
        activation: VariedActivation = "relu"
        found = VariedArchitecture(
            in_channels=kernels[0][1],
            widths=tuple(shape[0] for shape in kernels),
            kernel_sizes=tuple(shape[2] for shape in kernels),
            strides=(1,) * len(kernels),
            residuals=(-1,) * len(kernels),
            activations=(activation,) * len(kernels),
            classes=shapes[-1][0],
        )
        if list(found.parameter_shapes.values()) != list(shapes):
            raise ValueError("they are not those of one")
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"its tensors have the shapes {_listed(shapes)}, expected those of convolutions with square kernels and "
            "biases, one after the other, and a linear layer behind the mean over all pixels"
        ) from error
    return WeightSpace.from_module(
        VariedCnn(found), found.example_inputs(), symmetry=predictor.config.symmetry
    )


def _listed(shapes: Any) -> str:
    return ", ".join("x".join(map(str, shape)) or "1" for shape in shapes)
