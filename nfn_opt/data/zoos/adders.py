"""GRU networks that add two numbers written in digits: one description, and an ordinary module of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfn_opt.data.zoos.architecture import ZooArchitecture

__all__ = ["TOKENS", "GruAdder", "GruAdderArchitecture"]

TOKENS = "0123456789+= "
"""What questions ("12+345") and answers ("357") are written in; "=" starts an answer, blanks fill both up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GruAdderArchitecture(ZooArchitecture):
    """An encoder that reads the question, a decoder that starts from its last state, a linear layer.

    Those of the Tiny RNN Zoo (arXiv:2402.05232) have 128 hidden units and numbers of up to 5 digits.

    Attributes:
        hidden: Units of encoder and decoder.
        digits: Digits of each of the two numbers, at most.

    Raises:
        ValueError: If one is below 1, or a number does not fit into 64 bits.

    Example:
        >>> GruAdderArchitecture(hidden=128).parameters
        111501
    """

    kind: ClassVar[str] = "gru-adder"
    scores: ClassVar[tuple[str, ...]] = ("test_loss", "test_success")

    hidden: int = 32
    digits: int = 2

    def __post_init__(self) -> None:
        if self.hidden < 1 or not 1 <= self.digits <= 15:
            raise ValueError(f"hidden must be >= 1 and digits 1 to 15, got {self}")

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by the names of `GruAdder`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in ("encoder", "decoder"):
            shapes[f"{name}.weight_ih_l0"] = (3 * self.hidden, len(TOKENS))
            shapes[f"{name}.weight_hh_l0"] = (3 * self.hidden, self.hidden)
            shapes[f"{name}.bias_ih_l0"] = shapes[f"{name}.bias_hh_l0"] = (3 * self.hidden,)
        return shapes | {"head.weight": (len(TOKENS), self.hidden), "head.bias": (len(TOKENS),)}

    @property
    def summary(self) -> str:
        """The hidden units and the digits."""
        return f"GRU adder of {self.hidden} units and {self.digits} digits"

    def module(self, row: Mapping[str, Any]) -> GruAdder:
        """A `GruAdder`; nothing of the row is needed."""
        del row
        return GruAdder(self)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Tokens of one question and its answer, int64."""
        return tuple(
            torch.zeros(1, length, dtype=torch.int64) for length in (2 * self.digits + 1, self.digits + 1)
        )


class GruAdder(nn.Module):
    """A network that adds, as an ordinary module.

    Args:
        architecture: What it is.

    Example:
        >>> network = GruAdder(GruAdderArchitecture(digits=2))
        >>> questions, answers = torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.int64)
        >>> network(questions, answers).shape, network.answer(questions).shape
        (torch.Size([3, 3, 13]), torch.Size([3, 3]))
    """

    def __init__(self, architecture: GruAdderArchitecture) -> None:
        super().__init__()
        self.answer_length = architecture.digits + 1
        self.encoder = nn.GRU(len(TOKENS), architecture.hidden, batch_first=True)
        self.decoder = nn.GRU(len(TOKENS), architecture.hidden, batch_first=True)
        self.head = nn.Linear(architecture.hidden, len(TOKENS))

    def forward(self, questions: Tensor, answers: Tensor) -> Tensor:
        """Logits of each token of the answers, given those before it.

        Args:
            questions: Tokens, int64, shape (B, 2 * digits + 1).
            answers: Tokens, int64, shape (B, digits + 1).

        Returns:
            Shape (B, digits + 1, tokens).
        """
        start = torch.full_like(answers[:, :1], TOKENS.index("="))
        before = torch.cat([start, answers[:, :-1]], 1)
        _, state = self.encoder(_one_hot(questions, self.head.weight))
        hidden, _ = self.decoder(_one_hot(before, self.head.weight), state)
        return self.head(hidden)

    @torch.no_grad()
    def answer(self, questions: Tensor) -> Tensor:
        """The likeliest tokens one after the other, int64, shape (B, digits + 1)."""
        _, state = self.encoder(_one_hot(questions, self.head.weight))
        token = torch.full_like(questions[:, :1], TOKENS.index("="))
        tokens = []
        for _ in range(self.answer_length):
            hidden, state = self.decoder(_one_hot(token, self.head.weight), state)
            token = self.head(hidden).argmax(2)
            tokens.append(token)
        return torch.cat(tokens, 1)


def _one_hot(tokens: Tensor, like: Tensor) -> Tensor:
    return F.one_hot(tokens, len(TOKENS)).to(like.dtype)
