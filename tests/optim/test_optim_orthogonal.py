"""Newton-Schulz keeps singular vectors and brings singular values near 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nfn_opt.optim import orthogonalise
from nfn_opt.optim.orthogonal import COEFFICIENTS, LARGE, WIDE


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (2, 3, 4, 7), (1, 5)])
def test_singular_values_near_one_and_the_same_vectors(
    shape: tuple[int, ...], generator: torch.Generator
) -> None:
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    result = orthogonalise(matrix, iterations=8)
    assert result.shape == matrix.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    between = u.mT @ result @ vh.mT
    torch.testing.assert_close(between, torch.diag_embed(between.diagonal(dim1=-2, dim2=-1)))


def test_equals_torch_in_bfloat16(generator: torch.Generator) -> None:
    matrix = torch.randn(7, 4, generator=generator)
    theirs = torch.optim._muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(
        orthogonalise(matrix, dtype=torch.bfloat16), theirs.float(), rtol=0, atol=0, check_stride=False
    )


def test_batched_equals_single_and_vmap(generator: torch.Generator) -> None:
    matrix = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    one_by_one = torch.stack([orthogonalise(m) for m in matrix])
    torch.testing.assert_close(orthogonalise(matrix), one_by_one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(orthogonalise)(matrix), one_by_one, rtol=1e-12, atol=1e-12)


def plain(matrix: Tensor, iterations: int) -> Tensor:
    """The iteration as its formula reads, for wide matrices."""
    a, b, c = COEFFICIENTS
    x = matrix / torch.linalg.matrix_norm(matrix, keepdim=True)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("iterations", [1, 3, 5, 6])
def test_large_wide_matrices(iterations: int, generator: torch.Generator) -> None:
    matrix = torch.randn(2, LARGE, WIDE * LARGE, generator=generator, dtype=torch.float64)
    expected = plain(matrix, iterations)
    torch.testing.assert_close(orthogonalise(matrix, iterations), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(orthogonalise(matrix.mT, iterations), expected.mT, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rank", [5, 60])
def test_rounding_of_large_wide_matrices(rank: int, generator: torch.Generator) -> None:
    """Of low rank and noise, so that most singular values are near zero and grow by 480."""
    shapes = (LARGE, rank), (rank, 4 * LARGE), (LARGE, 4 * LARGE)
    left, right, noise = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    matrix = left @ right + 1e-3 * noise
    expected = plain(matrix, 5)
    assert torch.dist(orthogonalise(matrix.float()).double(), expected) < 1e-4 * expected.norm()


def test_floors_of_the_norm() -> None:
    tiny = torch.full((1, 1), 1e-7, dtype=torch.float64)
    clamped, added = (orthogonalise(tiny, iterations=0, eps=3e-7, floor=floor) for floor in ("clamp", "add"))
    assert clamped.item() == pytest.approx(1 / 3)
    assert added.item() == pytest.approx(1 / 4)
    assert orthogonalise(torch.zeros(2, 3)).abs().max() == 0


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrix has shape \(3,\), expected at least two axes"):
        orthogonalise(torch.ones(3))
