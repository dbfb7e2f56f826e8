"""Neural functionals for PyTorch: networks that read, edit and optimize the weights of other networks."""

from __future__ import annotations

__version__ = "0.1.0"
