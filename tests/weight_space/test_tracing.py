from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry
from tests.weight_space.models import Program, check, draw, two_layers, views


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and every parameter as it must be viewed under each symmetry."""

    model: Callable[[], nn.Module]
    inputs: Any
    hidden: str
    every: str


def flattened_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4, 5),
        nn.Tanh(),
        nn.Linear(5, 2),
    )


def residual() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.stem(x)
        for block in m.blocks:
            h = h + block["second"](F.relu(block["first"](h)))
        return m.head(h)

    blocks = [nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)}) for _ in range(2)]
    return Program(forward, stem=nn.Linear(3, 4), blocks=nn.ModuleList(blocks), head=nn.Linear(4, 2))


def tied() -> nn.Module:
    encode, again = nn.Linear(3, 5), nn.Linear(3, 5, bias=False)
    again.weight = encode.weight
    return Program(
        lambda m, x: m.decode(torch.tanh(m.encode(x)) + torch.sin(m.again(x))),
        encode=encode,
        again=again,
        decode=nn.Linear(5, 3, bias=False),
    )


CASES = {
    "mlp": Case(
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2)
        ),
        draw(2, 3),
        "0.weight (h1:4, 3); 0.bias (h1:4); 2.weight (h2:5, h1:4); 4.weight (2, h2:5); 4.bias (2)",
        "0.weight (h1:4, in1:3); 0.bias (h1:4); 2.weight (h2:5, h1:4); 4.weight (out1:2, h2:5); 4.bias (out1:2)",
    ),
    "equal widths stay apart": Case(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        draw(4, 4),
        "0.weight (h1:4, 4); 0.bias (h1:4); 2.weight (h2:4, h1:4); 2.bias (h2:4); 4.weight (4, h2:4); 4.bias (4)",
        "0.weight (h1:4, in1:4); 0.bias (h1:4); 2.weight (h2:4, h1:4); 2.bias (h2:4); 4.weight (out1:4, h2:4); "
        "4.bias (out1:4)",
    ),
    "width 1": Case(
        lambda: nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)),
        draw(2, 1),
        "0.weight (1, 1); 0.bias (1); 2.weight (h1:3, 1); 2.bias (h1:3); 4.weight (1, h1:3); 4.bias (1)",
        "0.weight (1, 1); 0.bias (1); 2.weight (h1:3, 1); 2.bias (h1:3); 4.weight (1, h1:3); 4.bias (1)",
    ),
    "one layer": Case(
        lambda: nn.Linear(3, 2),
        draw(2, 3),
        "weight (2, 3); bias (2)",
        "weight (out1:2, in1:3); bias (out1:2)",
    ),
    "cnn, flattened": Case(
        flattened_cnn,
        draw(2, 3, 4, 4),
        "0.weight (h1:4, 3, 3, 3); 1.weight (h1:4); 1.bias (h1:4); 5.weight (h2:5, h1:4, 4); 5.bias (h2:5); "
        "7.weight (2, h2:5); 7.bias (2)",
        "0.weight (h1:4, in1:3, 3, 3); 1.weight (h1:4); 1.bias (h1:4); 5.weight (h2:5, h1:4, 4); 5.bias (h2:5); "
        "7.weight (out1:2, h2:5); 7.bias (out1:2)",
    ),
    "conv1d, global pooling": Case(
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 4)
        ),
        draw(2, 2, 9),
        "0.weight (h1:3, 2, 3); 0.bias (h1:3); 4.weight (4, h1:3); 4.bias (4)",
        "0.weight (h1:3, in1:2, 3); 0.bias (h1:3); 4.weight (out1:4, h1:3); 4.bias (out1:4)",
    ),
    "conv3d": Case(
        lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Conv3d(3, 2, (1, 2, 1), dilation=1)),
        draw(2, 1, 3, 3, 3),
        "0.weight (h1:3, 1, 2, 2, 2); 0.bias (h1:3); 2.weight (2, h1:3, 1, 2, 1); 2.bias (2)",
        "0.weight (h1:3, 1, 2, 2, 2); 0.bias (h1:3); 2.weight (out1:2, h1:3, 1, 2, 1); 2.bias (out1:2)",
    ),
    "transposed convolution": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3)),
        draw(2, 3, 5, 5),
        "0.weight (h1:4, 3, 3, 3); 0.bias (h1:4); 2.weight (h1:4, 2, 3, 3); 2.bias (2)",
        "0.weight (h1:4, in1:3, 3, 3); 0.bias (h1:4); 2.weight (h1:4, out1:2, 3, 3); 2.bias (out1:2)",
    ),
    "depthwise convolution": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1, bias=False)
        ),
        draw(2, 3, 4, 4),
        "0.weight (h1:4, 3, 1, 1); 0.bias (h1:4); 1.weight (h1:4, h2:2, 1, 3, 3); 1.bias (h1:4, h2:2); "
        "2.weight (2, h1:4, h2:2, 1, 1)",
        "0.weight (h1:4, in1:3, 1, 1); 0.bias (h1:4); 1.weight (h1:4, h2:2, 1, 3, 3); 1.bias (h1:4, h2:2); "
        "2.weight (out1:2, h1:4, h2:2, 1, 1)",
    ),
    "grouped convolution": Case(
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 1), nn.ReLU(), nn.Conv1d(6, 4, 1, groups=2), nn.Conv1d(4, 3, 1)
        ),
        draw(2, 2, 3),
        "0.weight (h1:2, h2:3, 2, 1); 0.bias (h1:2, h2:3); 2.weight (h1:2, h3:2, h2:3, 1); 2.bias (h1:2, h3:2); "
        "3.weight (3, h1:2, h3:2, 1); 3.bias (3)",
        "0.weight (h1:2, h2:3, in1:2, 1); 0.bias (h1:2, h2:3); 2.weight (h1:2, h3:2, h2:3, 1); 2.bias (h1:2, h3:2); "
        "3.weight (out1:3, h1:2, h3:2, 1); 3.bias (out1:3)",
    ),
    "layer norm over channels and positions": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 1), nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 2)),
        draw(2, 2, 4),
        "0.weight (h1:3, 2, 1); 0.bias (h1:3); 1.weight (h1:3, 4); 1.bias (h1:3, 4); 3.weight (2, h1:3, 4); 3.bias (2)",
        "0.weight (h1:3, in1:2, 1); 0.bias (h1:3); 1.weight (h1:3, 4); 1.bias (h1:3, 4); "
        "3.weight (out1:2, h1:3, 4); 3.bias (out1:2)",
    ),
    "group norm": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 6, 1), nn.GroupNorm(3, 6), nn.Conv1d(6, 2, 1)),
        draw(2, 2, 4),
        "0.weight (h1:3, h2:2, 2, 1); 0.bias (h1:3, h2:2); 1.weight (h1:3, h2:2); 1.bias (h1:3, h2:2); "
        "2.weight (2, h1:3, h2:2, 1); 2.bias (2)",
        "0.weight (h1:3, h2:2, in1:2, 1); 0.bias (h1:3, h2:2); 1.weight (h1:3, h2:2); 1.bias (h1:3, h2:2); "
        "2.weight (out1:2, h1:3, h2:2, 1); 2.bias (out1:2)",
    ),
    "batch norm after a flatten": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)),
        draw(2, 2, 4),
        "0.weight (h1:3, 2, 1); 0.bias (h1:3); 2.weight (h1:3, 4); 2.bias (h1:3, 4); 3.weight (2, h1:3, 4); 3.bias (2)",
        "0.weight (h1:3, in1:2, 1); 0.bias (h1:3); 2.weight (h1:3, 4); 2.bias (h1:3, 4); "
        "3.weight (out1:2, h1:3, 4); 3.bias (out1:2)",
    ),
    "residual sums": Case(
        residual,
        draw(2, 3),
        "stem.weight (h1:4, 3); stem.bias (h1:4); blocks.0.first.weight (h2:4, h1:4); blocks.0.first.bias (h2:4); "
        "blocks.0.second.weight (h1:4, h2:4); blocks.0.second.bias (h1:4); blocks.1.first.weight (h3:4, h1:4); "
        "blocks.1.first.bias (h3:4); blocks.1.second.weight (h1:4, h3:4); blocks.1.second.bias (h1:4); "
        "head.weight (2, h1:4); head.bias (2)",
        "stem.weight (h1:4, in1:3); stem.bias (h1:4); blocks.0.first.weight (h2:4, h1:4); blocks.0.first.bias (h2:4); "
        "blocks.0.second.weight (h1:4, h2:4); blocks.0.second.bias (h1:4); blocks.1.first.weight (h3:4, h1:4); "
        "blocks.1.first.bias (h3:4); blocks.1.second.weight (h1:4, h3:4); blocks.1.second.bias (h1:4); "
        "head.weight (out1:2, h1:4); head.bias (out1:2)",
    ),
    "residual from the input": Case(
        lambda: Program(lambda m, x: m.b(torch.sin(m.a(x)) + x), a=nn.Linear(3, 3), b=nn.Linear(3, 2)),
        draw(2, 3),
        "a.weight (3, 3); a.bias (3); b.weight (2, 3); b.bias (2)",
        "a.weight (in1:3, in1:3); a.bias (in1:3); b.weight (out1:2, in1:3); b.bias (out1:2)",
    ),
    "tied weights": Case(
        tied,
        draw(2, 3),
        "encode.weight (h1:5, 3); encode.bias (h1:5); decode.weight (3, h1:5)",
        "encode.weight (h1:5, in1:3); encode.bias (h1:5); decode.weight (out1:3, h1:5)",
    ),
    "autoencoder with a transposed weight": Case(
        lambda: Program(
            lambda m, x: F.relu(m.a(x)) @ m.a.weight + m.bias, a=nn.Linear(3, 5), bias=nn.Parameter(draw(3))
        ),
        draw(2, 3),
        "bias (3); a.weight (h1:5, 3); a.bias (h1:5)",
        "bias (in1:3); a.weight (h1:5, in1:3); a.bias (h1:5)",
    ),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        torch.tensor([[0, 3, 6], [1, 1, 2]]),
        "0.weight (7, h1:3); 1.weight (h2:4, h1:3); 1.bias (h2:4); 3.weight (2, h2:4); 3.bias (2)",
        "0.weight (7, h1:3); 1.weight (h2:4, h1:3); 1.bias (h2:4); 3.weight (out1:2, h2:4); 3.bias (out1:2)",
    ),
    "names of the user's own": Case(
        lambda: nn.Sequential(
            OrderedDict(
                first=nn.Sequential(OrderedDict(fc=nn.Linear(3, 4), act=nn.ReLU())),
                then=nn.Sequential(nn.Sequential(nn.Linear(4, 2))),
            )
        ),
        draw(2, 3),
        "first.fc.weight (h1:4, 3); first.fc.bias (h1:4); then.0.0.weight (2, h1:4); then.0.0.bias (2)",
        "first.fc.weight (h1:4, in1:3); first.fc.bias (h1:4); then.0.0.weight (out1:2, h1:4); then.0.0.bias (out1:2)",
    ),
    "functional": Case(
        lambda: Program(
            lambda m, x: F.linear(F.relu(F.conv1d(x, m.kernel, m.shift, stride=2)).mean(-1), m.weight),
            kernel=nn.Parameter(draw(4, 2, 3)),
            shift=nn.Parameter(draw(4)),
            weight=nn.Parameter(draw(2, 4)),
        ),
        draw(2, 2, 9),
        "kernel (h1:4, 2, 3); shift (h1:4); weight (2, h1:4)",
        "kernel (h1:4, in1:2, 3); shift (h1:4); weight (out1:2, h1:4)",
    ),
    "two inputs": Case(
        lambda: Program(
            lambda m, x, y: m.c(torch.relu(m.a(x) + m.b(y))),
            a=nn.Linear(3, 5),
            b=nn.Linear(4, 5, bias=False),
            c=nn.Linear(5, 2),
        ),
        (draw(2, 3), draw(2, 4)),
        "a.weight (h1:5, 3); a.bias (h1:5); b.weight (h1:5, 4); c.weight (2, h1:5); c.bias (2)",
        "a.weight (h1:5, in1:3); a.bias (h1:5); b.weight (h1:5, in2:4); c.weight (out1:2, h1:5); c.bias (out1:2)",
    ),
    "unused parameters": Case(
        lambda: two_layers(lambda m, x: m.b(torch.relu(m.a(x))), unused=nn.Linear(4, 5)),
        draw(2, 3),
        "a.weight (h1:6, 3); a.bias (h1:6); b.weight (2, h1:6); b.bias (2); unused.weight (5, 4); unused.bias (5)",
        "a.weight (h1:6, in1:3); a.bias (h1:6); b.weight (out1:2, h1:6); b.bias (out1:2); unused.weight (5, 4); "
        "unused.bias (5)",
    ),
}


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("name", CASES)
def test_parameters_are_viewed_as_expected(name: str, symmetry: Symmetry) -> None:
    case = CASES[name]
    space = check(case.model(), case.inputs, symmetry)
    assert "; ".join(views(space)) == (case.hidden if symmetry == "hidden" else case.every)


def test_running_statistics_move_with_the_channels() -> None:
    space = check(flattened_cnn(), draw(2, 3, 4, 4))
    assert [str(spec) for spec in space.buffers] == [
        "1.running_mean (h1:4)",
        "1.running_var (h1:4)",
        "1.num_batches_tracked ()",
    ]


def test_names_of_tied_parameters_are_aliases() -> None:
    assert check(tied(), draw(2, 3)).aliases == (("again.weight", "encode.weight"),)


def test_roles_say_what_an_axis_does() -> None:
    space = check(flattened_cnn(), draw(2, 3, 4, 4))
    roles = {spec.name: [axis.role for axis in spec.axes] for spec in space.parameters}
    assert roles["0.weight"] == ["out", "in", "space", "space"]
    assert roles["5.weight"] == ["out", "in", "in"]
    assert roles["1.weight"] == roles["7.bias"] == ["out"]


def test_transposed_convolutions_have_their_roles_swapped() -> None:
    space = check(nn.ConvTranspose2d(4, 2, 3), draw(1, 4, 3, 3), "all")
    assert [axis.role for axis in space["weight"].axes] == ["in", "out", "space", "space"]


def test_inputs_and_outputs_are_recorded() -> None:
    space = check(nn.Linear(3, 2), draw(5, 3), "all")
    assert [str(spec) for spec in (*space.inputs, *space.outputs)] == [
        "input 0 (5, in1:3)",
        "output 0 (5, out1:2)",
    ]


def test_the_printed_space_names_groups_and_reasons() -> None:
    lines = str(check(flattened_cnn(), draw(2, 3, 4, 4))).splitlines()
    assert lines[:3] == [
        "WeightSpace: 7 parameters, 213 weights, symmetry='hidden'",
        "  groups: h1 (4), h2 (5)",
        "  0.weight        (h1:4, 3, 3, 3)  fixed: input, position",
    ]
    assert lines[-1].split() == ["1.running_var", "(h1:4,)"]
