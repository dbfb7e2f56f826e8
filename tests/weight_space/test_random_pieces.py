"""Random programs that cut tensors to pieces and put them together: whatever symmetry is found, it must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.weight_space import Symmetry, WeightSpace, operators
from nfn_opt.weight_space.traced import TracedTensor, fresh
from tests.weight_space.programs import Operator, RandomProgram, is_sound, program


def linear(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    return F.linear(h, p.weight(p.size(), h.shape[-1]))


def packed(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    """A projection to several things at once, laid out in any order, of which two meet."""
    number, heads, width = p.choices.choice([(3, 2, 2), (2, 2, 3), (3, 1, 4), (2, 3, 1)])
    order = p.choices.sample(range(3), 3)
    sizes = [(number, heads, width)[i] for i in order]
    h = F.linear(h, p.weight(number * heads * width, h.shape[-1])).unflatten(-1, sizes)
    place = h.dim() - 3 + order.index(0)
    first, second, *rest = h.unbind(place) if p.choices.random() < 0.7 else list(h.movedim(place, 0))
    use = p.choices.randrange(6)
    if use == 0:
        return (first * second).flatten(-2)
    if use == 1:
        weights = (first @ second.transpose(-1, -2)).softmax(-1)
        return (weights @ (rest or [second])[0]).flatten(-2)
    if use == 2:
        return (h.sum(place) * first).flatten(-2)
    if use == 3:
        return h.flatten(-3)
    if use == 4:
        return torch.stack([second, first], p.choices.randrange(h.dim()))
    return torch.cat([second, first + 1], -1)


def concatenated(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    """Values so far that fit, side by side."""
    fits = [v for v in p.values if v.dim() == h.dim() and v.narrow(d, 0, 1).shape == h.narrow(d, 0, 1).shape]
    return torch.cat([h, *p.choices.choices(fits or [h], k=p.choices.randint(1, 2))], d)


def stacked(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    fits = [v for v in p.values if v.shape == h.shape]
    return torch.stack([h, p.choices.choice(fits or [h.tanh()])], d)


def pieces_swapped(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    first = p.choices.randint(0, h.shape[d])
    a, b = h.split([first, h.shape[d] - first], d)
    return torch.cat([b, a.tanh()], d) if p.choices.random() < 0.5 else torch.cat([a, a * 2, b], d)


def piece_scaled(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    piece = h.chunk(2, d)[0]
    return piece * p.weight(*(size if i == d else 1 for i, size in enumerate(piece.shape)))


def halves_joined(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    if h.shape[d] % 2:
        return h
    a, b = h.chunk(2, d)
    return p.choices.choice([a * b, F.glu(h, d), torch.cat([a - b, a + b], d)])


def every_second(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    step = p.choices.choice([2, 3])
    start = p.choices.randrange(min(step, h.shape[d]))
    index: list[slice] = [slice(None)] * h.dim()
    index[d] = slice(start, None, step)
    return h[tuple(index)]


def written_into_zeros(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    """A buffer of equal entries, parts of which are overwritten."""
    shape = list(h.shape)
    shape[d] += p.choices.randrange(3)
    buffer = h.new_full(shape, p.choices.choice([0.0, 1.0]))
    view = buffer.flatten() if p.choices.random() < 0.5 else buffer
    before = h + buffer.narrow(d, 0, h.shape[d])
    buffer.narrow(d, p.choices.choice([0, shape[d] - h.shape[d]]), h.shape[d]).copy_(h)
    if p.choices.random() < 0.3:
        buffer.select(d, p.choices.randrange(shape[d])).add_(1.0)
    return p.choices.choice([buffer, view * 2.0, before * 2, buffer + buffer.flip(d)])


def padded(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    widths = [p.choices.randint(-1, 2) for _ in range(2 * p.choices.randint(1, 2))]
    fits = all(h.shape[-1 - i // 2] + widths[i] + widths[i + 1] > 0 for i in range(0, len(widths), 2))
    return F.pad(h, widths, value=p.choices.choice([0.0, 0.5])) if fits else h


def masked_attention(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    h = h.flatten(0, -3) if h.dim() > 2 else h[None]
    q, k = F.linear(h, p.weight(4, h.shape[-1])), F.linear(h, p.weight(4, h.shape[-1]))
    return F.scaled_dot_product_attention(q, k, h, is_causal=p.choices.random() < 0.5)


def shuffled(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    h = h.flatten(2)[..., None] if h.dim() > 2 else h[..., None, None]
    kind = p.choices.randrange(4)
    if kind == 0:
        return F.channel_shuffle(h, p.divisor(h.shape[1]))
    if kind == 1:
        return F.pixel_shuffle(h, 2) if h.shape[1] % 4 == 0 else h
    if kind == 2:
        return F.pixel_unshuffle(h.expand(-1, -1, -1, 2), 2) if h.shape[2] % 2 == 0 else h
    return F.unfold(h, (min(2, h.shape[2]), 1))


def picked_by_number(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    number = torch.tensor([p.choices.randrange(h.shape[d]) for _ in range(2)])
    index: list[slice | Tensor] = [slice(None)] * h.dim()
    index[d] = number
    kind = p.choices.randrange(4)
    if kind == 0:
        return h.index_select(d, number)
    if kind == 1:
        return h[tuple(index)]
    if kind == 2:
        return h.gather(d, (h > 0).long() % h.shape[d])
    return h[:, h.argmax(1)[:1].flatten()[0] * 0 + torch.arange(h.shape[1])]


def bilinear(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    size = p.size()
    return F.bilinear(h, h.tanh(), p.weight(size, h.shape[-1], h.shape[-1]), p.weight(size))


def distances(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    return torch.cdist(
        h, p.weight(p.size(), h.shape[-1]), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()


def recurrent(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    h = h.flatten(0, -3) if h.dim() > 2 else h[None]
    size = p.choices.choice([2, 3])
    kind: Any
    kind, gates = p.choices.choice([(torch.gru, 3), (torch.lstm, 4), (torch.rnn_tanh, 1)])
    weights = [p.weight(gates * size, h.shape[-1]), p.weight(gates * size, size)]
    start = h.new_zeros(1, h.shape[0], size)
    given = (start, start) if kind is torch.lstm else start
    return kind(h, given, weights, False, 1, 0.0, False, False, True)[0]


OPERATORS: list[Operator] = [
    linear,
    linear,
    packed,
    packed,
    concatenated,
    concatenated,
    stacked,
    pieces_swapped,
    piece_scaled,
    halves_joined,
    every_second,
    written_into_zeros,
    padded,
    masked_attention,
    shuffled,
    picked_by_number,
    bilinear,
    distances,
    recurrent,
    lambda p, h, d: h + p.weight(h.shape[-1]),
    lambda p, h, d: h * p.weight(*(size if i == d else 1 for i, size in enumerate(h.shape))),
    lambda p, h, d: h.transpose(d, -1).contiguous(),
    lambda p, h, d: h.flatten(min(d, h.dim() - 2), min(d, h.dim() - 2) + 1),
    lambda p, h, d: h.unflatten(d, (p.divisor(h.shape[d]), -1)),
    lambda p, h, d: h.reshape(p.divisor(h.numel()), -1),
    lambda p, h, d: h.softmax(d),
    lambda p, h, d: h.sum(d, keepdim=p.choices.random() < 0.5),
    lambda p, h, d: h.select(d, p.choices.randrange(h.shape[d])),
    lambda p, h, d: h.narrow(d, 0, p.choices.randint(1, h.shape[d])),
    lambda p, h, d: h.unbind(d)[0] * h.unbind(d)[-1],
    lambda p, h, d: h.tril(),
    lambda p, h, d: h.repeat(*(2 if i == d else 1 for i in range(h.dim()))),
    lambda p, h, d: h.roll(1, d),
    lambda p, h, d: F.layer_norm(h, h.shape[-1:], p.weight(h.shape[-1])) if h.shape[-1] > 2 else h,
    lambda p, h, d: (
        h.tanh() * torch.sigmoid(p.choices.choice([v for v in p.values if v.shape == h.shape] or [h]))
    ),
]


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_no_symmetry_is_invented(first: int, symmetry: Symmetry) -> None:
    assert [seed for seed in range(first, first + 20) if not is_sound(seed, OPERATORS, symmetry)] == []


def test_telling_packed_things_apart_loses_no_symmetry() -> None:
    model, x = program(429, OPERATORS)  # cut across what is packed, which telling it apart cannot follow
    space = WeightSpace.from_module(model, x, symmetry="all")
    assert space.groups == {"out1": 2, "in1": 2}


@pytest.mark.parametrize("name", ["cat", "split", "slice", "stack", "select", "glu", "gather"])
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(call: operators.Call) -> operators.Results:
        return operators.Results([TracedTensor(fresh(result.shape)) for result in call.results])

    monkeypatch.setitem(operators.RULES, getattr(torch.ops.aten, name), careless)
    assert not all(is_sound(seed, OPERATORS, "all") for seed in range(300))
