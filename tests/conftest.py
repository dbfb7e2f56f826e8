"""Settings and fixtures shared by the whole suite."""

from __future__ import annotations

import os

import matplotlib
import pytest
import torch

matplotlib.use("Agg")

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already fill the cores; more threads in each would only make them wait for one another.
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed, new for every test."""
    return torch.Generator().manual_seed(0)
