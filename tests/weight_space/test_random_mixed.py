"""Random networks of mixed operators: the symmetry found holds, is the one they were built with, and is all needed."""

from __future__ import annotations

import random

import pytest

from nfn_opt.weight_space import Symmetry, WeightSpace
from tests.weight_space.cases import holds, torn
from tests.weight_space.mixed import mixed


@pytest.mark.parametrize("seed", range(200))
def test_the_groups_are_those_it_was_built_with(seed: int) -> None:
    model, inputs, groups = mixed(seed)
    space = WeightSpace.from_module(model, inputs)
    assert sorted(space.groups.values()) == groups
    assert space.verify(model, inputs, trials=1) < 1e-10


@pytest.mark.parametrize("symmetry", ["hidden", "all"])
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_no_symmetry_is_invented_and_none_can_be_torn(first: int, symmetry: Symmetry) -> None:
    for seed in range(first, first + 20):
        model, inputs, _ = mixed(seed)
        space = WeightSpace.from_module(model, inputs, symmetry=symmetry)
        assert holds(space, model, inputs), seed
        wrong = random.Random(seed).choices(list(torn(space)), k=3)
        assert [what for what, other in wrong if holds(other, model, inputs)] == [], seed
