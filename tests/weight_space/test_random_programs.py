"""Random programs of operators: whatever symmetry the tracer finds in one, it must have.

Each rule of the tracer meets inputs of many shapes, views and histories here, among them operators that the
tracer may well fix (padding, rolling, writing under a view), but may not take for symmetric.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.weight_space import Symmetry, operators
from nfn_opt.weight_space.traced import TracedAxis, fresh
from tests.weight_space.programs import Operator, RandomProgram, is_sound


def group_norm(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    groups = p.divisor(h.shape[1])
    if h[0].numel() < 3 * groups:
        return h  # one or two entries are normalised to rounding errors
    return torch.group_norm(h, groups, p.weight(h.shape[1]))


def grouped_convolution(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    h = h.flatten(2) if h.dim() > 2 else h[..., None]
    groups = p.divisor(h.shape[1])
    return F.conv1d(h, p.weight(groups * p.size(), h.shape[1] // groups, 1), groups=groups)


def transposed_convolution(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    h = h.flatten(2) if h.dim() > 2 else h[..., None]
    return F.conv_transpose1d(h, p.weight(h.shape[1], 2, 1), groups=p.divisor(h.shape[1]))


def written_under_a_view(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    buffer = torch.zeros_like(h).contiguous()
    flat = buffer.view(-1)
    torch.mul(h, 2.0, out=buffer) if p.choices.random() < 0.5 else buffer.copy_(h)
    return flat * 3


def partly_overwritten(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    copy = h.clone().contiguous()
    flat = copy.flatten()
    copy.select(d, 0).mul_(2.0)
    return flat.reshape(h.shape)


def broadcast(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    other = p.choices.choice(p.values)
    fits = all(a == b or 1 in (a, b) for a, b in zip(reversed(h.shape), reversed(other.shape), strict=False))
    return h * other.sigmoid() if fits else h


def scaled(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    return h * p.weight(*(size if i == d else 1 for i, size in enumerate(h.shape)))


def reshaped(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    rows = p.divisor(h.numel())
    return h.reshape(rows, h.numel() // rows)


def embedded(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    return F.embedding((h > 0).long(), p.weight(2, p.size()))


def picked_rows(p: RandomProgram, h: Tensor, d: int) -> Tensor:
    return p.weight(2, p.size()).index_select(0, (h.flatten() > 0).long())


OPERATORS: list[Operator] = [
    group_norm,
    grouped_convolution,
    transposed_convolution,
    written_under_a_view,
    partly_overwritten,
    broadcast,
    scaled,
    reshaped,
    embedded,
    picked_rows,
    lambda p, h, d: F.linear(h, p.weight(p.size(), h.shape[-1])),
    lambda p, h, d: F.linear(h, p.weight(4, h.shape[-1]), p.weight(4)),
    lambda p, h, d: p.weight(p.size(), h.shape[-2]) @ h,
    lambda p, h, d: torch.einsum("...i,ji->...j", h, p.weight(p.size(), h.shape[-1])),
    lambda p, h, d: F.linear(h, torch._weight_norm(p.weight(3, h.shape[-1]), p.weight(3, 1), 0)),
    lambda p, h, d: h + p.weight(h.shape[-1]),
    lambda p, h, d: torch.where(h > 0, h, p.weight(h.shape[-1])),
    lambda p, h, d: h.clone().tanh_(),
    lambda p, h, d: h.transpose(d, -1),
    lambda p, h, d: h.permute(p.choices.sample(range(h.dim()), h.dim())),
    lambda p, h, d: h.flatten(min(d, h.dim() - 2), min(d, h.dim() - 2) + 1),
    lambda p, h, d: h.unflatten(d, (p.divisor(h.shape[d]), -1)),
    lambda p, h, d: h.unsqueeze(d).expand(*h.shape[:d], 2, *h.shape[d:]),
    lambda p, h, d: h.repeat(*(2 if i == d else 1 for i in range(h.dim()))),
    lambda p, h, d: h.repeat_interleave(2, d),
    lambda p, h, d: h.sum(d, keepdim=True),
    lambda p, h, d: h.logsumexp(d),
    lambda p, h, d: h + h.mean(),
    lambda p, h, d: torch.var_mean(h, d, correction=0)[p.choices.randrange(2)],
    lambda p, h, d: h.softmax(d),
    lambda p, h, d: F.normalize(h, dim=d, eps=1e-3),
    lambda p, h, d: F.layer_norm(h, h.shape[d:], p.weight(*h.shape[d:])),
    lambda p, h, d: torch.native_layer_norm(h, h.shape[-1:], None, None, 1e-5)[1],
    lambda p, h, d: h.transpose(-1, -2) @ h / h.shape[-2],
    lambda p, h, d: h + h.mT if h.shape[-1] == h.shape[-2] else h,
    lambda p, h, d: sum(h.unbind(d), torch.zeros(())),
    lambda p, h, d: h.narrow(d, 0, max(1, h.shape[d] - 1)),
    lambda p, h, d: h.select(d, 0),
    lambda p, h, d: h.roll(1, d) if p.choices.random() < 0.5 else h.roll(1),
    lambda p, h, d: h.flip(d),
    lambda p, h, d: h.cumsum(d),
    lambda p, h, d: h.sort(d)[0],
    lambda p, h, d: h.amax(d),
    lambda p, h, d: h.max(d)[0],
    lambda p, h, d: F.pad(h, p.choices.choice([(1, -1), (1, 0), (0, 1)])),
    lambda p, h, d: h.index_select(d, torch.arange(h.shape[d] - 1, -1, -1)),
    lambda p, h, d: h * torch.arange(h.shape[-1], dtype=h.dtype),
    lambda p, h, d: h + torch.full(h.shape[-1:], 2.0, dtype=h.dtype),
]


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("first", range(0, 400, 20))
def test_no_symmetry_is_invented(first: int, symmetry: Symmetry) -> None:
    assert [seed for seed in range(first, first + 20) if not is_sound(seed, OPERATORS, symmetry)] == []


@pytest.mark.parametrize("name", ["cumsum", "constant_pad_nd", "native_group_norm", "mm", "add"])
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(call: operators.Call) -> list[TracedAxis]:
        return fresh(call.out.shape)

    monkeypatch.setitem(operators.RULES, getattr(torch.ops.aten, name), careless)
    assert not all(is_sound(seed, OPERATORS, "all") for seed in range(200))
