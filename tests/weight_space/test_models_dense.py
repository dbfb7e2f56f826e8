"""Embeddings, gated MLPs, coordinate networks, computed weights and products, and the symmetry that each must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry
from nfn_opt.weight_space.tracing import UnknownOperatorWarning
from tests.weight_space.architectures import FourierNetwork, Siren, gated, parametrized, tied_embedding
from tests.weight_space.cases import Case, check_case, check_torn
from tests.weight_space.models import Program, check, draw, views

ROWS = draw(2, 3)
TOKENS = torch.tensor([[0, 3, 6], [1, 1, 2]])
ENDS = {"in1": 3, "out1": 2}


def equilibrium() -> nn.Module:
    """One layer applied again and again, from a state of zeros."""

    def forward(m: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 5)
        for _ in range(3):
            state = torch.tanh(m.state(state) + m.read(x))
        return m.head(state)

    return Program(forward, read=nn.Linear(3, 5), state=nn.Linear(5, 5), head=nn.Linear(5, 2))


CASES = {
    "embedding bag": Case(
        lambda: nn.Sequential(nn.EmbeddingBag(7, 5), nn.Linear(5, 2)),
        TOKENS,
        [5],
        {"out1": 2},
        "0.weight (7, h1:5); 1.weight (2, h1:5)",
    ),
    "tied embedding": Case(
        tied_embedding,
        TOKENS,
        [6],
        {},
        "embed.weight (7, h1:6); layer.weight (h1:6, h1:6); layer.bias (h1:6)",
    ),
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)),
        ROWS,
        [5],
        ENDS,
        "1.weight (h1:5); 1.bias (h1:5)",
    ),
    "RMS norm": Case(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.RMSNorm(5), nn.Tanh(), nn.Linear(5, 2)),
        ROWS,
        [5],
        ENDS,
        "1.weight (h1:5)",
    ),
    "GLU": Case(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)),
        ROWS,
        [4],
        ENDS,
        "0.weight (2, h1:4, 3); 0.bias (2, h1:4); 2.weight (2, h1:4)",
    ),
    "gated, two projections": Case(
        lambda: gated(packed=False),
        ROWS,
        [5],
        ENDS,
        "gate.weight (h1:5, 3); up.weight (h1:5, 3); down.weight (2, h1:5)",
    ),
    "gated, packed": Case(
        lambda: gated(packed=True),
        ROWS,
        [5],
        ENDS,
        "up.weight (2, h1:5, 3); up.bias (2, h1:5); down.weight (2, h1:5)",
    ),
    "SIREN": Case(
        lambda: Siren(2, 8, 8, 3),
        draw(4, 2),
        [8, 8],
        {"in1": 2, "out1": 3},
        "layers.0.weight (h1:8, 2); layers.1.weight (h2:8, h1:8); layers.2.weight (3, h2:8)",
    ),
    "fixed Fourier features": Case(
        FourierNetwork,
        draw(4, 2),
        [7],
        {"out1": 3},
        "layers.0.weight (h1:7, 10); layers.2.weight (3, h1:7)",
    ),
    "weight norm": Case(
        lambda: parametrized("weight_norm"),
        ROWS,
        [5, 6],
        ENDS,
        "2.parametrizations.weight.original0 (h2:6, 1); 2.parametrizations.weight.original1 (h2:6, h1:5)",
    ),
    "spectral norm": Case(
        lambda: parametrized("spectral_norm"),
        ROWS,
        [5, 6],
        ENDS,
        "2.parametrizations.weight.original (h2:6, h1:5); 4.weight (2, h2:6)",
    ),
    "weights made by another layer": Case(
        lambda: Program(
            lambda m, x: F.linear(x, m.make(m.code).view(4, 3)) @ m.last,
            code=nn.Parameter(draw(5)),
            make=nn.Linear(5, 12),
            last=nn.Parameter(draw(4, 2)),
        ),
        ROWS,
        [5, 4],
        ENDS,
        "code (h1:5); make.weight (h2:4, 3, h1:5); make.bias (h2:4, 3); last (h2:4, 2)",
    ),
    "a layer tied over depth": Case(
        equilibrium,
        ROWS,
        [5],
        ENDS,
        "read.weight (h1:5, 3); state.weight (h1:5, h1:5); head.weight (2, h1:5)",
    ),
    "einsum with heads": Case(
        lambda: Program(
            lambda m, x: m.head(torch.einsum("bi,hid->bhd", x, m.weight).flatten(1)),
            weight=nn.Parameter(draw(4, 3, 5)),
            head=nn.Linear(20, 2),
        ),
        ROWS,
        [4, 5],
        ENDS,
        "weight (h1:4, 3, h2:5); head.weight (2, h1:4, h2:5)",
    ),
    "einsum of four": Case(
        lambda: Program(
            lambda m, x: torch.einsum("bi,ij,jk,bk->b", m.left(x), m.first, m.second, m.right(x)),
            left=nn.Linear(3, 4),
            right=nn.Linear(3, 5),
            first=nn.Parameter(draw(4, 6)),
            second=nn.Parameter(draw(6, 5)),
        ),
        ROWS,
        [4, 6, 5],
        {"in1": 3},
        "first (h1:4, h2:6); second (h2:6, h3:5); left.weight (h1:4, 3); right.weight (h3:5, 3)",
    ),
    "bilinear": Case(
        lambda: Program(
            lambda m, x: m.head(m.both(m.left(x), m.right(x))),
            left=nn.Linear(3, 4),
            right=nn.Linear(3, 5),
            both=nn.Bilinear(4, 5, 6),
            head=nn.Linear(6, 2),
        ),
        ROWS,
        [4, 5, 6],
        ENDS,
        "both.weight (h3:6, h1:4, h2:5); head.weight (2, h3:6)",
    ),
}


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("name", CASES)
def test_groups_and_axes(name: str, symmetry: Symmetry) -> None:
    check_case(CASES[name], symmetry)


@pytest.mark.parametrize("name", CASES)
def test_no_matrix_can_be_torn_from_its_groups(name: str) -> None:
    check_torn(CASES[name])


def test_the_vectors_of_a_spectral_norm_move_with_the_neurons() -> None:
    space = check_case(CASES["spectral norm"], "hidden")
    assert [str(spec) for spec in space.buffers] == [
        "2.parametrizations.weight.0._u (h2:6)",
        "2.parametrizations.weight.0._v (h1:5)",
    ]


def test_a_tied_embedding_has_an_alias() -> None:
    assert check(tied_embedding(), TOKENS).aliases == (("head.weight", "embed.weight"),)


@pytest.mark.filterwarnings("ignore:operator aten.diagonal")
def test_an_orthogonal_layer_is_fixed_and_named() -> None:
    model = parametrized("orthogonal")
    with pytest.warns(UnknownOperatorWarning, match=r"householder_product in module '2\.parametrizations"):
        space = check(model, ROWS)
    assert space.groups == {}
    assert "2.parametrizations.weight.original (6, 5)" in views(space)
