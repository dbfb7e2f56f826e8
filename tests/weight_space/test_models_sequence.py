"""Recurrent networks, attention and Transformers, and the symmetry that each must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.weight_space import Symmetry
from tests.weight_space.architectures import VisionTransformer, around
from tests.weight_space.cases import Case, check_case, check_torn
from tests.weight_space.models import Program, draw

SEQUENCES = draw(2, 5, 3)
ENDS = {"in1": 3, "out1": 2}
LAYER: dict[str, Any] = {"dim_feedforward": 20, "batch_first": True, "dropout": 0.0}


def cell(layer: nn.Module) -> nn.Module:
    """Two steps of a cell, the first from a state of zeros."""

    def forward(m: Any, x: Tensor) -> Tensor:
        state = m.layer(x[:, 1], m.layer(x[:, 0]))
        return m.head(state[0] if isinstance(state, tuple) else state)

    return Program(forward, layer=layer, head=nn.Linear(5, 2))


def attention(kv_heads: int = 6, **options: Any) -> nn.Module:
    """Attention by hand, six heads of width 4, with fewer for keys and values where asked."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2))

    keys, values = nn.Linear(3, 4 * kv_heads), nn.Linear(3, 4 * kv_heads)
    return Program(forward, q=nn.Linear(3, 24), k=keys, v=values, o=nn.Linear(24, 2))


def multihead(options: dict[str, Any] | None = None, **call: Any) -> nn.Module:
    """A residual layer of ``nn.MultiheadAttention`` that attends to its own input."""
    layer = nn.MultiheadAttention(12, 3, batch_first=True, **(options or {}))
    return around(layer, 12, 12, lambda layer, h: h + layer(h, h, h, **call)[0])


def cross_attention() -> nn.Module:
    """Queries from one input, keys and values from another."""
    return Program(
        lambda m, x, y: m.head(m.layer(m.left(x), (h := m.right(y)), h)[0]),
        left=nn.Linear(3, 12),
        right=nn.Linear(4, 12),
        layer=nn.MultiheadAttention(12, 3, batch_first=True),
        head=nn.Linear(12, 2),
    )


def separate_projections() -> nn.Module:
    return Program(
        lambda m, x: m.head(m.layer(m.q(x), m.k(x), m.v(x))[0]),
        q=nn.Linear(3, 12),
        k=nn.Linear(3, 5),
        v=nn.Linear(3, 7),
        layer=nn.MultiheadAttention(12, 3, kdim=5, vdim=7, batch_first=True),
        head=nn.Linear(12, 2),
    )


def encoder_and_decoder(layer: nn.Module, **call: Any) -> nn.Module:
    return Program(
        lambda m, x, y: m.head(m.layer(m.embed(x), m.embed(y), **call)),
        embed=nn.Linear(3, 12),
        layer=layer,
        head=nn.Linear(12, 2),
    )


RECURRENT = {
    "RNN": Case(
        lambda: around(nn.RNN(4, 5, batch_first=True), 4, 5),
        SEQUENCES,
        [4, 5],
        ENDS,
        "layer.weight_ih_l0 (h2:5, h1:4); layer.weight_hh_l0 (h2:5, h2:5); layer.bias_hh_l0 (h2:5)",
    ),
    "RNN, stacked, both directions": Case(
        lambda: around(
            nn.RNN(4, 5, num_layers=2, bidirectional=True, batch_first=True, nonlinearity="relu"), 4, 10
        ),
        SEQUENCES,
        [4, 5, 5, 5, 5],
        ENDS,
        "layer.weight_hh_l0_reverse (h3:5, h3:5); layer.weight_ih_l1 (h4:5, (h2+h3):10); head.weight (2, (h4+h5):10)",
    ),
    "GRU, stacked": Case(
        lambda: around(nn.GRU(4, 5, num_layers=2, batch_first=True), 4, 5),
        SEQUENCES,
        [4, 5, 5],
        ENDS,
        "layer.weight_ih_l0 (3, h2:5, h1:4); layer.weight_hh_l0 (3, h2:5, h2:5); layer.bias_hh_l0 (3, h2:5); "
        "layer.weight_ih_l1 (3, h3:5, h2:5); head.weight (2, h3:5)",
    ),
    "GRU, both directions": Case(
        lambda: around(nn.GRU(4, 5, bidirectional=True, batch_first=True), 4, 10),
        SEQUENCES,
        [4, 5, 5],
        ENDS,
        "layer.weight_hh_l0_reverse (3, h3:5, h3:5); head.weight (2, (h2+h3):10)",
    ),
    "LSTM, stacked, both directions": Case(
        lambda: around(nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True), 4, 10),
        SEQUENCES,
        [4, 5, 5, 5, 5],
        ENDS,
        "layer.weight_ih_l0 (4, h2:5, h1:4); layer.weight_hh_l0 (4, h2:5, h2:5); "
        "layer.weight_ih_l1_reverse (4, h5:5, (h2+h3):10); layer.weight_hh_l1_reverse (4, h5:5, h5:5)",
    ),
    "LSTM with a projection, stacked": Case(
        lambda: around(nn.LSTM(4, 6, proj_size=5, num_layers=2, batch_first=True), 4, 5),
        SEQUENCES,
        [4, 6, 5, 6, 5],
        ENDS,
        "layer.weight_ih_l0 (4, h2:6, h1:4); layer.weight_hh_l0 (4, h2:6, h3:5); layer.weight_hr_l0 (h3:5, h2:6); "
        "layer.weight_ih_l1 (4, h4:6, h3:5)",
    ),
    "RNN cell": Case(
        lambda: cell(nn.RNNCell(3, 5)),
        SEQUENCES,
        [5],
        ENDS,
        "layer.weight_ih (h1:5, 3); layer.weight_hh (h1:5, h1:5)",
    ),
    "GRU cell": Case(
        lambda: cell(nn.GRUCell(3, 5)),
        SEQUENCES,
        [5],
        ENDS,
        "layer.weight_ih (3, h1:5, 3); layer.weight_hh (3, h1:5, h1:5)",
    ),
    "LSTM cell": Case(
        lambda: cell(nn.LSTMCell(3, 5)),
        SEQUENCES,
        [5],
        ENDS,
        "layer.weight_ih (4, h1:5, 3); layer.weight_hh (4, h1:5, h1:5)",
    ),
}

PACKED = (
    "layer.in_proj_weight ((h2*h3+h2*h3+h2*h4):36, h1:12); layer.in_proj_bias ((h2*h3+h2*h3+h2*h4):36); "
    "layer.out_proj.weight (h1:12, h2:3, h4:4); layer.out_proj.bias (h1:12)"
)
HEADS = (
    "q.weight (h1:6, h2:4, 3); k.weight (h1:6, h2:4, 3); v.weight (h1:6, h3:4, 3); o.weight (2, h1:6, h3:4)"
)
SHARED_HEADS = (
    "q.weight (h1:2, h2:3, h3:4, 3); k.weight (h1:2, h3:4, 3); v.weight (h1:2, h4:4, 3); "
    "o.weight (2, h1:2, h2:3, h4:4)"
)
ATTENTION = {
    "multi-head": Case(multihead, SEQUENCES, [12, 3, 4, 4], ENDS, PACKED),
    "multi-head, causal, without the weights": Case(
        lambda: multihead(need_weights=False, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1)),
        SEQUENCES,
        [12, 3, 4, 4],
        ENDS,
        PACKED,
    ),
    "multi-head with padding": Case(
        lambda: multihead(key_padding_mask=torch.tensor([[False] * 4 + [True]] * 2)),
        SEQUENCES,
        [12, 3, 4, 4],
        ENDS,
        PACKED,
    ),
    "multi-head with learned keys and values": Case(
        lambda: multihead({"add_bias_kv": True, "add_zero_attn": True}),
        SEQUENCES,
        [12, 3, 4, 4],
        ENDS,
        f"{PACKED}; layer.bias_k (1, 1, h2:3, h3:4); layer.bias_v (1, 1, h2:3, h4:4)",
    ),
    "cross": Case(
        cross_attention,
        (SEQUENCES, draw(2, 6, 4)),
        [12, 3, 4, 4, 12],
        {"in1": 3, "in2": 4, "out1": 2},
        "left.weight (h1:12, 3); right.weight (h1:12, 4); layer.in_proj_weight ((h2*h3+h2*h3+h2*h4):36, h1:12); "
        "layer.out_proj.weight (h5:12, h2:3, h4:4)",
    ),
    "keys and values of other widths": Case(
        separate_projections,
        SEQUENCES,
        [12, 5, 7, 3, 4, 4, 12],
        ENDS,
        "layer.q_proj_weight (h4:3, h5:4, h1:12); layer.k_proj_weight (h4:3, h5:4, h2:5); "
        "layer.v_proj_weight (h4:3, h6:4, h3:7); layer.in_proj_bias ((h4*h5+h4*h5+h4*h6):36); "
        "layer.out_proj.weight (h7:12, h4:3, h6:4)",
    ),
    "by hand": Case(attention, SEQUENCES, [6, 4, 4], ENDS, HEADS),
    "by hand, causal": Case(lambda: attention(is_causal=True), SEQUENCES, [6, 4, 4], ENDS, HEADS),
    "by hand, masked": Case(
        lambda: attention(attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()),
        SEQUENCES,
        [6, 4, 4],
        ENDS,
        HEADS,
    ),
    "grouped queries": Case(
        lambda: attention(2, enable_gqa=True), SEQUENCES, [2, 3, 4, 4], ENDS, SHARED_HEADS
    ),
    "grouped queries, causal": Case(
        lambda: attention(2, enable_gqa=True, is_causal=True), SEQUENCES, [2, 3, 4, 4], ENDS, SHARED_HEADS
    ),
    "one head for all keys and values": Case(
        lambda: attention(1, enable_gqa=True),
        SEQUENCES,
        [6, 4, 4],
        ENDS,
        "q.weight (h1:6, h2:4, 3); k.weight (h2:4, 3); v.weight (h3:4, 3); o.weight (2, h1:6, h3:4)",
    ),
}

TRANSFORMERS = {
    "encoder": Case(
        lambda: around(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, **LAYER), 2, enable_nested_tensor=False),
            12,
            12,
            lambda layer, h: layer(h),
        ),
        SEQUENCES,
        [12, 3, 4, 4, 20, 3, 4, 4, 20],
        ENDS,
        "layer.layers.0.self_attn.in_proj_weight ((h2*h3+h2*h3+h2*h4):36, h1:12); "
        "layer.layers.1.self_attn.out_proj.weight (h1:12, h6:3, h8:4); layer.layers.1.linear1.weight (h9:20, h1:12); "
        "layer.layers.1.linear2.weight (h1:12, h9:20); layer.layers.0.norm2.weight (h1:12); head.weight (2, h1:12)",
    ),
    "encoder layer, norm first, with padding": Case(
        lambda: around(
            nn.TransformerEncoderLayer(12, 3, norm_first=True, activation="gelu", **LAYER),
            12,
            12,
            lambda layer, h: layer(h, src_key_padding_mask=torch.tensor([[False] * 4 + [True]] * 2)),
        ),
        SEQUENCES,
        [12, 3, 4, 4, 20],
        ENDS,
        "layer.self_attn.in_proj_weight ((h2*h3+h2*h3+h2*h4):36, h1:12); layer.linear1.weight (h5:20, h1:12)",
    ),
    "decoder": Case(
        lambda: encoder_and_decoder(nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 3, **LAYER), 1)),
        (SEQUENCES, draw(2, 4, 3)),
        [12, 3, 4, 4, 3, 4, 4, 20],
        ENDS,
        "layer.layers.0.multihead_attn.in_proj_weight ((h5*h6+h5*h6+h5*h7):36, h1:12); "
        "layer.layers.0.multihead_attn.out_proj.weight (h1:12, h5:3, h7:4); "
        "layer.layers.0.linear1.weight (h8:20, h1:12)",
    ),
    "encoder and decoder": Case(
        lambda: encoder_and_decoder(
            nn.Transformer(12, 4, 1, 1, **LAYER),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64),
            tgt_is_causal=True,
        ),
        (SEQUENCES, draw(2, 4, 3)),
        [12, 4, 3, 3, 20, 4, 3, 3, 4, 3, 3, 20],
        ENDS,
        "layer.encoder.layers.0.self_attn.in_proj_weight ((h2*h3+h2*h3+h2*h4):36, h1:12); "
        "layer.decoder.layers.0.self_attn.out_proj.weight (h1:12, h6:4, h8:3); "
        "layer.decoder.layers.0.multihead_attn.in_proj_weight ((h9*h10+h9*h10+h9*h11):36, h1:12); "
        "layer.decoder.norm.weight (h1:12)",
    ),
    "Vision Transformer": Case(
        VisionTransformer,
        draw(2, 3, 8, 8),
        [12, 3, 4, 4, 20, 3, 4, 4, 20],
        ENDS,
        "token (1, 1, h1:12); positions (1, 5, h1:12); patches.weight (h1:12, 3, 4, 4); "
        "blocks.0.attention.qkv.weight ((h2*h3+h2*h3+h2*h4):36, h1:12); "
        "blocks.1.attention.qkv.bias ((h6*h7+h6*h7+h6*h8):36); blocks.1.attention.out.weight (h1:12, h6:3, h8:4); "
        "blocks.1.mlp.0.weight (h9:20, h1:12); norm.weight (h1:12); head.weight (2, h1:12)",
    ),
}

CASES = RECURRENT | ATTENTION | TRANSFORMERS


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("name", CASES)
def test_groups_and_axes(name: str, symmetry: Symmetry) -> None:
    check_case(CASES[name], symmetry)


@pytest.mark.parametrize("name", CASES)
def test_no_matrix_can_be_torn_from_its_groups(name: str) -> None:
    check_torn(CASES[name])


def test_states_that_are_returned_are_outputs() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        h, (state, memory) = m.layer(m.embed(x))
        return m.head(h), state, memory

    members = {"embed": nn.Linear(3, 4), "layer": nn.LSTM(4, 5, batch_first=True), "head": nn.Linear(5, 2)}
    case = Case(
        lambda: Program(forward, **members),
        SEQUENCES,
        [4],
        {"in1": 3, "out1": 5, "out2": 2},
        "embed.weight (h1:4, 3); layer.weight_hh_l0 (20, 5); head.weight (2, 5)",
    )
    check_case(case, "hidden")
    space = check_case(case, "all")
    assert str(space["layer.weight_hh_l0"]) == "layer.weight_hh_l0 (4, out1:5, out1:5)"
    assert [str(spec) for spec in space.outputs[1:]] == ["output 1 (1, 2, out1:5)", "output 2 (1, 2, out1:5)"]


def test_heads_whose_weights_are_returned_are_outputs() -> None:
    case = Case(
        lambda: Program(
            lambda m, x: m.layer((h := m.embed(x)), h, h, average_attn_weights=False),
            embed=nn.Linear(3, 12),
            layer=nn.MultiheadAttention(12, 3, batch_first=True),
        ),
        SEQUENCES,
        [12, 4, 4],
        {"in1": 3, "out1": 3, "out2": 12},
        "layer.in_proj_weight ((3*h2+3*h2+3*h3):36, h1:12); layer.out_proj.weight (12, 3, h3:4)",
    )
    check_case(case, "hidden")
    space = check_case(case, "all")
    assert str(space["layer.out_proj.weight"]) == "layer.out_proj.weight (out2:12, out1:3, h3:4)"
