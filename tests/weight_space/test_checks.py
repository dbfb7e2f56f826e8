"""Every refusal of tensors, features, permutations and hand-made spaces says what is wrong and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Axis, Permutation, TensorSpec, WeightSpace
from nfn_opt.weight_space.checks import check_features
from tests.weight_space.models import between, draw

SPACE = WeightSpace.from_module(between(nn.ReLU()), draw(2, 3))
STATE = between(nn.ReLU()).state_dict()
BATCH = {name: torch.stack([tensor, tensor]) for name, tensor in STATE.items()}
FEATURES = SPACE.features([STATE, STATE])
NOTHING = Permutation({})


def without(tensors: dict[str, Any], name: str = "2.bias") -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key != name}


def changed(tensors: dict[str, Any], change: Callable[[Tensor], Any], name: str = "2.bias") -> dict[str, Any]:
    return {**tensors, name: change(tensors[name])}


Use = Callable[[Any], object]
CASES: dict[str, tuple[Use, Any, str]] = {
    "missing tensor": (
        lambda t: SPACE.permute(t, NOTHING),
        without(STATE),
        "missing 2.bias. Expected the names 0.weight",
    ),
    "unknown tensor": (lambda t: SPACE.permute(t, NOTHING), {**STATE, "more": draw(1)}, "unknown more"),
    "both": (lambda t: SPACE.permute(t, NOTHING), {"more": draw(1)}, "missing 0.weight, .*; unknown more"),
    "shape": (
        lambda t: SPACE.permute(t, NOTHING),
        changed(STATE, lambda t: t[None]),
        r"2.bias has shape \(1, 2\), expected \(2,\)",
    ),
    "network of another width": (
        SPACE.features,
        [nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2))],
        "has shape",
    ),
    "network of other names": (SPACE.features, [nn.Linear(3, 6)], "missing 0.weight"),
    "one network": (SPACE.features, between(nn.ReLU()), "one network, expected a sequence"),
    "one state_dict": (SPACE.features, STATE, "one network, expected a sequence"),
    "no network": (SPACE.features, [], "models is empty"),
    "networks of two types": (
        SPACE.features,
        [STATE, {name: tensor.double() for name, tensor in STATE.items()}],
        "0.weight of network 1 is torch.float64 of shape .* expected torch.float32",
    ),
    "networks on two devices": (
        SPACE.features,
        [STATE, {name: tensor.to("meta") for name, tensor in STATE.items()}],
        "of network 1 is .* on meta, expected .* on cpu",
    ),
    "no batch": (SPACE.as_features, STATE, r"0.weight has shape \(6, 3\), expected \(batch, 6, 3\)"),
    "two batch sizes": (
        lambda other: SPACE.as_features(BATCH, other),
        {name: tensor[:1] for name, tensor in BATCH.items()},
        r"0.weight of channel 1 is .* of shape \(1, 6, 3\) on cpu, expected torch.float32 of shape \(2, 6, 3\)",
    ),
    "two batch sizes in one": (
        SPACE.as_features,
        changed(BATCH, lambda t: t[:1]),
        "features of 2.bias have shape",
    ),
    "no tensors": (lambda _: SPACE.as_features(), None, "no tensors given, expected at least one dict"),
    "missing feature": (
        SPACE.from_features,
        without(FEATURES),
        "weight features do not fit .* missing 2.bias",
    ),
    "extra feature": (SPACE.from_features, {**FEATURES, "more": draw(2, 1)}, "unknown more"),
    "features of another shape": (
        SPACE.from_features,
        changed(FEATURES, lambda t: t[:, :1]),
        r"features of 2.bias have shape \(2, 1, 1\), expected \(batch, \*axes, channels\) = \(2, 2, 1\)",
    ),
    "features without channels": (
        SPACE.from_features,
        {n: t[..., 0] for n, t in FEATURES.items()},
        "have shape",
    ),
    "features without axes": (
        SPACE.from_features,
        changed(FEATURES, lambda t: t.sum(), "0.weight"),
        r"have shape \(\)",
    ),
    "two numbers of channels": (
        SPACE.from_features,
        changed(FEATURES, lambda t: t.repeat(1, 1, 2)),
        "have shape",
    ),
    "other channels": (lambda f: check_features(SPACE, f, channels=3), FEATURES, r"= \(2, 6, 3, 3\)"),
    "two dtypes": (
        SPACE.from_features,
        changed(FEATURES, Tensor.double),
        "features of 2.bias are torch.float64 on cpu, expected torch.float32 on cpu as those of 0.weight",
    ),
    "two devices": (
        SPACE.from_features,
        changed(FEATURES, lambda t: t.to("meta")),
        "on meta, expected .* on cpu",
    ),
    "channel": (lambda c: SPACE.from_features(FEATURES, c), 1, "channel is 1, expected less than 1"),
    "negative channel": (lambda c: SPACE.from_features(FEATURES, c), -2, "channel is -2"),
    "index": (lambda i: SPACE.write(FEATURES, between(nn.ReLU()), i), 2, "index is 2, expected less than 2"),
    "written to another model": (lambda m: SPACE.write(FEATURES, m), nn.Linear(3, 6), "missing 0.weight"),
    "permuted features": (lambda f: SPACE.permute_features(f, NOTHING), without(FEATURES), "missing 2.bias"),
    "permutation of another space": (
        lambda p: SPACE.permute(STATE, p),
        Permutation({"h2": torch.arange(6)}),
        "moves the group 'h2', expected some of h1",
    ),
    "permutation of another size": (
        lambda p: SPACE.permute_features(FEATURES, p),
        Permutation({"h1": torch.arange(5)}),
        "indices of group 'h1' are no permutation of 0 to 5",
    ),
    "not a permutation": (
        lambda p: SPACE.permute(STATE, p),
        Permutation({"h1": torch.zeros(6, dtype=torch.int64)}),
        "expected each number once",
    ),
    "space of nothing": (WeightSpace, (), "the weight space has no parameters"),
    "sizes of one axis": (
        WeightSpace,
        (TensorSpec("a", (3,), (Axis("h", 3),)), TensorSpec("b", (4,), (Axis("h", 4),))),
        "b: axis 'h' has size 4, expected 3",
    ),
    "axes of a tensor": (
        lambda axes: TensorSpec("a", (3, 4), axes),
        (Axis("h", 3), Axis("k", 2)),
        r"a: the axes \['h:3', 'k:2'\] hold 6 entries, expected 12",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    use, argument, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        use(argument)


def test_values_that_are_not_tensors() -> None:
    with pytest.raises(TypeError, match=r"2.bias is a list, expected a torch.Tensor"):
        SPACE.permute(changed(STATE, Tensor.tolist), NOTHING)
    with pytest.raises(TypeError, match=r"features of 2.bias is a ndarray, expected a torch.Tensor"):
        SPACE.from_features(changed(FEATURES, Tensor.numpy))


def test_values_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"tensors is a Sequential, expected a dict .* model.state_dict\(\)"):
        SPACE.permute(between(nn.ReLU()), NOTHING)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="permutation is a dict, expected a Permutation"):
        SPACE.permute(STATE, {"h1": torch.arange(6)})  # type: ignore[arg-type]
    for indices, kind in (([5, 4, 3, 2, 1, 0], "list"), (torch.arange(6.0), "torch.float32")):
        with pytest.raises(TypeError, match=f"indices of group 'h1' are {kind}, expected a tensor of whole"):
            SPACE.permute(STATE, Permutation({"h1": indices}))  # type: ignore[dict-item]


def test_unknown_parameter() -> None:
    with pytest.raises(KeyError, match=r"no parameter '1.weight' in this weight space; it has 0.weight"):
        SPACE["1.weight"]
