"""The hidden layer of 6 is found through every layer and operator that keeps its symmetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.utils import parametrizations

from nfn_opt.weight_space import WeightSpace
from tests.weight_space.models import Program, between, check, draw, two_layers, views

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Threshold": (0.1, 20.0),
    "Softmax": (1,),
    "Softmin": (1,),
    "LogSoftmax": (1,),
}
NOT_ELEMENTWISE = {"GLU", "MultiheadAttention", "Softmax2d"}
ACTIVATIONS = sorted(set(activation.__all__) - NOT_ELEMENTWISE)

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm, no affine": lambda: nn.BatchNorm1d(6, affine=False),
    "batch norm, no statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "batch norm, no momentum": lambda: nn.BatchNorm1d(6, momentum=None),
    "layer norm": lambda: nn.LayerNorm(6),
    "layer norm, no affine": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "layer norm, no bias": lambda: nn.LayerNorm(6, bias=False),
    "root mean square norm": lambda: nn.RMSNorm(6),
    "group norm of one group": lambda: nn.GroupNorm(1, 6),
    "group norm of each channel": lambda: nn.GroupNorm(6, 6),
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "PReLU with a slope each": lambda: nn.PReLU(6),
    "identity": nn.Identity,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
}

IMAGE_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(6),
    "instance norm": lambda: nn.InstanceNorm2d(6, affine=True),
    "layer norm over positions": lambda: nn.LayerNorm((8, 8)),
    "dropout of channels": lambda: nn.Dropout2d(0.5),
    "softmax over channels": nn.Softmax2d,
    "max pooling": lambda: nn.MaxPool2d(2),
    "max pooling, overlapping": lambda: nn.MaxPool2d(3, stride=2, padding=1, dilation=1, ceil_mode=True),
    "average pooling": lambda: nn.AvgPool2d(2),
    "power pooling": lambda: nn.LPPool2d(2, 2),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d(4),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d((4, 2)),
    "upsampling": lambda: nn.Upsample(scale_factor=2),
    "bilinear upsampling": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "zero padding": lambda: nn.ZeroPad2d(1),
    "reflection padding": lambda: nn.ReflectionPad2d(1),
    "circular padding": lambda: nn.CircularPad2d(1),
    "depthwise convolution": lambda: nn.Conv2d(6, 6, 3, groups=6),
}

FEATURES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "in place": lambda m, x: m.b(F.relu_(m.a(x)).mul_(2).add_(1)),
    "hardswish in place": lambda m, x: m.b(F.hardswish(m.a(x), inplace=True)),
    "floor division": lambda m, x: m.b(m.a(x) // 2),
    "comparison": lambda m, x: m.b((m.a(x) > 0).to(x.dtype)),
    "where": lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x), 0.0)),
    "addition to zeros": lambda m, x: m.b(torch.zeros(2, 6, dtype=x.dtype) + m.a(x)),
    "copy into a buffer of zeros": lambda m, x: m.b(torch.zeros(2, 6, dtype=x.dtype).copy_(m.a(x))),
    "normalisation": lambda m, x: m.b(F.normalize(m.a(x))),
    "standardisation": lambda m, x: m.b(m.a(x) - torch.var_mean(m.a(x), 1, keepdim=True)[1]),
    "softmax": lambda m, x: m.b(m.a(x).softmax(-1)),
    "views": lambda m, x: m.b(
        m.a(x)[:, None].transpose(1, 2).reshape(2, 6).clone().view(2, 6, 1).squeeze(-1)
    ),
    "view in place": lambda m, x: m.b(m.a(x).unsqueeze_(0).squeeze_(0)),
    "einsum": lambda m, x: torch.einsum("bi,oi->bo", m.a(x), m.b.weight) + m.b.bias,
    "matmul": lambda m, x: m.a(x[None]) @ m.b.weight.T,
    "addmm": lambda m, x: torch.addmm(m.b.bias, m.a(x), m.b.weight.t()),
    "addmm in place": lambda m, x: torch.zeros(2, 2, dtype=x.dtype).addmm_(m.a(x), m.b.weight.t()),
    "baddbmm": lambda m, x: torch.baddbmm(m.b.bias, m.a(x)[None], m.b.weight.t()[None]),
    "mv": lambda m, x: m.b.weight @ m.a(x[0]),
    "cosine similarity": lambda m, x: F.cosine_similarity(m.a(x), m.a(x + 1)),
    "selection of inputs": lambda m, x: m.b(m.a(x.flip(1).roll(1, 1).cumsum(1))),
    "data": lambda m, x: m.b(m.a(x).data.relu()),
    "vmap": lambda m, x: torch.vmap(lambda row: m.b(m.a(row).relu()))(x),
    "gradient": lambda m, x: torch.func.grad(lambda z: m.b(torch.tanh(m.a(z))).square().sum())(x),
    "dictionary of outputs": lambda m, x: {"y": m.b(m.a(x)), "none": None, "number": 3},  # type: ignore[dict-item, return-value]
}

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda h: h.mean((2, 3)),
    "sum of rows and columns": lambda h: h.sum(-1).sum(-1, keepdim=True)[..., 0],
    "maximum": lambda h: h.amax((2, 3)),
    "maximum with its place": lambda h: h.max(-1).values.max(-1)[0],
    "minimum": lambda h: h.flatten(2).min(-1)[0],
    "median": lambda h: h.flatten(2).median(-1)[0],
    "top three": lambda h: h.flatten(2).topk(3)[0].mean(-1),
    "log sum exp": lambda h: h.logsumexp((2, 3)),
    "norm": lambda h: h.norm(dim=(2, 3)),
    "deviation": lambda h: h.std((2, 3)),
    "channels last": lambda h: h.permute(0, 2, 3, 1).mean((1, 2)),
    "functional average": lambda h: F.avg_pool2d(h, 6).view(2, 6),
    "functional maximum": lambda h: F.max_pool2d(h, 6).flatten(1),
    "functional adaptive": lambda h: F.adaptive_max_pool2d(h, 1)[:, :, 0, 0],
    "one pixel": lambda h: h[:, :, 1, 2],
    "weights of positions": lambda h: torch.einsum(
        "bchw,hw->bc", h, torch.arange(36.0, dtype=h.dtype).view(6, 6)
    ),
    "squeeze and excitation": lambda h: (h * h.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)),
    "sum of unbound columns": lambda h: sum(h.unbind(-1), torch.zeros(())).mean(-1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    model = between(getattr(activation, name)(*ARGUMENTS.get(name, ())))
    assert check(model, draw(4, 3)).groups == {"h1": 6}


@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str) -> None:
    groups = check(between(NORMS[name](), nn.Tanh()), draw(4, 3)).groups
    assert groups == ({"h1": 6, "h2": 6} if name == "weight norm" else {"h1": 6})


@pytest.mark.parametrize("name", IMAGE_LAYERS)
def test_image_layer(name: str) -> None:
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), IMAGE_LAYERS[name](), *head)
    assert check(model, draw(2, 3, 8, 8)).groups == {"h1": 6}


@pytest.mark.parametrize("name", FEATURES)
def test_function_of_features(name: str) -> None:
    groups = check(two_layers(FEATURES[name]), draw(2, 3)).groups
    assert groups["h1"] == 6


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_in_the_forward_pass(name: str) -> None:
    pooling = POOLINGS[name]
    model = Program(lambda m, x: m.b(pooling(m.a(x).relu())), a=nn.Conv2d(3, 6, 3), b=nn.Linear(6, 2))
    assert check(model, draw(2, 3, 8, 8)).groups == {"h1": 6}


@pytest.mark.parametrize(
    ("layer", "pooling", "shape"),
    [
        (nn.Conv1d, nn.MaxPool1d(2), (2, 3, 8)),
        (nn.Conv1d, nn.AvgPool1d(2), (2, 3, 8)),
        (nn.Conv1d, nn.AdaptiveMaxPool1d(3), (2, 3, 8)),
        (nn.Conv3d, nn.MaxPool3d(2), (2, 3, 6, 6, 6)),
        (nn.Conv3d, nn.AvgPool3d(2), (2, 3, 6, 6, 6)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d(2), (2, 3, 6, 6, 6)),
    ],
)
def test_pooling_of_other_dimensions(
    layer: type[nn.Module], pooling: nn.Module, shape: tuple[int, ...]
) -> None:
    assert check(nn.Sequential(layer(3, 6, 3), pooling, layer(6, 2, 1)), draw(*shape)).groups == {"h1": 6}


def test_repeats_make_a_group_of_their_own() -> None:
    model = Program(lambda m, x: m.b(m.a(x).repeat(1, 2)), a=nn.Linear(3, 6), b=nn.Linear(12, 2))
    assert check(model, draw(2, 3)).groups == {"h1": 6, "h2": 2}


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode(inside: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.inference_mode(inside):
            return m.b(F.normalize(m.a(x)))

    with torch.inference_mode(not inside):
        assert check(two_layers(forward), draw(2, 3)).groups == {"h1": 6}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 6, dtype=dtype), nn.Tanh(), nn.Linear(6, 2, dtype=dtype))
    assert check(model, draw(2, 3).to(dtype)).groups == {"h1": 6}


def test_models_on_the_meta_device() -> None:
    model = between(nn.Tanh()).to("meta")
    assert WeightSpace.from_module(model, torch.zeros(2, 3, device="meta")).groups == {"h1": 6}


def test_rotary_positions_by_complex_numbers() -> None:
    def rotated(h: Tensor) -> Tensor:
        pairs = torch.view_as_complex(h.double().unflatten(-1, (-1, 2)))
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1])).double()
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        h = F.scaled_dot_product_attention(rotated(q), rotated(k), v.double())
        return m.o(h.transpose(1, 2).flatten(2).to(x.dtype))

    layers = {name: nn.Linear(6, 12) for name in "qkv"}
    space = check(Program(forward, **layers, o=nn.Linear(12, 6)), draw(2, 5, 6))
    assert sorted(space.groups.values()) == [3, 4]  # the heads, and the width of the values
    assert views(space)[0] == "q.weight (h1:3, 4, 6)"
