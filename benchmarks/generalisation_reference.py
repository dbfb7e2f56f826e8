"""The predictor of the ``nfn`` package for CNNs, as its authors set it up (arXiv:2302.14040)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
from nfn.layers import HNPLinear, HNPPool, TupleOp
from torch import Tensor, nn

from nfn_opt.predictors import NetworkGroup

CHANNELS = (16, 16, 5)
"""Of the equivariant layers."""

HEAD = 1000
"""Neurons of the two hidden layers behind the pooling."""

NETWORKS_AT_ONCE = 128


def weight_space_features(params: Mapping[str, Tensor]) -> WeightSpaceFeatures:
    """Weights ``{name: (B, *shape)}`` in the order of the layers, as the package takes them."""
    weights = [value.unsqueeze(1) for name, value in params.items() if name.endswith("weight")]
    return WeightSpaceFeatures(
        # The linear layer behind the mean over all pixels, as a convolution of one pixel.
        [value if value.dim() == 6 else value[..., None, None] for value in weights],
        [value.unsqueeze(1) for name, value in params.items() if name.endswith("bias")],
    )


class ReferencePredictor(nn.Module):
    """HNP layers with ReLU, pooling, an MLP; one logit a network.

    Args:
        params: Weights of some networks, for their shapes.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        spec = network_spec_from_wsfeat(weight_space_features(params))
        layers: list[nn.Module] = []
        for before, after in zip((1, *CHANNELS), CHANNELS, strict=False):
            layers += [HNPLinear(spec, before, after), TupleOp(nn.ReLU())]
        self.layers = nn.Sequential(*layers, HNPPool(spec), nn.Flatten())
        numbers = CHANNELS[-1] * HNPPool.get_num_outs(spec)
        self.head = nn.Sequential(
            nn.Linear(numbers, HEAD), nn.ReLU(), nn.Linear(HEAD, HEAD), nn.ReLU(), nn.Linear(HEAD, 1)
        )

    def forward(self, params: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, 1)."""
        return self.head(self.layers(weight_space_features(params)))

    @torch.no_grad()
    def predict(self, params: Mapping[str, Tensor]) -> Tensor:
        """Scores (N,)."""
        count = len(next(iter(params.values())))
        starts = range(0, count, NETWORKS_AT_ONCE)
        parts = [
            self({name: value[start : start + NETWORKS_AT_ONCE] for name, value in params.items()})
            for start in starts
        ]
        return torch.cat(parts).sigmoid().squeeze(1)


def train_reference(
    train: NetworkGroup,
    score: Callable[[ReferencePredictor], float],
    *,
    steps: int,
    batch_size: int,
    validate_every: int,
    seed: int,
) -> tuple[ReferencePredictor, float]:
    """Train by Adam, learning rate 1e-3, binary cross-entropy, and keep the weights of the best validation score.

    Returns:
        The predictor, and the processor seconds of its steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the package draws from torch's own generator
        predictor = ReferencePredictor(train.params)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    best, kept, seconds = float("-inf"), predictor.state_dict(), 0.0
    for step in range(1, steps + 1):
        started = time.process_time()
        batch = train[torch.randint(len(train), (batch_size,), generator=order)]
        loss = F.binary_cross_entropy_with_logits(predictor(batch.params).squeeze(1), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - started
        if step % validate_every == 0 or step == steps:
            found = score(predictor)
            if found > best:
                best, kept = found, {name: value.clone() for name, value in predictor.state_dict().items()}
    predictor.load_state_dict(kept)
    return predictor, seconds
