"""Random small networks whose weight spaces the checks of :mod:`nfn_opt.testing` run on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry, WeightSpace

NetworkKind = Literal["mlp", "residual", "conv1d", "conv2d", "dense", "recurrent", "attention"]
_KINDS: tuple[NetworkKind, ...] = ("mlp", "residual", "conv1d", "conv2d", "dense", "recurrent", "attention")
_PIXELS = 3


def random_network(generator: torch.Generator, kind: NetworkKind | None = None) -> tuple[nn.Module, Tensor]:
    """A random small network and inputs for it, both in float32.

    Depth 1 to 6, widths 1 to 17 (4 to 17 where a residual connection adds a layer's inputs to its outputs), each
    layer with or without bias and norm; convolutional ones end in a flatten or a global pooling and a linear layer.
    In dense ones each layer reads all layers before it side by side; recurrent ones and those with attention read
    short sequences.

    Args:
        generator: Source of the architecture, the weights and the inputs.
        kind: ``"mlp"``, ``"residual"``, ``"conv1d"``, ``"conv2d"``, ``"dense"``, ``"recurrent"`` or ``"attention"``;
            by default a random one.

    Raises:
        ValueError: If the kind is another.

    Example:
        >>> model, inputs = random_network(torch.Generator().manual_seed(0), "conv1d")
        >>> WeightSpace.from_module(model, inputs).verify(model, inputs) < 1e-10
        True
    """
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(_KINDS)}, or None for a random one")
    kind = kind or _KINDS[_draw_int(generator, 0, len(_KINDS) - 1)]
    least = 4 if kind == "residual" else 1
    widths = [_draw_int(generator, least, 17) for _ in range(_draw_int(generator, 1, 6) + 1)]
    make = _MAKERS[kind]
    choices = torch.randint(2**31, (3 * len(widths),), generator=generator).tolist()
    with torch.device("meta"):  # so that torch's own initial values are not drawn from the global generator
        model = nn.Sequential(*make(widths, kind, iter(choices))).to_empty(device="cpu")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
            tensor.abs_().add_(0.5) if name.endswith("running_var") else tensor.mul_(0.5)
        else:
            tensor.zero_()
    shape = {"conv1d": (_PIXELS,), "conv2d": (_PIXELS, _PIXELS)}.get(kind, ())
    steps = (4,) if kind in ("recurrent", "attention") else ()
    return model, torch.randn((3, *steps, widths[0], *shape), generator=generator)


def random_space(
    generator: torch.Generator, kind: NetworkKind | None = None, symmetry: Symmetry | None = None
) -> WeightSpace:
    """The weight space of a :func:`random_network`; the symmetry too is random by default.

    Example:
        >>> random_space(torch.Generator().manual_seed(0), "mlp", "all").symmetry
        'all'
    """
    model, inputs = random_network(generator, kind)
    drawn: Symmetry = "all" if _draw_int(generator, 0, 1) else "hidden"
    return WeightSpace.from_module(model, inputs, symmetry=symmetry or drawn)


class _Residual(nn.Module):
    """A layer whose inputs are added to its outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer(x)
        return out


class _Dense(nn.Module):
    """A layer whose outputs are put behind its inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(x)], dim=-1)


class _Recurrent(nn.Module):
    """A recurrent layer without its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0]
        return out


class _Attention(nn.Module):
    """Attention of a sequence to itself, added to it."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attention(x, x, x, need_weights=False)[0]
        return out


def _layered(widths: list[int], kind: NetworkKind, choices: Iterator[int]) -> Iterator[nn.Module]:
    """Linear layers with norms and activations between them; residual ones keep the first hidden width."""
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        last, bias = i == len(widths) - 2, next(choices) % 2 == 0
        if kind == "residual" and i > 0 and not last:
            yield _Residual(nn.Sequential(nn.Linear(widths[1], widths[1], bias=bias), nn.Tanh()))
            continue
        yield nn.Linear(widths[1] if kind == "residual" and i else n_in, n_out, bias=bias)
        if not last:
            norms = (nn.Identity, nn.BatchNorm1d, nn.LayerNorm)
            yield norms[next(choices) % 3](n_out)
            yield nn.Tanh()


def _concatenating(widths: list[int], kind: NetworkKind, choices: Iterator[int]) -> Iterator[nn.Module]:
    """Linear layers, each with all layers before it as inputs."""
    total = widths[0]
    for width in widths[1:-1]:
        layer = nn.Sequential(nn.Linear(total, width, bias=next(choices) % 2 == 0), nn.Tanh())
        yield _Dense(layer)
        total += width
        yield (nn.Identity, nn.LayerNorm)[next(choices) % 2](total)
    yield nn.Linear(total, widths[-1], bias=next(choices) % 2 == 0)


def _sequential(widths: list[int], kind: NetworkKind, choices: Iterator[int]) -> Iterator[nn.Module]:
    """One or two recurrent layers, or linear layers with attention behind them, then a linear layer."""
    hidden = widths[1:-1][:2]
    for n_in, n_out in itertools.pairwise([widths[0], *hidden]):
        bias = next(choices) % 2 == 0
        if kind == "recurrent":
            layer: Callable[..., nn.Module] = (nn.RNN, nn.GRU, nn.LSTM)[next(choices) % 3]
            yield _Recurrent(layer(n_in, n_out, bias=bias, batch_first=True))
            continue
        heads = max(h for h in (1, 2, 3) if n_out % h == 0)
        yield nn.Linear(n_in, n_out, bias=bias)
        yield _Attention(n_out, heads, bias)
    yield nn.Linear([widths[0], *hidden][-1], widths[-1], bias=next(choices) % 2 == 0)


def _convolutional(widths: list[int], kind: NetworkKind, choices: Iterator[int]) -> Iterator[nn.Module]:
    """Convolutions with norms and activations between them, then a linear layer."""
    convolution, norm, pool = {
        "conv1d": (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
        "conv2d": (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
    }[kind]
    for n_in, n_out in itertools.pairwise(widths[:-1]):
        yield convolution(n_in, n_out, 3, padding=1, bias=next(choices) % 2 == 0)
        yield (nn.Identity, norm)[next(choices) % 2](n_out)
        yield nn.ReLU()
    pooled = next(choices) % 2 == 0
    pixels = 1 if pooled else _PIXELS ** (1 if kind == "conv1d" else 2)
    yield from (pool(1),) if pooled else ()
    yield nn.Flatten()
    yield nn.Linear(widths[-2] * pixels, widths[-1], bias=next(choices) % 2 == 0)


_MAKERS: dict[NetworkKind, Callable[[list[int], NetworkKind, Iterator[int]], Iterator[nn.Module]]] = {
    "mlp": _layered,
    "residual": _layered,
    "conv1d": _convolutional,
    "conv2d": _convolutional,
    "dense": _concatenating,
    "recurrent": _sequential,
    "attention": _sequential,
}


def _draw_int(generator: torch.Generator, low: int, high: int) -> int:
    """A uniformly random integer in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))
