"""Concatenations, pieces, stacks and constants used and misused, and the groups that are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.weight_space.models import Program, check, draw, two_layers

Forward = Callable[[Any, Tensor], Tensor]
ORDERS = [(3, 2, 4), (2, 3, 4), (2, 4, 3)]
"""Layouts of three packed things with two heads of width 4: things, heads and widths outermost to innermost."""


def heads(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The packed projections, the ordered axis in front."""
    return m.packed(x).unflatten(-1, order).movedim(order.index(3) - 3, 0)


def attention(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    q, k, v = m.packed(x).unflatten(-1, order).unbind(order.index(3) - 3)
    return m.head(((q @ k.mT).softmax(-1) @ v).flatten(-2))


def sum_over_the_three(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    q, k, v = (h := heads(m, x, order))
    return m.head((q * h.sum(0) + k * v.tanh()).flatten(-2))


def mixed_by_a_matrix(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    h = heads(m, x, order)
    return m.head((torch.einsum("p...,pq->q...", h, m.mix)[0] * h[1] + h[2].tanh()).flatten(-2))


def picked_and_flat(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    q, k, v = heads(m, x, order)
    return m.head((q * k + v.tanh()).flatten(-2)) + m.whole(m.packed(x).tanh())


def picked_by_slices(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    h = heads(m, x, order)
    return m.head((h[:2] * h[1:].tanh()).sum(0).flatten(-2))


def restacked(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    q, k, v = heads(m, x, order)
    h = torch.stack([v, q, k])
    return m.head((h[0] * h[1].softmax(-1) + h[2].tanh()).flatten(-2) + h.sum(0).flatten(-2))


def written_over(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    h = heads(m, x, order).contiguous()
    h[1] = h[0].tanh() + h[2]
    return m.head((h[0] * h[1]).flatten(-2))


def softmax_across(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    q, k, v = heads(m, x, order).softmax(0)
    return m.head((q * k + v.tanh()).flatten(-2))


def joined_in_another_order(m: Any, x: Tensor, order: tuple[int, ...]) -> Tensor:
    q, k, v = heads(m, x, order)
    return m.wide(torch.cat([v.tanh(), q, k.sin()], -1).flatten(-2))


# Sizes of the groups of each layout: a thing has a width of its own as long as nothing matches it to another.
STACKS: dict[Callable[..., Tensor], list[list[int]]] = {
    attention: [[2, 4, 2, 4], [2, 4, 4], [2, 4]],
    sum_over_the_three: [[2, 4]] * 3,
    mixed_by_a_matrix: [[2, 4]] * 3,
    picked_and_flat: [[2, 4]] * 3,
    picked_by_slices: [[2, 4]] * 3,
    restacked: [[2, 4]] * 3,
    written_over: [[2, 4]] * 3,
    softmax_across: [[2, 4]] * 3,
    joined_in_another_order: [[2, 4, 4, 4], [2, 4, 4, 4], [2, 4]],
}


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("forward", STACKS)
def test_packed_projections(forward: Callable[..., Tensor], layout: int, symmetry: Symmetry) -> None:
    model = Program(
        lambda m, x: forward(m, x, ORDERS[layout]),
        packed=nn.Linear(3, 24),
        head=nn.Linear(8, 2),
        wide=nn.Linear(24, 2),
        whole=nn.Linear(24, 2),
        mix=nn.Parameter(draw(3, 3)),
    )
    space = check(model, draw(2, 5, 3), symmetry)
    hidden = [size for name, size in space.groups.items() if name.startswith("h")]
    assert hidden == STACKS[forward][layout]


def written(index: Any, value: float = 1.0) -> Forward:
    """The hidden neurons times zeros, into a part of which something is written."""

    def forward(m: Any, x: Tensor) -> Tensor:
        mask = x.new_zeros(6)
        before = m.a(x) + mask  # read while all entries are equal
        mask[index] = value
        return m.b(m.a(x) * mask + before.tanh())

    return forward


def written_by_a_function(write: Callable[[Tensor], Any]) -> Forward:
    def forward(m: Any, x: Tensor) -> Tensor:
        mask = x.new_ones(6)
        write(mask)
        return m.b(m.a(x) * mask)

    return forward


def times(make: Callable[[Tensor], Tensor]) -> Forward:
    """The hidden neurons, combined with what is made of them."""
    return lambda m, x: m.b((h := m.a(x)).tanh() * make(h))


CONSTANTS: dict[str, tuple[Forward, list[int]]] = {
    "zeros": (lambda m, x: m.b(m.a(x) + x.new_zeros(6)), [6]),
    "one entry written": (written(2), []),
    "a piece written": (written(slice(0, 3)), [3, 3]),
    "every second written": (written(slice(0, None, 2)), [3]),
    "all written": (written(slice(None)), [6]),
    "written through a view": (written_by_a_function(lambda mask: mask.view(2, 3)[0].fill_(2.0)), [3]),
    "summed up in place": (written_by_a_function(lambda mask: mask.cumsum_(0)), []),
    "numbers written into it": (
        written_by_a_function(lambda mask: torch.add(mask, torch.arange(6, dtype=mask.dtype), out=mask)),
        [],
    ),
    "ones written into a piece of numbers": (
        times(lambda h: (n := torch.arange(6, dtype=h.dtype), torch.ones(3, dtype=h.dtype, out=n[:3]))[0]),
        [],
    ),
    "zeros beside ones": (times(lambda h: torch.cat([h.new_zeros(2), h.new_ones(4)])), [2, 4]),
    "zeros stacked on ones": (
        times(lambda h: torch.stack([h.new_zeros(3), h.new_ones(3)]).flatten()),
        [3, 3],
    ),
    "zeros and ones in turn": (
        times(lambda h: torch.stack([h.new_zeros(3), h.new_ones(3)], -1).flatten()),
        [3],
    ),
    "padded zeros": (times(lambda h: F.pad(h.new_zeros(4), (1, 1), value=2.0)), [4]),
    "a triangle of ones": (lambda m, x: m.b(m.a(x) @ x.new_ones(6, 6).tril()), []),
}
PIECES: dict[str, tuple[Forward, list[int]]] = {
    "halves swapped": (times(lambda h: torch.cat([h[:, 3:], h[:, :3]], 1)), [3]),
    "thirds rotated": (times(lambda h: torch.cat([h[:, 2:], h[:, :2]], 1)), [2]),
    "cut in two ways": (
        times(lambda h: torch.cat([h[:, :2].sin(), h[:, 2:]], 1) + torch.cat([h[:, 3:], h[:, :3]], 1)),
        [2],
    ),
    "shifted by one": (times(lambda h: F.pad(h, (1, 0))[:, :6]), []),
    "pieces that overlap": (times(lambda h: F.pad(h[:, :5] * h[:, 1:], (0, 1))), []),
    "halves rotated": (times(lambda h: torch.cat([-h[:, 3:], h[:, :3]], 1)), [3]),
    "pairs rotated": (times(lambda h: torch.stack([-h[:, 1::2], h[:, ::2]], -1).flatten(1)), [3]),
    "uneven chunks": (times(lambda h: torch.cat([c.softmax(-1) for c in h.split([2, 3, 1], 1)], 1)), [2, 3]),
    "transposed": (times(lambda h: h.view(2, 2, 3).mT.flatten(1)), []),
    "cut in two products": (
        times(lambda h: h.view(2, 2, 3).softmax(-1).flatten(1) * h.view(2, 3, 2).softmax(-1).flatten(1)),
        [],
    ),
    "repeated and interleaved": (
        times(lambda h: h[:, :3].repeat(1, 2) + h[:, :3].repeat_interleave(2, 1)),
        [],
    ),
    "other strides, transposing": (
        times(
            lambda h: torch.cat(
                [h[:, :4].contiguous().as_strided((2, 2, 2), (4, 1, 2)).flatten(1), h[:, :2]], 1
            )
        ),
        [],
    ),
    "other strides in place": (
        lambda m, x: m.b(m.a(x) * m.a.bias.outer(m.a.bias).as_strided_((6, 6), (1, 6)).tanh().sum(1) ** 2),
        [],
    ),
    "rows picked by number": (times(lambda h: h[:, [0, 2, 1, 1, 4, 5]]), []),
    "sorted": (times(lambda h: h.sort(-1)[0]), []),
    "differences": (times(lambda h: F.pad(h.diff(dim=-1), (0, 1))), []),
    "written into zeros": (
        times(
            lambda h: (z := torch.zeros_like(h), z[:, :2].copy_(h[:, :2]), z[:, 2:].copy_(h[:, 2:].sin()))[0]
        ),
        [2, 4],
    ),
}
CASES = CONSTANTS | PIECES


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("name", CASES)
def test_pieces_and_constants(name: str, symmetry: Symmetry) -> None:
    forward, groups = CASES[name]
    space = check(Program(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2)), draw(2, 3), symmetry)
    assert [size for group, size in space.groups.items() if group.startswith("h")] == groups


RAMP, MASK = torch.arange(6.0), torch.tensor([True, False, True, True, False, True])


def masked_later(m: Any, x: Tensor) -> Tensor:
    mask = m.mask.clone()
    mask[0] = mask[1]
    return m.b(m.a(x)) + m.a(x)[:, mask][:, :2]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(x)) + m.a(x)[:, MASK][:, :2],
        lambda m, x: m.b(m.a(x)) + m.a(x)[:, m.mask][:, :2],
        lambda m, x: m.b(m.a(x)) + m.a(x)[:, torch.arange(6) % 3 == 0],
        lambda m, x: m.b(m.a(x)) + m.a(x)[torch.ones(2, 6, dtype=torch.bool).tril()][:2],
        lambda m, x: m.b(m.a(x)) + RAMP[MASK][:2].to(x.dtype) * m.a(x)[:, :2],
        masked_later,
    ],
)
def test_entries_chosen_by_a_constant_mask_keep_their_order(forward: Callable[[Any, Tensor], Tensor]) -> None:
    chosen: Any = two_layers(lambda m, x: m.c(forward(m, x)), c=nn.Linear(2, 5), mask=MASK.clone())
    groups = check(nn.Sequential(chosen, nn.Tanh(), nn.Linear(5, 2)), draw(2, 3)).groups
    assert 5 in groups.values()
    assert 6 not in groups.values()
    assert chosen.mask.tolist() == MASK.tolist()


def test_a_mask_that_is_written_into_by_unknown_values_is_unknown() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.mask[0] = x[0, 0] > 0
        return m.b(m.a(x)) + m.a(x)[:, m.mask][:, :2]

    model = two_layers(forward, mask=MASK.clone())
    with pytest.raises(ValueError, match="selection by a mask"):
        WeightSpace.from_module(model, draw(2, 3))


@pytest.mark.parametrize(
    ("forward", "weight"),
    [
        (lambda m, x: m.b(F.pad(m.a(x), (1, 0))[:, :6]), "a.weight ((h1+1):6, 3)"),
        (lambda m, x: m.b(F.pad(m.a(x).tanh()[:, :4], (1, 1))), "a.weight ((h1+2):6, 3)"),
        (lambda m, x: m.b(m.a(x)) + m.a(x)[:, :2], "a.weight ((2+h1):6, 3)"),
    ],
)
def test_what_is_left_of_a_cut_keeps_its_group(forward: Forward, weight: str) -> None:
    assert str(check(two_layers(forward), draw(2, 3)).parameters[0]) == weight


def test_parameters_without_entries_have_no_group() -> None:
    model: Any = two_layers(lambda m, x: m.b(m.a(x)) + m.empty.sum())
    model.empty = nn.Parameter(torch.empty(0, 8))
    assert WeightSpace.from_module(model, draw(2, 3)).groups == {"h1": 6}


def test_experts_picked_one_by_one_keep_their_roles() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.b(x @ m.experts[0] + x @ m.experts[1])
        return out

    space = check(two_layers(forward, experts=nn.Parameter(draw(2, 3, 6))), draw(2, 3))
    experts = space["experts"]
    assert [str(axis) for axis in experts.axes] == ["2", "3", "h1:6"]
    assert [axis.role for axis in experts.axes[1:]] == ["in", "out"]


def test_noise_of_dropout_in_training_is_symmetric() -> None:
    space = WeightSpace.from_module(two_layers(lambda m, x: m.b(F.dropout(m.a(x), 0.5, True))), draw(2, 3))
    assert space.groups == {"h1": 6}
