"""The attention layer with the weights of the ``nfn`` package's gives the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nfn_opt.testing import random_features
from tests.layers.nfn_attention import from_nfn_attention, make_nfn_attention
from tests.layers.nfn_weights import to_nfn, to_ours
from tests.layers.spaces import cnn, mlp, space_of

C, HEADS = 8, 4
NETWORKS = {
    "MLP of 2 layers": (mlp(3, 7, 2), (3,), True),
    "MLP of 4 layers": (mlp(3, 4, 5, 6, 2), (3,), True),
    "MLP with one output": (mlp(2, 5, 6, 1), (2,), True),
    "MLP, projections apart": (mlp(3, 7, 5, 2), (3,), False),
    "CNN of 3 layers": (cnn(3, 4, 5, 2), (3, 6, 6), False),
    "CNN with one input": (cnn(1, 4, 5, 6, 3), (1, 6, 6), False),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs(name: str, dtype: torch.dtype, tolerance: float, generator: torch.Generator) -> None:
    model, shape, shared = NETWORKS[name]
    space = space_of(model, *shape, symmetry="all")
    features = random_features(space, C, 4, generator=generator, dtype=dtype)
    theirs = make_nfn_attention(space, features, HEADS, shared).to(dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    ours = from_nfn_attention(theirs, space)
    with torch.no_grad():
        expected, got = to_ours(theirs(to_nfn(features)), space), ours(features)
    for n in space.names:
        assert got[n].dtype == dtype
        assert (got[n] - expected[n]).abs().max() / expected[n].abs().max() < tolerance, n
