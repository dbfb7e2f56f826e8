"""Text as characters: a corpus that ships with the library, or a file of the user's, as numbers."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["TextData", "load_text"]

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands for every character that is not in the alphabet."""

_CORPUS = Path(__file__).parent / "corpus" / "project.txt"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TextData:
    """A text as the numbers of its characters.

    Attributes:
        codes: Number of each character in the alphabet, int64, shape (N,).
        alphabet: The characters by number; those that are not in it were read as `UNKNOWN`, if that is.
        source: Where the text comes from.

    Raises:
        ValueError: If there are no codes, or one has no place in the alphabet.
        TypeError: If the codes are not int64.
    """

    codes: Tensor
    alphabet: str
    source: str

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int64:
            raise TypeError(f"codes must be int64, got {self.codes.dtype}")
        if self.codes.ndim != 1 or len(self.codes) == 0:
            raise ValueError(f"codes must have shape (N,), N >= 1, got {tuple(self.codes.shape)}")
        low, high = (bound.item() for bound in self.codes.aminmax())
        if low < 0 or high >= len(self.alphabet):
            raise ValueError(
                f"codes must lie in 0..{len(self.alphabet) - 1}, the places of the alphabet, got {low}..{high}"
            )

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        return f"TextData({self.source!r}, {len(self)} characters, alphabet of {len(self.alphabet)})"

    @classmethod
    def encode(cls, text: str, *, alphabet_size: int = 64, source: str = "text") -> TextData:
        """Number the characters of a text by how often they occur, the most frequent first.

        Args:
            text: The text.
            alphabet_size: Largest number of different characters; if the text has more, the rarest become
                one unknown character.
            source: Where the text comes from.

        Raises:
            ValueError: If the text is empty or the alphabet smaller than 2.

        Example:
            >>> data = TextData.encode("abracadabra", alphabet_size=3)
            >>> data.alphabet[:2], data.decode(data.codes)
            ('ab', 'ab�a�a�ab�a')
        """
        if not text or alphabet_size < 2:
            raise ValueError(
                f"got a text of {len(text)} characters and alphabet_size={alphabet_size}, "
                "expected at least one character and an alphabet of at least 2"
            )
        counts = Counter(text)
        # Equally frequent characters are ordered by themselves, so that the numbers depend on the text only.
        order = sorted(counts, key=lambda character: (-counts[character], character))
        alphabet = "".join(order)
        if len(order) > alphabet_size:
            alphabet = "".join(order[: alphabet_size - 1]) + UNKNOWN
        place = {character: number for number, character in enumerate(alphabet)}
        rest = len(alphabet) - 1
        codes = torch.tensor([place.get(character, rest) for character in text])
        return cls(codes=codes, alphabet=alphabet, source=source)

    def decode(self, codes: Tensor) -> str:
        """The text of codes, shape (N,)."""
        return "".join(self.alphabet[code] for code in codes.tolist())

    def split(self, held_out: float = 0.1) -> tuple[TextData, TextData]:
        """The text cut in two: its beginning, and a fraction ``held_out`` at its end.

        Raises:
            ValueError: If a part would be empty.
        """
        cut = len(self) - round(held_out * len(self))
        if not 0 < cut < len(self):
            raise ValueError(
                f"held_out={held_out} of {len(self)} characters leaves a part empty; choose 0 < held_out < 1"
            )
        first, last = (dataclasses.replace(self, codes=part) for part in (self.codes[:cut], self.codes[cut:]))
        return first, last


def load_text(path: str | os.PathLike[str] | None = None, *, alphabet_size: int = 64) -> TextData:
    """Load a text file as characters.

    Args:
        path: A UTF-8 text file; None stands for the corpus of the library, 256 KB of its own documentation and
            source code (Apache-2.0).
        alphabet_size: Largest number of different characters, see :meth:`TextData.encode`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no UTF-8 text, or is empty.

    Example:
        >>> load_text()
        TextData('project.txt', 262076 characters, alphabet of 64)
    """
    where = _CORPUS if path is None else Path(path)
    if not where.is_file():
        raise FileNotFoundError(f"there is no text file {os.fspath(where)!r}; check the path")
    try:
        text = where.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{os.fspath(where)!r} is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    if not text:
        raise ValueError(f"{os.fspath(where)!r} is empty; give a text of at least a few thousand characters")
    return TextData.encode(text, alphabet_size=alphabet_size, source=where.name)
