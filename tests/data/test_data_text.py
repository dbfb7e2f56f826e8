"""Text as numbers: every character has its place, and reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nfn_opt.data import TextData, load_text


def test_the_corpus_reads_back() -> None:
    whole = load_text(alphabet_size=200)
    assert len(whole) > 200_000
    assert len(whole.alphabet) == 95
    assert whole.decode(whole.codes[:8]) == "# nfn-op"
    small = load_text(alphabet_size=30)
    assert len(small.alphabet) == 30
    assert torch.equal(small.codes[small.codes < 29], whole.codes[whole.codes < 29])


def test_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("bábab", encoding="utf-8")
    data = load_text(path)
    assert (data.alphabet, data.codes.tolist(), data.source) == (
        "báa"[:1] + "aá",
        [0, 2, 0, 1, 0],
        "mine.txt",
    )


def test_split() -> None:
    first, last = TextData.encode("abcdefghij").split(0.3)
    assert (first.decode(first.codes), last.decode(last.codes)) == ("abcdefg", "hij")
    with pytest.raises(ValueError, match=r"held_out=0\.0 of 10 characters"):
        TextData.encode("abcdefghij").split(0.0)


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no text file .*none\.txt"):
        load_text(tmp_path / "none.txt")
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"no UTF-8 text .* at byte 2"):
        load_text(tmp_path / "bytes")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load_text(tmp_path / "empty")


@pytest.mark.parametrize(
    ("codes", "error", "match"),
    [
        (torch.tensor([0, 2]), ValueError, r"must lie in 0\.\.1, the places of the alphabet, got 0\.\.2"),
        (torch.zeros(0, dtype=torch.int64), ValueError, r"shape \(N,\), N >= 1"),
        (torch.zeros(2), TypeError, "must be int64"),
    ],
)
def test_refused_codes(codes: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        TextData(codes=codes, alphabet="ab", source="x")


def test_refused_alphabet() -> None:
    with pytest.raises(ValueError, match="alphabet_size=1"):
        TextData.encode("abc", alphabet_size=1)
