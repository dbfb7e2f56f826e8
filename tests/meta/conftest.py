"""Small inner problems for the tests of meta-training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nfn_opt.data import ImageData, load_images
from nfn_opt.meta import ClassificationTask


@pytest.fixture
def tiny_task() -> ClassificationTask:
    """Eleven smooth parameters in float64; 12 inputs of 2 numbers in 2 classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    labels = (inputs.sum(1) > 0).long()
    network = nn.Sequential(
        nn.Linear(2, 2, device="meta"), nn.Tanh(), nn.Linear(2, 2, bias=False, device="meta")
    )
    return ClassificationTask(network, inputs, labels, batch_size=6, dtype=torch.float64)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """The first 300 of the bundled digits."""
    return load_images("digits").subset(300)
