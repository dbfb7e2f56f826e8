"""Convolutional networks, and the symmetry that each must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry
from tests.weight_space.architectures import DenseNet, Mixer, UNet, residual_network
from tests.weight_space.cases import Case, check_case, check_torn
from tests.weight_space.models import Program, draw

IMAGES = draw(2, 3, 8, 8)
ENDS = {"in1": 3, "out1": 2}


def squeeze_and_excite() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.stem(x)
        gates = m.expand(F.relu(m.squeeze(h.mean((2, 3))))).sigmoid()
        return m.head(h * gates[:, :, None, None])

    return Program(
        forward,
        stem=nn.Conv2d(3, 6, 3),
        squeeze=nn.Linear(6, 2),
        expand=nn.Linear(2, 6),
        head=nn.Conv2d(6, 2, 1),
    )


def between_convolutions(*layers: nn.Module, channels: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), *layers, nn.Conv2d(channels, 2, 1))


CASES = {
    "residual, one group along each skip path": Case(
        residual_network,
        IMAGES,
        [4, 4, 4, 6, 6, 6],
        ENDS,
        "0.weight (h1:4, 3, 3, 3); 1.first.weight (h2:4, h1:4, 3, 3); 1.second.weight (h1:4, h2:4, 3, 3); "
        "2.second.weight (h1:4, h3:4, 3, 3); 3.first.weight (h4:6, h1:4, 3, 3); 3.second.weight (h5:6, h4:6, 3, 3); "
        "3.skip.weight (h5:6, h1:4, 1, 1); 4.second.weight (h5:6, h6:6, 3, 3); 7.weight (2, h5:6)",
    ),
    "U-Net": Case(
        UNet,
        IMAGES,
        [4, 6, 7, 6, 6, 5, 5],
        ENDS,
        "down2.weight (h2:6, h1:4, 3, 3); up2.weight (h3:7, h4:6, 2, 2); join2.weight (h5:6, (h4+h2):12, 3, 3); "
        "up1.weight (h5:6, h6:5, 2, 2); join1.weight (h7:5, (h6+h1):9, 3, 3); norm.weight (h7:5)",
    ),
    "DenseNet": Case(
        DenseNet,
        IMAGES,
        [3, 4, 5, 6],
        ENDS,
        "norms.1.weight ((h1+h2):7); layers.1.weight (h3:5, (h1+h2):7, 3, 3); "
        "layers.2.weight (h4:6, (h1+h2+h3):12, 3, 3); head.weight (2, (h1+h2+h3+h4):18)",
    ),
    "grouped": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 2, 1)
        ),
        IMAGES,
        [4, 2, 3],
        ENDS,
        "0.weight (h1:4, h2:2, 3, 1, 1); 1.weight (h1:4, h3:3, h2:2, 3, 3); 1.bias (h1:4, h3:3); "
        "3.weight (2, h1:4, h3:3, 1, 1)",
    ),
    "depthwise": Case(
        lambda: between_convolutions(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU()),
        IMAGES,
        [4],
        ENDS,
        "0.weight (h1:4, 3, 3, 3); 1.weight (h1:4, 1, 3, 3); 3.weight (2, h1:4, 1, 1)",
    ),
    "depthwise, two for each channel": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 10, 3, groups=5), nn.Conv2d(10, 2, 1)),
        IMAGES,
        [5, 2],
        ENDS,
        "0.weight (h1:5, 3, 1, 1); 1.weight (h1:5, h2:2, 1, 3, 3); 2.weight (2, h1:5, h2:2, 1, 1)",
    ),
    "transposed, one of them grouped": Case(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 6, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 2, groups=2),
            nn.Conv2d(4, 2, 1),
        ),
        IMAGES,
        [2, 3, 2],
        ENDS,
        "0.weight (3, h1:2, h2:3, 2, 2); 2.weight (h1:2, h2:3, h3:2, 2, 2); 2.bias (h1:2, h3:2); "
        "3.weight (2, h1:2, h3:2, 1, 1)",
    ),
    "shuffled channels and pixels": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 1, groups=2),
            nn.ChannelShuffle(2),
            nn.Conv2d(8, 8, 3, groups=4),
            nn.PixelShuffle(2),
            nn.Conv2d(2, 2, 1),
        ),
        IMAGES,
        [2, 4, 2],
        ENDS,
        "0.weight (h1:2, h2:4, 3, 1, 1); 1.weight (h1:2, h3:2, 2, h2:4, 1, 1); 3.weight (h3:2, 4, h1:2, 3, 3); "
        "5.weight (2, h3:2, 1, 1)",
    ),
    "batch norm": Case(
        lambda: between_convolutions(nn.BatchNorm2d(4), nn.ReLU()), IMAGES, [4], ENDS, "1.weight (h1:4)"
    ),
    "group norm": Case(
        lambda: between_convolutions(nn.GroupNorm(4, 8), nn.ReLU(), channels=8),
        IMAGES,
        [4, 2],
        ENDS,
        "0.weight (h1:4, h2:2, 3, 3, 3); 1.weight (h1:4, h2:2); 3.weight (2, h1:4, h2:2, 1, 1)",
    ),
    "instance norm": Case(
        lambda: between_convolutions(nn.InstanceNorm2d(4, affine=True), nn.ReLU()),
        IMAGES,
        [4],
        ENDS,
        "1.weight (h1:4)",
    ),
    "pooled to one pixel, channels last": Case(
        lambda: Program(
            lambda m, x: m.b(
                F.adaptive_avg_pool2d(m.a(x).to(memory_format=torch.channels_last), 1).flatten(1)
            ),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Linear(4, 2),
        ),
        IMAGES,
        [4],
        ENDS,
        "a.weight (h1:4, 3, 3, 3); b.weight (2, h1:4)",
    ),
    "gated linear unit": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GLU(1), nn.Conv2d(4, 2, 1)),
        IMAGES,
        [4],
        ENDS,
        "0.weight (2, h1:4, 3, 3, 3); 0.bias (2, h1:4); 2.weight (2, h1:4, 1, 1)",
    ),
    "squeeze and excite": Case(
        squeeze_and_excite,
        IMAGES,
        [6, 2],
        ENDS,
        "stem.weight (h1:6, 3, 3, 3); squeeze.weight (h2:2, h1:6); expand.weight (h1:6, h2:2)",
    ),
    "MLP-Mixer": Case(
        Mixer,
        IMAGES,
        [8, 6, 10],
        ENDS,
        "patches.weight (h1:8, 3, 4, 4); norm1.weight (h1:8); tokens.0.weight (h2:6, 4); tokens.2.weight (4, h2:6); "
        "channels.0.weight (h3:10, h1:8); channels.2.weight (h1:8, h3:10); head.weight (2, h1:8)",
    ),
}


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("name", CASES)
def test_groups_and_axes(name: str, symmetry: Symmetry) -> None:
    check_case(CASES[name], symmetry)


@pytest.mark.parametrize("name", CASES)
def test_no_matrix_can_be_torn_from_its_groups(name: str) -> None:
    check_torn(CASES[name])


def test_running_statistics_behind_a_concatenation_move_part_by_part() -> None:
    space = check_case(CASES["DenseNet"], "hidden")
    assert "norms.2.running_var ((h1+h2+h3):12)" in map(str, space.buffers)
