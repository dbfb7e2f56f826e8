"""Factors that are only ever treated as one axis are one group; all others stay apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.weight_space.models import Program, check, draw, randomised, views

IMAGE = draw(2, 3, 4, 5)
Forward = Callable[[Any, Tensor], Tensor]

JOINED: dict[str, Forward] = {
    "flatten": lambda m, x: m.b(m.a(x.flatten(1))),
    "reshape in steps": lambda m, x: m.b(m.a(x.flatten(2).contiguous().reshape(2, 12, 5).view(2, -1))),
    "scaled pixel by pixel": lambda m, x: m.b(m.a(torch.sigmoid(x * 2 - 1).flatten(1))),
    "weighed pixel by pixel": lambda m, x: m.b(m.a((x * m.mask).flatten(1))),
    "centred": lambda m, x: m.b(m.a((x - x.mean((1, 2, 3), keepdim=True)).flatten(1))),
    "normalised": lambda m, x: m.b(m.a(F.layer_norm(x.flatten(1), (60,)))),
    "softmax over pixels": lambda m, x: m.b(m.a(x.flatten(1).softmax(1))),
    "einsum": lambda m, x: m.b(torch.einsum("bchw,ochw->bo", x, m.a.weight.view(7, 3, 4, 5))),
    "batch last": lambda m, x: m.b((m.a.weight @ x.flatten(1).t()).t()),
}

APART: dict[str, tuple[Forward, list[int]]] = {
    "mean over columns": (lambda m, x: m.b(m.a((x - x.mean(3, keepdim=True)).flatten(1))), [5, 12]),
    "mean over channels": (lambda m, x: m.b(m.a((x - x.mean(1, keepdim=True)).flatten(1))), [3, 20]),
    "softmax over columns": (lambda m, x: m.b(m.a(x.softmax(3).flatten(1))), [3, 4, 5]),
    "norm of rows": (lambda m, x: m.b(m.a(F.layer_norm(x, (4, 5)).flatten(1))), [3, 4, 5]),
    "scale of channels": (lambda m, x: m.b(m.a((x * m.mask[:, :1, :1]).flatten(1))), [3, 20]),
    "bias of columns": (lambda m, x: m.b(m.a((x + m.columns).flatten(1))), [5, 12]),
    "transposed": (lambda m, x: m.b(m.a(x.flatten(1)) + m.a(x.transpose(2, 3).reshape(2, 60))), []),
    "two orders": (lambda m, x: m.b(m.a(x.flatten(1)) + m.c(x.permute(0, 2, 3, 1).flatten(1))), [3, 20]),
    "contracted by columns": (lambda m, x: m.b(m.a((x @ m.square).flatten(1))), [5, 5, 12]),
}


def model(forward: Forward) -> nn.Module:
    return Program(
        forward,
        a=nn.Linear(60, 7),
        b=nn.Linear(7, 2),
        c=nn.Linear(60, 7),
        mask=nn.Parameter(draw(3, 4, 5)),
        columns=nn.Parameter(draw(5)),
        square=nn.Parameter(draw(5, 5)),
    )


@pytest.mark.parametrize("name", JOINED)
def test_joined(name: str) -> None:
    space = check(model(JOINED[name]), IMAGE, "all")
    assert space.groups == {"in1": 60, "h1": 7, "out1": 2}
    assert str(space.inputs[0]) == "input 0 (2, in1:60)"


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    forward, sizes = APART[name]
    groups = check(model(forward), IMAGE, "all").groups
    assert sorted(size for size in groups.values() if size not in (7, 2)) == sizes


def test_parameters_of_several_axes_are_viewed_as_one() -> None:
    space = check(model(JOINED["weighed pixel by pixel"]), IMAGE, "all")
    assert views(space)[0] == "mask (in1:60)"


def test_axes_of_size_1_between_factors() -> None:
    space = check(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), draw(2, 3, 1, 4, 1), "all")
    assert str(space.inputs[0]) == "input 0 (2, in1:12, 1, 1)"


def test_hidden_neurons_split_and_put_back() -> None:
    through = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.ReLU(), nn.Flatten())
    assert check(nn.Sequential(nn.Linear(3, 6), through, nn.Linear(6, 2)), draw(2, 3)).groups == {"h1": 6}


def test_outputs_of_several_axes() -> None:
    space = check(nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (2, 3))), draw(4, 3), "all")
    assert str(space.outputs[0]) == "output 0 (4, out1:6)"


def test_fixed_pixels_are_not_joined_with_channels() -> None:
    space = check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(24, 2)), IMAGE, "all")
    assert space.groups == {"h1": 4, "in1": 3, "out1": 2}


def test_time_steps_stay_free_of_the_batch() -> None:
    layers = randomised(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    space = check(layers, draw(3, 7, 5), "all")
    assert str(space.inputs[0]) == "input 0 (3, 7, in1:5)"
    assert space.verify(layers, draw(2, 7, 5)) < 1e-10
