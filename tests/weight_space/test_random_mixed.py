"""Random networks of mixed operators: the symmetry found holds, is the one they were built with, and is all needed."""

from __future__ import annotations

import random

import pytest

from nfn_opt.weight_space import WeightSpace
from tests.weight_space.cases import holds, torn
from tests.weight_space.mixed import mixed


@pytest.mark.parametrize("first", range(0, 200, 10))
def test_the_groups_are_those_it_was_built_with_and_all_are_needed(first: int) -> None:
    for seed in range(first, first + 10):
        model, inputs, groups = mixed(seed)
        space = WeightSpace.from_module(model, inputs)
        assert sorted(space.groups.values()) == groups, seed
        assert holds(space, model, inputs), seed
        wrong = random.Random(seed).choices(list(torn(space)), k=2)
        assert [what for what, other in wrong if holds(other, model, inputs)] == [], seed


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_it_holds_with_inputs_and_outputs_permuted(first: int) -> None:
    for seed in range(first, first + 20, 2):
        model, inputs, _ = mixed(seed)
        assert holds(WeightSpace.from_module(model, inputs, symmetry="all"), model, inputs), seed
