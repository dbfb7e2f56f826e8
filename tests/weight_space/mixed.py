"""Random networks of mixed operators whose hidden groups are known from how they are built.

A network carries a stream of shape ``(batch, tokens, width)`` through blocks. Each block notes the groups of hidden
neurons that it adds. A block whose output is added to the stream, or multiplied with it, adds none for that output.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.weight_space.models import Program, draw, randomised


class Builder:
    """Choices from one seed, the shape of the stream so far, and the sizes of all groups so far."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.width, self.tokens = 0, 0
        self.groups: list[int] = []

    def size(self, smallest: int = 2) -> int:
        return self.random.randint(smallest, 7)

    def divisor(self, number: int) -> int:
        return self.random.choice([d for d in range(1, number + 1) if number % d == 0])

    def activation(self) -> Callable[[Tensor], Tensor]:
        return self.random.choice([torch.tanh, torch.sin, F.silu, torch.sigmoid])

    def becomes(self, *widths: int) -> int:
        """The stream now has these groups, one behind the other; gives its width."""
        self.groups += widths
        self.width = sum(widths)
        return self.width

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, bias=self.random.random() < 0.7)


Block = Callable[[Builder], nn.Module]


def dense(b: Builder) -> nn.Module:
    act, before = b.activation(), b.width
    return Program(lambda m, x: act(m.a(x)), a=b.linear(before, b.becomes(b.size())))


def residual(b: Builder) -> nn.Module:
    act, hidden = b.activation(), b.size()
    b.groups.append(hidden)
    return Program(
        lambda m, x: x + m.b(act(m.a(x))), a=b.linear(b.width, hidden), b=b.linear(hidden, b.width)
    )


def gated(b: Builder) -> nn.Module:
    """Two projections of which one gates the other: separate, packed, or ``glu``."""
    before, kind = b.width, b.random.randrange(3)
    width = b.becomes(b.size())
    if kind == 0:
        return Program(
            lambda m, x: F.silu(m.a(x)) * m.b(x), a=b.linear(before, width), b=b.linear(before, width)
        )
    if kind == 1:
        return Program(lambda m, x: F.glu(m.a(x)), a=b.linear(before, 2 * width))
    return Program(
        lambda m, x: torch.tanh((h := m.a(x).chunk(2, -1))[0]) * h[1], a=b.linear(before, 2 * width)
    )


def gate_on_the_stream(b: Builder) -> nn.Module:
    if b.random.random() < 0.5:
        return Program(lambda m, x: x * m.a(x).sigmoid(), a=b.linear(b.width, b.width))
    hidden = b.size()
    b.groups.append(hidden)
    return Program(
        lambda m, x: x * m.b(torch.tanh(m.a(x.mean(1, keepdim=True)))).sigmoid(),
        a=b.linear(b.width, hidden),
        b=b.linear(hidden, b.width),
    )


def concatenated(b: Builder) -> nn.Module:
    """New features beside those of the stream."""
    new, act, before = b.size(), b.activation(), b.width
    b.groups.append(new)
    b.width += new
    return Program(lambda m, x: torch.cat([x, act(m.a(x))], -1), a=b.linear(before, new))


def split(b: Builder) -> nn.Module:
    """One projection in two parts that go different ways."""
    parts, before = [b.size(), b.size()], b.width
    return Program(
        lambda m, x: torch.cat([(h := m.a(x).split(parts, -1))[0].tanh(), h[1].sin()], -1),
        a=b.linear(before, b.becomes(*parts)),
    )


def stacked(b: Builder) -> nn.Module:
    before, width = b.width, b.becomes(b.size())
    reduce: Any = b.random.choice([torch.mean, torch.sum, torch.logsumexp, torch.prod])
    return Program(
        lambda m, x: reduce(torch.stack([m.a(x), m.b(x).tanh()], 2), 2),
        a=b.linear(before, width),
        b=b.linear(before, width),
    )


def heads(b: Builder) -> nn.Module:
    """Projections to several heads by ``einsum``, flattened and read by one layer."""
    number, size, before = b.size(), b.size(), b.width
    b.groups += [number, size]
    return Program(
        lambda m, x: m.out(torch.einsum("btw,hwd->bthd", x, m.weight).tanh().flatten(2)),
        weight=nn.Parameter(torch.zeros(number, before, size)),
        out=b.linear(number * size, b.becomes(b.size())),
    )


def norm(b: Builder) -> nn.Module:
    if b.width < 4:
        return dense(b)
    return b.random.choice([nn.LayerNorm, nn.RMSNorm])(b.width)


def attention(b: Builder) -> nn.Module:
    """Attention added to the stream: packed in one of two orders, with fewer heads for keys and values, or torch's."""
    kind, width = b.random.randrange(4), b.width
    number, size, causal = b.random.choice([1, 2, 3]), b.size(), b.random.random() < 0.5
    if kind == 0:
        number = b.divisor(width)
        b.groups += [n for n in (number, width // number, width // number) if n > 1]
        layer = nn.MultiheadAttention(width, number, batch_first=True)
        return Program(lambda m, x: x + m.a(x, x, x, need_weights=False)[0], a=layer)
    if kind == 1:
        each, value = b.random.choice([1, 2]), b.size()
        b.groups += [n for n in (number, each, size, value) if n > 1]

        def grouped(m: Any, x: Tensor) -> Tensor:
            q, k, v = (
                p(x).unflatten(-1, (-1, n)).transpose(1, 2)
                for p, n in ((m.q, size), (m.k, size), (m.v, value))
            )
            h = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            return x + m.out(h.transpose(1, 2).flatten(2))

        return Program(
            grouped,
            q=b.linear(width, number * each * size),
            k=b.linear(width, number * size),
            v=b.linear(width, number * value),
            out=b.linear(number * each * value, width),
        )
    b.groups += [n for n in (number, size, size) if n > 1]
    order = (3, number, size) if kind == 2 else (number, 3, size)

    def packed(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, order).unbind(2 if kind == 2 else 3)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return x + m.out(h.transpose(1, 2).flatten(2))

    return Program(packed, qkv=b.linear(width, 3 * number * size), out=b.linear(number * size, width))


def recurrent(b: Builder) -> nn.Module:
    kind, both, before, size = (
        b.random.choice([nn.RNN, nn.GRU, nn.LSTM]),
        b.random.random() < 0.4,
        b.width,
        b.size(),
    )
    b.becomes(*[size] * (1 + both))
    return Program(lambda m, x: m.a(x)[0], a=kind(before, size, batch_first=True, bidirectional=both))


def cell(b: Builder) -> nn.Module:
    """A recurrent cell that runs over the tokens, its states put side by side again."""
    before, size = b.width, b.becomes(b.size())

    def steps(m: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), size)
        states = []
        for token in x.unbind(1):
            state = m.a(token, state)
            states.append(state)
        return torch.stack(states, 1)

    return Program(steps, a=b.random.choice([nn.GRUCell, nn.RNNCell])(before, size))


def convolution(b: Builder) -> nn.Module:
    """A convolution over the tokens: depthwise on the stream, plain, or in groups between two layers."""
    kind, before = b.random.randrange(3), b.width
    if kind == 0:
        layer = nn.Conv1d(before, before, 3, padding=1, groups=before)
        return Program(lambda m, x: m.a(x.mT).mT, a=layer)
    if kind == 1:
        return Program(
            lambda m, x: m.a(x.mT).mT.tanh(), a=nn.Conv1d(before, b.becomes(b.size()), 3, padding=1)
        )
    number, inputs, outputs = b.size(), b.size(), b.size()
    b.groups += [number, inputs, outputs]
    return Program(
        lambda m, x: m.c(m.b(m.a(x).mT).mT.tanh()),
        a=b.linear(before, number * inputs),
        b=nn.Conv1d(number * inputs, number * outputs, 3, padding=1, groups=number),
        c=b.linear(number * outputs, b.becomes(b.size())),
    )


def tokens(b: Builder) -> nn.Module:
    """More or fewer tokens, or learned positions."""
    kind, width = b.random.randrange(5), b.width
    if kind == 0 and b.tokens > 3:
        b.tokens -= 1
        return Program(lambda m, x: x[:, :-1])
    if kind == 1 and b.tokens > 4:
        b.tokens = (b.tokens + 1) // 2
        return Program(lambda m, x: x[:, ::2])
    if kind == 2:
        b.tokens += 1
        return Program(lambda m, x: F.pad(x, (0, 0, 1, 0), value=0.5))
    if kind == 3:
        b.tokens += 1
        token = nn.Parameter(torch.zeros(1, 1, width))
        return Program(lambda m, x: torch.cat([m.token.expand(len(x), -1, -1), x], 1), token=token)
    positions = nn.Parameter(torch.zeros(b.tokens, width))
    return Program(lambda m, x: x + m.positions, positions=positions)


BLOCKS: list[Block] = [
    *(dense, residual, gated, gate_on_the_stream, concatenated, split, stacked, heads, norm),
    *(attention, attention, recurrent, cell, convolution, tokens),
]


def stem(b: Builder) -> tuple[nn.Module, Tensor]:
    """From images, sequences of vectors or of numbers to the stream, and inputs for it."""
    kind, width = b.random.randrange(3), b.becomes(b.size())
    if kind == 0:
        b.tokens = 4
        patches = nn.Conv2d(3, width, 2, 2)
        return Program(lambda m, x: m.a(x).flatten(2).mT, a=patches), draw(2, 3, 4, 4)
    b.tokens = b.random.randint(3, 6)
    if kind == 1:
        return nn.Linear(3, width), draw(2, b.tokens, 3)
    return nn.Embedding(5, width), torch.arange(2 * b.tokens).view(2, b.tokens) % 5


def head(b: Builder) -> nn.Module:
    if b.random.random() < 0.5:
        return Program(lambda m, x: m.a(x.mean(1)), a=nn.Linear(b.width, 2))
    return Program(lambda m, x: m.a(x.flatten(1)), a=nn.Linear(b.tokens * b.width, 2))


def mixed(seed: int) -> tuple[nn.Module, Tensor, list[int]]:
    """A network, inputs for it, and the sizes of its hidden groups."""
    b = Builder(seed)
    first, inputs = stem(b)
    blocks = [b.random.choice(BLOCKS)(b) for _ in range(b.random.randint(1, 6))]
    model = nn.Sequential(first, *blocks, head(b))
    return randomised(model, seed), inputs, sorted(b.groups)
