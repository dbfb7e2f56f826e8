"""Index patterns and the plans made of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nfn_opt.layers import RelationLinear
from nfn_opt.layers.patterns import Pattern, all_patterns, set_partitions
from nfn_opt.layers.plan import plan_per_parameter
from nfn_opt.layers.relations import RELATIONS, plan_by_relation
from nfn_opt.testing import assert_equivariant, assert_sensitive, random_features
from nfn_opt.weight_space import Axis, Features, TensorSpec, WeightSpace
from tests.layers.spaces import SYMMETRIES, Residual, cnn, mlp, space_of

BELL = [1, 1, 2, 5, 15, 52]


def tensor_spec(*groups: str) -> TensorSpec:
    """A tensor with axes of 5 neurons of the groups named; a dot is a fixed axis of 2."""
    axes = [Axis(f"f{i}", 2, False) if g == "." else Axis(g, 5) for i, g in enumerate(groups)]
    return TensorSpec("w", tuple(a.size for a in axes), tuple(axes))


@pytest.mark.parametrize("count", range(6))
def test_partitions_are_counted_by_the_bell_numbers(count: int) -> None:
    partitions = list(set_partitions(range(count)))
    assert len(set(partitions)) == len(partitions) == BELL[count]
    assert all(sorted(sum(p, ())) == list(range(count)) for p in partitions)


@pytest.mark.parametrize(
    "groups", [(), ("a",), ("a", "b"), ("a", "a"), ("a", "b", "a"), (".", "a"), ("a", ".", "b")]
)
def test_maps_of_a_tensor_to_itself_are_counted_by_partitions(groups: tuple[str, ...]) -> None:
    """One map for every partition of the axes of source and target in which blocks stay within a group."""
    patterns = all_patterns(tensor_spec(*groups))
    pairs = sum(
        len(reading.arranged(writing.signature))
        for writing in patterns
        for reading in patterns
        if sorted(reading.signature) == sorted(writing.signature)
    )
    expected = 1
    for group in set(groups) - {"."}:
        expected *= BELL[2 * groups.count(group)]
    assert pairs == expected


@pytest.mark.parametrize(
    "pattern", all_patterns(tensor_spec("a", "b", "a", ".")), ids=lambda p: f"{p.connected} {p.free}"
)
def test_reading_and_writing_by_hand(pattern: Pattern, generator: torch.Generator) -> None:
    features = torch.randn(2, 5, 5, 5, 2, 3, generator=generator, dtype=torch.float64)
    read = pattern.read(features)
    assert read.shape == (2, *[5] * len(pattern.connected), 2 * 3)
    written = pattern.widen(pattern.place(read)) * pattern.mask(features)
    blocks = (*pattern.connected, *pattern.free)
    expected_read, expected_written = torch.zeros_like(read), torch.zeros_like(features)
    free = 5 ** len(pattern.free)
    for entry in torch.cartesian_prod(*[torch.arange(5)] * 3).tolist():
        if any(len({entry[axis] for axis in block}) > 1 for block in blocks):
            continue
        kept = (slice(None), *(entry[block[0]] for block in pattern.connected))
        everywhere = (slice(None), *entry)
        expected_read[kept] += features[everywhere].flatten(1) / free
        expected_written[everywhere] = read[kept].unflatten(1, (2, 3))
    torch.testing.assert_close(read, expected_read)
    torch.testing.assert_close(written.expand_as(features), expected_written)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_large_products_need_no_permuted_copies(symmetry: str) -> None:
    for space in (
        space_of(mlp(2, 8, 8, 8, 1), 2, symmetry=symmetry),  # type: ignore[arg-type]
        space_of(cnn(1, 4, 4, 4, 2), 1, 5, 5, symmetry=symmetry),  # type: ignore[arg-type]
    ):
        for step in plan_per_parameter(space):
            if len(step.signature) == 2:
                assert all(pattern.ordered for pattern in (*step.readings, *step.writings))


def test_plans_are_made_once_for_a_space() -> None:
    spaces = [space_of(mlp(2, 8, 1), 2) for _ in range(2)]
    assert plan_per_parameter(spaces[0]) is plan_per_parameter(spaces[1])
    assert plan_by_relation(spaces[0]) is plan_by_relation(spaces[1])


def test_relations_have_unique_names() -> None:
    assert len(set(RELATIONS)) == len(RELATIONS)
    assert "matrix:o.i -> matrix:o.i (itself)" in RELATIONS
    assert "matrix:o -> vector:o (other)" in RELATIONS


def test_relations_of_a_network_by_hand() -> None:
    """In 2 -> 4 -> 3 the hidden bias reads, neuron by neuron, itself and the weights that come and go."""
    space = space_of(mlp(2, 4, 3), 2)
    (writing,) = [w for w in plan_by_relation(space) if w.pattern.name == "0.bias" and w.pattern.full]
    found = {RELATIONS[relation]: [r.name for r in source.readings] for relation, source in writing.sources}
    assert found == {
        "vector:o -> vector:o (itself)": ["0.bias"],
        "matrix:o -> vector:o (other)": ["0.weight"],
        "matrix:i -> vector:o (other)": ["2.weight"],
    }
    assert writing.kind == "vector"


@pytest.mark.parametrize(("relation", "expected"), [
    ("vector: -> vector: (other)", lambda f: (f["2.bias"].mean(1) + f["4.bias"].mean(1)) / 2),
    ("vector: -> vector: (itself)", lambda f: f["0.bias"].mean(1)),
    ("matrix: -> vector: (other)", lambda f: sum(f[f"{i}.weight"].mean((1, 2)) for i in (0, 2, 4)) / 3),
])  # fmt: skip
def test_tensors_in_the_same_relation_are_averaged(
    relation: str, expected: Callable[[Features], Tensor], generator: torch.Generator
) -> None:
    space = space_of(mlp(2, 4, 3, 2), 2)
    layer = RelationLinear(space, 2, 2, bias=False).double()
    features = random_features(space, 2, generator=generator)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[RELATIONS.index(relation)] = torch.eye(2)
        out = layer(features)["0.bias"]
    torch.testing.assert_close(out, expected(features)[:, None].expand_as(out))


def test_a_square_reads_its_transpose_and_its_diagonal() -> None:
    space = space_of(Residual(2, 4, 3, bias=False), 2)
    found = {
        RELATIONS[relation]
        for writing in plan_by_relation(space)
        if writing.pattern.name == "square.weight"
        for relation, _ in writing.sources
    }
    assert {f"matrix:{read} -> matrix:o.i (itself)" for read in ("o.i", "i.o")} <= found
    assert {
        "matrix:d -> matrix:d (itself)",
        "matrix:d -> matrix:o (itself)",
        "matrix:d0 -> matrix: (itself)",
    } <= found


def test_other_kinds_of_parameters(generator: torch.Generator) -> None:
    """A scalar counts as a vector; so does a tensor without an input axis, however many axes it has."""
    space = WeightSpace(
        parameters=(
            TensorSpec("scalar", (), ()),
            TensorSpec("heads", (6,), (Axis("h", 2), Axis("d", 3))),
            TensorSpec("weight", (4, 2), (Axis("n", 4), Axis("h", 2, role="in"))),
        )
    )
    layer = RelationLinear(space, 2, 1, generator=generator).double()
    assert_equivariant(layer, space, 2, generator)
    assert_sensitive(layer, space, 2, generator)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([[1.0], [2.0]]))
        out = layer({s.name: torch.zeros(1, *s.view_shape, 2, dtype=torch.float64) for s in space.parameters})
    assert {name: tensor.unique().tolist() for name, tensor in out.items()} == {
        "scalar": [1.0],
        "heads": [1.0],
        "weight": [2.0],
    }
