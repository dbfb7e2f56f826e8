r"""The attention layer beside the paper's equations (arXiv:2305.13546, Sec. 3.1) written out with loops.

For head :math:`h` and an MLP with :math:`W^{(i)}` of shape :math:`n_i \times n_{i-1}`, with
:math:`\mathrm{AT}(q, K, V) = \sum_t V_t\, \mathrm{softmax}_t(K_t \cdot q / \sqrt{d})`:

.. math::
    Y^{(i)}_{jk} &= \mathrm{AT}(W^{(i)}_{:k}; T_i)_j + \mathrm{AT}(W^{(i)}_{j:}; T_{i-1})_k
        + \mathrm{AT}(\bar W^{(i)}; \bar T) \\
    y^{(i)}_j &= \mathrm{AT}(v^{(i)}; T_i)_j + \mathrm{AT}(\bar v^{(i)}; \bar T)

where :math:`T_i` holds the columns of :math:`W^{(i)}`, :math:`v^{(i)}` and the rows of :math:`W^{(i+1)}`, and
:math:`\bar T` the means of all tensors.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from nfn_opt.layers.attention import NFAttention
from nfn_opt.testing import random_features
from nfn_opt.weight_space import Axis, Features, Symmetry, TensorSpec, WeightSpace
from tests.layers.spaces import SYMMETRIES, Residual, cnn, mlp, space_of

C, HEADS = 4, 2


def attention(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    scores = torch.stack([(query * key).sum() for key in keys]) / math.sqrt(query.numel())
    weights = torch.softmax(scores, 0)
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0)


def slices(tensor: Tensor, axis: int) -> list[tuple[tuple[int, ...], Tensor]]:
    """Indices of all other axes, and the slice ``(neurons, channels)`` there."""
    moved = tensor.movedim(axis, -2)
    return [(index, moved[index]) for index in product(*map(range, moved.shape[:-2]))]


def twin(layer: NFAttention, space: WeightSpace, features: Features) -> Features:
    """The result for one network and shared projections, head by head and token by token."""
    weight = layer.qkv[0].unflatten(0, (3, HEADS, -1))
    biases = torch.stack([layer.query_bias[0], torch.zeros_like(layer.query_bias[0]), layer.value_bias[0]])
    results = {name: torch.zeros_like(tensor) for name, tensor in features.items()}
    width = C // HEADS
    for head in range(HEADS):
        columns = slice(head * width, (head + 1) * width)
        q, k, v = (
            {n: x @ weight[part, head].T + biases[part, columns] for n, x in features.items()}
            for part in range(3)
        )
        for group in space.groups:
            axes = [(s.name, i) for s in space.parameters for i, a in enumerate(s.axes) if a.name == group]
            keys = [token for name, i in axes for _, token in slices(k[name], i)]
            values = [token for name, i in axes for _, token in slices(v[name], i)]
            for name, i in axes:
                target = results[name].movedim(i, -2)
                for index, query in slices(q[name], i):
                    target[index][:, columns] += attention(query, keys, values)
        means = {
            part: [(s.name, index, mean) for s in space.parameters for index, mean in positions(s, x[s.name])]
            for part, x in (("q", q), ("k", k), ("v", v))
        }
        for name, where, query in means["q"]:
            mixed = attention(query, [m for *_, m in means["k"]], [m for *_, m in means["v"]])
            results[name][..., columns][where] += mixed
    return results


def positions(spec: TensorSpec, tensor: Tensor) -> list[tuple[tuple[slice | int, ...], Tensor]]:
    """Indices of the fixed axes, and the mean over the neurons there."""
    choices: list[list[slice | int]] = [
        [slice(None)] if axis.permutable else list(range(axis.size)) for axis in spec.axes
    ]
    return [(index, tensor[index].reshape(-1, tensor.shape[-1]).mean(0)) for index in product(*choices)]


def three_axes() -> WeightSpace:
    a, b = Axis("a", 3), Axis("b", 2)
    return WeightSpace(
        (
            TensorSpec("cube", (3, 4, 2), (a, Axis("fixed", 4, False), b)),
            TensorSpec("square", (2, 2), (b, b)),
            TensorSpec("scale", (), ()),
        )
    )


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", ["MLP", "CNN", "residual", "three axes"])
def test_same_as_the_equations(name: str, symmetry: Symmetry, generator: torch.Generator) -> None:
    spaces = {
        "MLP": lambda: space_of(mlp(3, 4, 2), 3, symmetry=symmetry),
        "CNN": lambda: space_of(cnn(2, 3, 2, kernel=2), 2, 6, 6, symmetry=symmetry),
        "residual": lambda: space_of(Residual(3, 4, 2), 3, symmetry=symmetry),
        "three axes": three_axes,
    }
    space = spaces[name]()
    layer = NFAttention(space, C, HEADS, generator=generator).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    features = random_features(space, C, 1, generator=generator)
    with torch.no_grad():
        got = layer(features)
        expected = twin(layer, space, {n: t[0] for n, t in features.items()})
    for n in space.names:
        torch.testing.assert_close(got[n][0], expected[n], rtol=1e-10, atol=1e-10)
