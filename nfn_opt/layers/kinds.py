"""The two kinds of tensors that every architecture has, by which layers may share weights."""

from __future__ import annotations

from typing import Literal

from nfn_opt.weight_space import TensorSpec

Kind = Literal["vector", "matrix"]
KINDS: tuple[Kind, ...] = ("vector", "matrix")


def kind_of(spec: TensorSpec) -> Kind:
    """``"matrix"`` for a tensor with an ``out`` and an ``in`` axis, ``"vector"`` for all others.

    Example:
        >>> from nfn_opt.weight_space import Axis
        >>> out, into = Axis("h2", 3), Axis("h1", 2, role="in")
        >>> kind_of(TensorSpec("weight", (3, 2), (out, into))), kind_of(TensorSpec("bias", (3,), (out,)))
        ('matrix', 'vector')
    """
    return "matrix" if {"out", "in"} <= {axis.role for axis in spec.axes} else "vector"
