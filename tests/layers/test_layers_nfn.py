"""The linear layer with the weights of the ``nfn`` package's layers gives the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nfn_opt.testing import random_features
from nfn_opt.weight_space import Symmetry
from tests.layers.nfn_weights import from_nfn, make_nfn, to_nfn, to_ours
from tests.layers.spaces import SYMMETRIES, cnn, mlp, space_of

C_IN, C_OUT = 3, 4
NETWORKS = {
    "MLP of 2 layers": (mlp(3, 7, 2), (3,)),
    "MLP of 3 layers": (mlp(2, 8, 5, 3), (2,)),
    "MLP of 4 layers": (mlp(3, 4, 5, 6, 2), (3,)),
    "MLP of 6 layers": (mlp(2, 4, 5, 6, 5, 4, 3), (2,)),
    "CNN of 2 layers": (cnn(2, 6, 3), (2, 6, 6)),
    "CNN of 3 layers": (cnn(3, 4, 5, 2), (3, 6, 6)),
    "CNN of 4 layers": (cnn(2, 4, 5, 6, 3), (2, 6, 6)),
    "convolutions alone": (
        nn.Sequential(nn.Conv2d(2, 5, (3, 2)), nn.ReLU(), nn.Conv2d(5, 3, (2, 3))),
        (2, 8, 8),
    ),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs(
    name: str, symmetry: Symmetry, dtype: torch.dtype, tolerance: float, generator: torch.Generator
) -> None:
    model, shape = NETWORKS[name]
    space = space_of(model, *shape, symmetry=symmetry)
    features = random_features(space, C_IN, 4, generator=generator, dtype=dtype)
    theirs = make_nfn(space, features, C_OUT).to(dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, generator=generator)
    ours = from_nfn(theirs, space, C_IN, C_OUT)
    with torch.no_grad():
        expected, got = to_ours(theirs(to_nfn(features)), space), ours(features)
    for n in space.names:
        assert got[n].dtype == dtype
        assert (got[n] - expected[n]).abs().max() / expected[n].abs().max() < tolerance, n


@pytest.mark.parametrize("name", NETWORKS)
def test_number_of_weights(name: str, generator: torch.Generator) -> None:
    """NP: the same weights, and one bias for each of the package's several. HNP: one weight for each map."""
    model, shape = NETWORKS[name]
    for symmetry in SYMMETRIES:
        space = space_of(model, *shape, symmetry=symmetry)
        theirs = make_nfn(space, random_features(space, C_IN, 1, generator=generator), C_OUT)
        ours = from_nfn(theirs, space, C_IN, C_OUT)
        matrices = sum(p.numel() for p in theirs.parameters() if p.dim() > 1)
        weights = sum(p.numel() for p in ours.weights.values())
        assert weights == matrices if symmetry == "all" else weights < matrices
        assert sum(p.numel() for p in ours.parameters()) < sum(p.numel() for p in theirs.parameters())
