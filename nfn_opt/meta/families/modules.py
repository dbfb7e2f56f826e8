"""Layers of the task families that PyTorch lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sine(nn.Module):
    """``sin(omega x)``, the activation of SIRENs (arXiv:2006.09661).

    Args:
        omega: Factor on the argument.
    """

    def __init__(self, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        """Sine of a tensor of any shape."""
        return torch.sin(self.omega * x)

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"omega={self.omega:g}"


class Residual(nn.Module):
    """``x + body(x)``, or ``shortcut(x) + body(x)`` where the shape changes.

    Args:
        body: The branch with the layers.
        shortcut: The other branch, for example a 1x1 convolution; the identity if not given.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both branches."""
        return self.shortcut(x) + self.body(x)


class CharRecurrent(nn.Module):
    """Recurrent model of the next character: embedding, one recurrent layer, linear layer.

    Args:
        vocabulary: Number of characters.
        embedding: Width of the embedding.
        hidden: Width of the recurrent layer.
        kind: The recurrent layer: ``"gru"``, ``"lstm"``, ``"tanh"`` or ``"relu"`` (simple recurrence).

    Raises:
        ValueError: If the kind is unknown.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int, kind: str = "gru") -> None:
        super().__init__()
        if kind not in RECURRENT:
            raise ValueError(f"kind is {kind!r}, expected one of {', '.join(RECURRENT)}")
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.recurrent: nn.RNNBase
        if kind == "gru":
            self.recurrent = nn.GRU(embedding, hidden, batch_first=True)
        elif kind == "lstm":
            self.recurrent = nn.LSTM(embedding, hidden, batch_first=True)
        else:
            self.recurrent = nn.RNN(embedding, hidden, nonlinearity=kind, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of each next character, shape (B, T, vocabulary), from codes of shape (B, T)."""
        return self.head(self.recurrent(self.embedding(codes))[0])


RECURRENT = ("gru", "lstm", "tanh", "relu")
"""Kinds of recurrent layers."""


class CausalSelfAttention(nn.Module):
    """Several-headed self-attention in which a position sees itself and those before it.

    Args:
        dim: Width of the model.
        heads: Number of heads, a divisor of ``dim``.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide dim, got {heads} heads and dim {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, T, dim) to (B, T, dim)."""
        return self.out(causal_attention(self.qkv(x), self.heads))


def causal_attention(qkv: Tensor, heads: int) -> Tensor:
    """Causal attention of queries, keys and values that lie side by side.

    Written out rather than fused: at the short lengths of the tasks it is no slower, and it can be
    differentiated twice.

    Args:
        qkv: Shape (..., T, 3 dim).
        heads: Number of heads.

    Returns:
        Shape (..., T, dim).
    """
    length, dim = qkv.shape[-2], qkv.shape[-1] // 3
    q, k, v = qkv.reshape(-1, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
    scores = torch.matmul(q * (dim // heads) ** -0.5, k.transpose(-2, -1))
    later = torch.ones(length, length, dtype=torch.bool, device=qkv.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return torch.matmul(weights, v).transpose(1, 2).reshape(*qkv.shape[:-1], dim)


class CharTransformer(nn.Module):
    """Causal Transformer of the next character, with normalisation before each branch.

    Args:
        vocabulary: Number of characters.
        length: Longest text, in characters.
        dim: Width.
        heads: Number of heads.
        blocks: Number of blocks.
        expansion: Width of the hidden layer in each block's MLP, in multiples of ``dim``.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        dim: int = 32,
        heads: int = 2,
        blocks: int = 2,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, dim)
        self.position = nn.Embedding(length, dim)
        layers: list[nn.Module] = []
        for _ in range(blocks):
            hidden = expansion * dim
            layers += [
                Residual(nn.Sequential(nn.LayerNorm(dim), CausalSelfAttention(dim, heads))),
                Residual(
                    nn.Sequential(
                        nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
                    )
                ),
            ]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, vocabulary))

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of each next character, shape (B, T, vocabulary), from codes of shape (B, T)."""
        x = self.token(codes) + self.position.weight[: codes.shape[-1]]
        return self.head(self.blocks(x))
